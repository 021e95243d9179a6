"""Cross-entropy over the vocabulary without ever holding all logits.

At GPT-2's vocabulary the logits of 2,048 tokens take 412 MB in float32, and their gradient as much again. Both
functions here run the head over chunks of tokens, so the peak is one chunk. In training the gradient of a chunk is
taken while its logits are at hand (the idea of Liger Kernel's fused linear cross-entropy), so that nothing is
computed twice.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Head = Callable[[Tensor], Tensor]

IGNORE = -100

#: Logits held at once: 2**25 float32 numbers are 128 MiB. A character model never reaches it and runs as one chunk.
MAX_LOGITS = 2**25


def summed_nats(hidden: Tensor, head: Head, weights: list[Tensor], targets: Tensor, vocab_size: int) -> Tensor:
    """Cross-entropy summed over the scored targets, in nats, differentiable.

    Args:
        hidden: Final hidden states, (B, T, C).
        head: Maps hidden states (N, C) to logits (N, V).
        weights: The head's parameters that receive gradients.
        targets: Token ids, (B, T); -100 where nothing is scored.
        vocab_size: V, from which the size of a chunk follows.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()  # (B*T, C), (B*T,)
    rows = chunk_rows(vocab_size)
    if len(targets) <= rows:
        return _nats(head(hidden), targets)
    return _ChunkedNats.apply(hidden, targets, head, rows, *weights)


@torch.no_grad()
def score(hidden: Tensor, head: Head, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Nats (float32) and rank (int64, 0 is the model's first choice) of every target, both shaped like ``targets``
    (B, T).

    Ties go to the lower id, as in ``argmax``, so that a model of equal logits does not score 100 % top-1. Unscored
    places hold 0 nats and rank V.
    """
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = chunk_rows(vocab_size)
    parts = [_nats_and_rank(head(h), t) for h, t in zip(flat.split(rows), wanted.split(rows), strict=True)]
    nats, rank = (torch.cat(part).view_as(targets) for part in zip(*parts, strict=True))
    return nats, rank


def chunk_rows(vocab_size: int) -> int:
    """Tokens whose logits fit into ``MAX_LOGITS``."""
    return max(1, MAX_LOGITS // vocab_size)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")


def _nats_and_rank(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()  # (N, V)
    nats = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    scored = targets != IGNORE
    target = targets.clamp(min=0)[:, None]
    own = logits.gather(1, target)  # (N, 1)
    ids = torch.arange(logits.size(1), device=logits.device)
    ahead = (logits > own) | ((logits == own) & (ids < target))
    return nats, torch.where(scored, ahead.sum(1), logits.size(1))


class _ChunkedNats(torch.autograd.Function):
    """Sums the nats chunk by chunk and keeps the gradients instead of the logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, rows: int, *weights: Tensor) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grads = [torch.zeros_like(w) for w in weights]
        for h, t, slot in zip(hidden.split(rows), targets.split(rows), hidden_grad.split(rows), strict=True):
            with torch.enable_grad():
                chunk = h.detach().requires_grad_()
                nats = _nats(head(chunk), t)
            grad, *grads = torch.autograd.grad(nats, (chunk, *weights))
            slot.copy_(grad)
            torch._foreach_add_(weight_grads, grads)
            total += nats.detach()
        ctx.save_for_backward(hidden_grad, *weight_grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, *weight_grads = ctx.saved_tensors
        scale = grad_outputs[0]
        return hidden_grad * scale.to(hidden_grad.dtype), None, None, None, *(g * scale for g in weight_grads)
