"""Linear layers of a network that is evaluated in float32 or bfloat16 on a CPU: with packed weights, and their
activation inside of the matmul.

Weights do not change during an evaluation, so each is packed once for all of its batches. One thread with AVX-512 then
multiplies 2,048 rows of 128 channels with 512 x 128 at 104 GFLOP/s instead of 85, and 384 channels with 1,536 x 384 at
111 instead of 100 (float32, MKL on an AMD EPYC). The first, with GELU, runs at 88 GFLOP/s if GELU is inside of the
matmul, and at 67 if it follows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.checked_module import CheckedModule
from lit_gpt.forwards import has_hooks, has_its_class_forward, replaced_forwards
from lit_gpt.model import MLP
from lit_gpt.packed_weight import can_be_packed, matmul_dtype, pack, packed_linear

#: Weights are packed for matmuls with about this many rows.
ROWS = 2048
#: Activations of an `MLP` that are a part of its first matmul; relu2 squares what relu returns.
INSIDE = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu"}


class PackedLayers:
    """The packed weights of a network's linear layers, from `begin` to `end`. In between the weights must not change.

    A copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self._weights: dict[tuple[int, torch.dtype], Tensor] | None = None

    def begin(self) -> None:
        """Pack weights from now on, each when it is first used. They need as much memory again."""
        self._weights = {}

    def end(self) -> None:
        """Forget the packed weights."""
        self._weights = None

    def __reduce__(self) -> tuple[type["PackedLayers"], tuple[()]]:
        return PackedLayers, ()

    @contextmanager
    def used_by(self, net: nn.Module) -> Iterator[None]:
        """In this context the linear layers of ``net`` multiply with packed weights, unless there are gradients.

        Layers of a subclass, with hooks, or with a forward of their own stay as they are.
        """
        changed = {} if self._weights is None or torch.is_grad_enabled() else self._forwards(net)
        with replaced_forwards(changed.items()):
            yield

    def _forwards(self, net: nn.Module) -> dict[Any, Callable[[Tensor], Tensor]]:
        modules: list[Any] = list(net.modules())
        if any(module._compiled_call_impl is not None for module in modules):
            return {}  # compiled blocks have fused what can be, and would be compiled again
        linear: dict[Any, Any] = {
            m: partial(self._linear, m) for m in modules if _is_plain(m, nn.Linear) and _can_be_packed(m.weight)
        }
        mlps = {
            m: partial(_mlp, linear[m.fc], linear[m.proj], m.activation)
            for m in modules
            if _is_plain(m, MLP) and m.activation in INSIDE and {m.fc, m.proj} <= linear.keys()
        }
        return {**linear, **mlps}

    def _linear(self, layer: nn.Linear, x: Tensor, activation: str = "none") -> Tensor:
        """What `F.linear` computes, then an activation, in the dtype of autocast's matmuls."""
        dtype, bias = matmul_dtype(layer.weight), layer.bias
        key = id(layer.weight), dtype
        assert self._weights is not None
        if key not in self._weights:
            self._weights[key] = pack(layer.weight.detach().to(dtype), ROWS)
        return packed_linear(x.to(dtype), self._weights[key], None if bias is None else bias.to(dtype), activation)


def _can_be_packed(weight: Tensor) -> bool:
    return can_be_packed(weight) and can_be_packed(torch.empty(1, 1, dtype=matmul_dtype(weight)))


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return has_its_class_forward(layer, kind) and not has_hooks(layer)


def _mlp(fc: Callable[..., Tensor], proj: Callable[..., Tensor], activation: str, x: Tensor) -> Tensor:
    """What `MLP.forward` computes, (B, T, C) to (B, T, C)."""
    h = fc(x, activation=INSIDE[activation])
    return proj(h.mul_(h) if activation == "relu2" else h)


class PackedModule(CheckedModule):
    """A LightningModule whose evaluations use `packed_layers`, from the start of one to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.packed_layers = PackedLayers()

    def on_validation_epoch_start(self) -> None:
        """Begin to pack. Averaged weights have been put in place by then."""
        self.packed_layers.begin()

    def on_validation_epoch_end(self) -> None:
        """Forget the packed weights: training changes the weights."""
        self.packed_layers.end()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end
