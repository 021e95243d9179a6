"""A weight in the layout of oneDNN's matmul, for a CPU that multiplies a few rows at a time with a large matrix.

`F.linear` copies its weight into such a layout in every call. With 41 rows and a weight of 50,304 x 384 that copy takes
as long as the matmul: one thread does 52 GFLOP/s, and 93 with a weight that was copied before. With 104 rows and
20,000 x 256 it is 69 and 101 (float32, AVX-512). In bfloat16 the first is 131 and 184, the second 170 and 199.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Packing a weight takes about as long as the matmul with this many rows. It must be worth it.
MIN_ROWS = 256
#: oneDNN's names of what a matmul may end with. Not relu: oneDNN's makes 0 of NaN.
POST_OPS: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "tanh": ("tanh", [], ""),
}


class PackedWeight(Tensor):
    """A weight (V, C) for inference. `F.linear` multiplies with its packed copy, other functions see a plain tensor.

    So it can be passed to any `Network.head`.
    """

    packed: Tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Replace `F.linear` where this is the weight."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear and not kwargs and isinstance(args[1], cls):
                return _linear(*args)
            return func(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """(..., C) to (..., V), in the dtype of the weight, which under autocast is that of its matmuls."""
    return packed_linear(x.to(weight.dtype) if torch.is_autocast_enabled("cpu") else x, weight.packed, bias)


def matmul_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which a weight is multiplied: under autocast, that of its matmuls."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def pack(weight: Tensor, rows_at_once: int) -> Tensor:
    """A copy of a weight (V, C) for `packed_linear` with about this many rows; see `can_be_packed`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows_at_once)
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """`F.linear` with what `pack` returned, (..., C) to (..., V), followed by an activation.

    Args:
        x: The input.
        packed: From `pack`.
        bias: (V,).
        activation: A key of `POST_OPS`. It is computed while the output is in registers.
    """
    # oneDNN reads a bias as if it were contiguous.
    bias = None if bias is None else bias.contiguous()
    # `default` is the overload. torch takes 13 us to choose it among several, a tenth of a matmul of 16 rows.
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x.contiguous(), packed, bias, *POST_OPS[activation])
    return y


@dataclass(frozen=True)
class SoftcappedHead:
    """A linear head with a softcap and a packed weight: cap * tanh(logits / cap), with the tanh inside of the matmul.

    For a logit of 384 channels that tanh takes 0.6 ns, beside 7.8 for the matmul. As a function of its own it takes
    2.5, and the division 0.1 (float32, one thread with AVX-512).
    """

    cap: float
    vocab_size: int

    def __call__(self, hidden: Tensor, weights: list[Tensor]) -> Tensor:
        """Logits (N, V) of hidden states (N, C). The weights are a `PackedWeight` and perhaps a bias."""
        weight, bias = weights[0], weights[1] / self.cap if len(weights) > 1 else None
        assert isinstance(weight, PackedWeight)
        y = packed_linear((hidden / self.cap).to(weight.dtype), weight.packed, bias, "tanh")
        return y[:, : self.vocab_size].mul_(self.cap)


def packed_for(rows: int, weights: list[Tensor], rows_at_once: int) -> list[Tensor]:
    """The weights, those that are a large matrix on a CPU packed. For use without gradients, while they do not change.

    Args:
        rows: The rows that will be multiplied in all.
        weights: Of a head.
        rows_at_once: The rows of each matmul.
    """
    if rows < max(MIN_ROWS, 2 * rows_at_once):
        return weights
    return [_packed(weight, rows_at_once) if can_be_packed(weight) else weight for weight in weights]


def _packed(weight: Tensor, rows_at_once: int) -> PackedWeight:
    weight = weight.detach()
    made = weight.as_subclass(PackedWeight)
    made.packed = pack(weight, rows_at_once)
    return made


def can_be_packed(weight: Tensor) -> bool:
    """Whether oneDNN multiplies with it: a matrix on the CPU, neither float64 nor a shard of one."""
    if not weight.is_cpu or weight.dim() != 2 or type(weight) not in (Tensor, torch.nn.Parameter):
        return False
    has_matmul = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    is_fast = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return has_matmul and bool(torch._C._get_mkldnn_enabled()) and is_fast
