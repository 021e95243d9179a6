"""Cross-entropy over the vocabulary without ever holding all logits, and the scores of an evaluation.

At GPT-2's vocabulary the logits of 2,048 tokens take 412 MB in float32, and their gradient as much again. All
functions here run the head over chunks of tokens, so the peak is one chunk. In training the gradient of a chunk is
taken while its logits are at hand (the idea of Liger Kernel's fused linear cross-entropy), so that nothing is
computed twice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Head: TypeAlias = Callable[[Tensor], Tensor]
#: Sums over the scored targets (N,) of their logits (..., N, V): first what is trained, then what is reported with it.
Measure: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
#: The same over a few targets' logits in float32, with the gradient of the first written to the third argument.
Rows: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]

IGNORE_INDEX = -100


class LossInputs(NamedTuple):
    """What a loss is taken over: the arguments of `cross_entropy_sum` and `r_drop_sum` after the hidden states."""

    head: Head
    weights: list[Tensor]
    targets: Tensor
    vocab_size: int
    shift: Tensor | None = None


#: Logits held at once: 2**27 float32 numbers are 512 MiB. A character model never reaches it and runs as one chunk.
#: Each chunk reads the head's weights and adds to their gradient: for 32,768 targets, 50,257 tokens and 768 channels
#: under bf16-mixed the loss moves 128 GB in chunks of 2**25, 90 in these and 77 at once (counted, kernel by kernel).
MAX_LOGITS = 2**27
#: The same on a CPU, where glibc asks the system anew for every tensor of 32 MiB or more: a little less. With 16,000
#: tokens and 256 channels, one thread takes 2.0 s for 4,096 targets instead of 2.9; with 16,384, where 2**23 numbers
#: are 32 MiB exactly, two threads take 0.8 s instead of 1.7.
MAX_LOGITS_CPU = 2**23 - 2**15
#: Logits (of each pass) that are read and written up to ten times over while a CPU's cache holds them: for R-Drop over
#: 261 targets of 16,000 tokens, two threads take 25 ms instead of 49.
LOGITS_IN_CACHE = 2**19


def cross_entropy_sum(
    hidden: Tensor, head: Head, weights: list[Tensor], targets: Tensor, vocab_size: int, shift: Tensor | None = None
) -> Tensor:
    """Cross-entropy summed over the scored targets, in nats, differentiable.

    Args:
        hidden: Final hidden states, (B, T, C).
        head: Maps hidden states (N, C) to logits (N, V).
        weights: The head's parameters that receive gradients.
        targets: Token ids, (B, T); -100 where nothing is scored.
        vocab_size: V, from which the size of a chunk follows.
        shift: To be added to the logits in float32, (V,).
    """
    measure, rows = by_hand(_cross_entropy_rows, shift), chunk_rows(vocab_size, hidden)
    return summed_in_chunks(measure, hidden.flatten(0, 1), head, weights, targets.flatten(), rows)[0]


@torch.no_grad()
def score(hidden: Tensor, head: Head, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Nats (float32) and rank (int64, 0 is the model's first choice) of every target, both shaped like ``targets``
    (B, T).

    Ties go to the lower id, as in ``argmax``, so that a model of equal logits does not score 100 % top-1. Unscored
    places hold 0 nats and rank V.
    """
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    # A quarter of what may be held: for 20,000 tokens on a CPU 1.5 times as fast as all of it.
    rows = chunk_rows(4 * vocab_size, hidden)
    parts = [_nats_and_rank(head(h), t) for h, t in zip(flat.split(rows), wanted.split(rows), strict=True)]
    nats, rank = (torch.cat(part).view_as(targets) for part in zip(*parts, strict=True))
    return nats, rank


def chunk_rows(vocab_size: int, hidden: Tensor) -> int:
    """Tokens whose logits may be held at once on the device of ``hidden``."""
    return max(1, (MAX_LOGITS_CPU if hidden.is_cpu else MAX_LOGITS) // vocab_size)


def as_multiplied(weight: Tensor) -> Tensor:
    """A weight as products under autocast take it, so that they need not turn it anew for every chunk."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def by_hand(rows: Rows, shift: Tensor | None) -> Measure:
    """A measure whose gradient ``rows`` writes, a few targets at a time; ``shift`` (V,) is added to the logits."""
    return lambda logits, targets: cast(tuple[Tensor, ...], _ByHand.apply(logits, targets, shift, rows))


class _ByHand(torch.autograd.Function):
    """A loss over logits (..., N, V) whose gradient is taken while they are at hand, a few targets at a time.

    Over 4,372 tokens, bfloat16, two threads, 1,910 targets take 12 ms where ``cross_entropy`` and its backward take 30.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, shift: Tensor | None, rows: Rows) -> tuple[Tensor, ...]:
        """The sums of ``rows``: the loss, of which the gradient is kept, and what is reported with it."""
        grad = torch.empty_like(logits)
        size = max(1, LOGITS_IN_CACHE // logits.size(-1)) if logits.is_cpu else max(1, len(targets))
        parts = zip(logits.split(size, -2), targets.split(size), grad.split(size, -2), strict=True)
        sums = [rows(z.float() if shift is None else z + shift, t, g) for z, t, g in parts]
        totals = tuple(torch.stack(part).sum() for part in zip(*sums, strict=True))
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(*totals[1:])
        return totals

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """The kept gradient times that of the loss, in place: torch refuses a second pass over it."""
        return ctx.saved_tensors[0].mul_(grad_outputs[0]), None, None, None


def _cross_entropy_rows(logits: Tensor, targets: Tensor, grad: Tensor) -> tuple[Tensor]:
    """Cross-entropy of some targets, summed; its gradient p - y, with p the softmax and y the target, goes into
    ``grad``.
    """
    scored, place = targets != IGNORE_INDEX, targets.clamp(min=0)[:, None]  # (N,), (N, 1)
    logs = logits.log_softmax(-1)
    nats = -(logs.gather(-1, place)[:, 0] * scored).sum()
    probs = logs.exp_()
    probs.scatter_add_(-1, place, torch.full_like(probs[:, :1], -1))
    torch.mul(probs, scored[:, None], out=grad)  # (N, V)
    return (nats,)


def _nats_and_rank(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()  # (N, V)
    nats = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    return nats, torch.where(targets != IGNORE_INDEX, _rank(logits, targets.clamp(min=0)[:, None]), logits.size(1))


def _rank(logits: Tensor, target: Tensor) -> Tensor:
    """How many logits (N, V) are ahead of those of the targets (N, 1), (N,)."""
    own, counted = logits.gather(1, target), torch.empty_like(logits)  # float32 adds up faster than booleans
    above, level = (compare(logits, own, out=counted).sum(1) for compare in (torch.gt, torch.ge))
    if not logits.is_cpu or bool((level > above + 1).any()):  # a GPU would wait for the answer
        ids = torch.arange(logits.size(1), device=logits.device)
        above += ((logits == own) & (ids < target)).float().sum(1)
    return above.long()


def summed_in_chunks(
    measure: Measure, hidden: Tensor, head: Head, weights: list[Tensor], targets: Tensor, rows: int
) -> tuple[Tensor, ...]:
    """`measure` over hidden states (..., N, C) and targets (N,), in chunks of `rows` targets where there are more."""
    if len(targets) <= rows:
        return measure(head(hidden), targets)
    return _Chunked.apply(hidden, targets, head, measure, rows, *weights)


class _Chunked(torch.autograd.Function):
    """Adds up what a `Measure` finds chunk by chunk and keeps the gradients instead of the logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Head, measure: Measure, rows: int, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """The sums of `measure`; the first has a gradient for hidden states (..., N, C) and weights."""
        # In float32 whatever the weights': over 50 chunks bfloat16 would lose four times as much as over one.
        hidden_grad = torch.empty_like(hidden)
        weight_grads = [torch.zeros_like(w, dtype=torch.float32) for w in weights]
        chunks = (hidden.split(rows, -2), targets.split(rows), hidden_grad.split(rows, -2))
        sums = []
        for h, t, slot in zip(*chunks, strict=True):
            with torch.enable_grad():
                chunk = h.detach().requires_grad_()
                trained, *reported = measure(head(chunk), t)
            grad, *grads = torch.autograd.grad(trained, (chunk, *weights))
            slot.copy_(grad)
            for total, one in zip(weight_grads, grads, strict=True):
                total.add_(one)
            sums.append((trained.detach(), *reported))
        ctx.save_for_backward(hidden_grad, *(g.to(w.dtype) for g, w in zip(weight_grads, weights, strict=True)))
        totals = tuple(torch.stack(part).sum() for part in zip(*sums, strict=True))
        ctx.mark_non_differentiable(*totals[1:])
        return totals

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients times that of the first sum."""
        hidden_grad, *weight_grads = ctx.saved_tensors
        scale = grad_outputs[0]
        return hidden_grad * scale.to(hidden_grad.dtype), *[None] * 4, *(g * scale for g in weight_grads)
