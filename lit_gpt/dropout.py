"""Dropout whose coins a CPU draws three times as fast."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout``, with `p` rounded to 2**-16 on a CPU.

    There torch draws one random number after the other, 10 ns for each element; here four elements share the 64 bits of
    one.
    """
    if not x.is_cpu or not training or p == 0 or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * kept.to(x.dtype).mul_(1 / (1 - p))
