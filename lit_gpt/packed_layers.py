"""Linear layers of a network that is evaluated in float32 or bfloat16 on a CPU: with packed weights, and their
activation inside of the matmul or in place.

Weights hardly ever change in an evaluation, so each is packed once for all of its batches. One thread with AVX-512 then
multiplies 2,048 rows of 128 channels with 512 x 128 at 104 GFLOP/s instead of 85, and 384 channels with 1,536 x 384 at
111 instead of 100 (float32, MKL on an AMD EPYC). The first, with GELU, runs at 88 GFLOP/s if GELU is inside of the
matmul, and at 67 if it follows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gpt.forwards import has_hooks, has_its_class_forward, replaced_forwards
from lit_gpt.model import MLP
from lit_gpt.packed_weight import can_be_packed, matmul_dtype, pack, packed_linear

#: Weights are packed for matmuls with about this many rows.
ROWS = 2048
#: Activations of an `MLP` that are a part of its first matmul.
INSIDE = ("gelu", "gelu_tanh")
#: Those that are computed in place after it: 2,048 rows of 384 channels take 23.5 ms with both matmul and relu2, and
#: 30.2 not in place. oneDNN's own ReLU takes 23.1 and makes 0 of NaN.
IN_PLACE = ("relu", "relu2")


class _Packed(NamedTuple):
    weight: Tensor  # kept, so that no other tensor has its id
    state: tuple[int, int, float]
    packed: Tensor


class PackedLayers:
    """The packed weights of a network's linear layers, from `begin` to `end`. One that changes is packed again.

    A copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self._weights: dict[tuple[int, torch.dtype], _Packed] | None = None

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
        mlps = [m for m in modules if _is_plain(m, MLP) and m.fc in linear and m.activation in (*INSIDE, *IN_PLACE)]
        return {**linear, **{m: partial(self._mlp, m) for m in mlps}}

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """What `nn.Linear.forward` computes."""
        return nn.Linear.forward(layer, x) if _must_be_plain(layer, x) else self._multiplied(layer, x, "none")

    def _mlp(self, mlp: MLP, x: Tensor) -> Tensor:
        """What `MLP.forward` computes, (B, T, C) to (B, T, C)."""
        if _must_be_plain(mlp.fc, x):
            return MLP.forward(mlp, x)
        if mlp.activation in INSIDE:
            return mlp.proj(self._multiplied(mlp.fc, x, mlp.activation))
        h = self._multiplied(mlp.fc, x, "none").relu_()
        return mlp.proj(h.mul_(h) if mlp.activation == "relu2" else h)

    def _multiplied(self, layer: nn.Linear, x: Tensor, activation: str) -> Tensor:
        """What `F.linear` computes, then an activation, in the dtype of autocast's matmuls."""
        dtype, bias = matmul_dtype(layer.weight), layer.bias
        packed = self._packed(layer.weight, dtype)
        return packed_linear(x.to(dtype), packed, None if bias is None else bias.to(dtype), activation)

    def _packed(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        assert self._weights is not None
        key, state = (id(weight), dtype), _state(weight)
        if key not in self._weights or self._weights[key].state != state:
            self._weights[key] = _Packed(weight, state, pack(weight.detach().to(dtype), ROWS))
        return self._weights[key].packed


def _can_be_packed(weight: Tensor) -> bool:
    is_kept = isinstance(weight, nn.Parameter) and not weight.is_inference()  # a plain tensor may be of one batch
    return is_kept and can_be_packed(weight) and can_be_packed(torch.empty(1, 1, dtype=matmul_dtype(weight)))


def _must_be_plain(layer: nn.Linear, x: Tensor) -> bool:
    """Whether the forward of the network has begun to record gradients, or this is the error of two dtypes."""
    return torch.is_grad_enabled() or (x.dtype != layer.weight.dtype and not torch.is_autocast_enabled("cpu"))


def _state(weight: Tensor) -> tuple[int, int, float]:
    """Another one when a weight has changed: operations in place count in `_version`, and those on ``weight.data`` show
    in the sum. It takes 4 us for 512 x 128, a 700th of the matmul.
    """
    return weight._version, weight.data_ptr(), float(weight.detach().sum(dtype=torch.float32))


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return has_its_class_forward(layer, kind) and not has_hooks(layer)
