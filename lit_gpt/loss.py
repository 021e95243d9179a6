"""Cross-entropy over the vocabulary without ever holding all logits, and the metrics of every token in an evaluation.

At GPT-2's vocabulary the logits of 2,048 tokens take 412 MB in float32, and their gradient as much again. Two loops
keep that small. The outer one runs the head over one chunk of the tokens at a time and keeps the gradients of the
hidden states and of the head's weights instead of the logits (the idea of Liger Kernel's fused linear cross-entropy).
The inner one computes the loss of a chunk, and its gradient by autograd, in pieces that fit the processor's cache.
On a GPU, a linear head and its cross-entropy are computed by `lit_gpt.fused_loss` instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from datamodules.errors import UserError
from lit_gpt.fused_loss import IGNORE_INDEX, LinearHead, at_least_float32, fused_cross_entropy_sum, fused_score
from lit_gpt.packed_weight import PackedWeight, SoftcappedHead, matmul_dtype, packed_for

#: With two names of the fused loss.
__all__ = [
    "IGNORE_INDEX",
    "Head",
    "Loss",
    "LossInputs",
    "at_least_float32",
    "cross_entropy_sum",
    "score",
    "sum_in_chunks",
]

#: Maps hidden states (..., N, C) and the LM head's weights to logits (..., N, V), as `Network.head` does.
Head: TypeAlias = Callable[[Tensor, list[Tensor]], Tensor]
#: Maps logits (..., n, V) in float32 and targets (n,) to sums over these targets. The first sum is the training loss
#: and must be differentiable. The others are metrics. R-Drop has two passes: its logits are (2, n, V).
Loss: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, ...]]

#: The most logits in memory at a time: 2**27 float32 numbers are 512 MiB. A character model stays below it and runs as
#: one chunk. Larger chunks move less memory, because each chunk reads the head's weights and adds to their gradient.
#: For 32,768 targets, a vocabulary of 50,257 and 768 channels under bf16-mixed, the loss moves 128 GB in chunks of
#: 2**25 logits, 90 GB in chunks of 2**27, and 77 GB as one chunk (counted kernel by kernel).
MAX_LOGITS = 2**27
#: The same on a CPU: 128 MiB of float32. For GPT-2's vocabulary and 768 channels, 1,024 targets take one thread 2.99 s
#: in chunks of 2**23, 2.70 s in chunks of 2**25, 2.60 s as one. With 16,000 tokens and 256 channels all take as long.
MAX_LOGITS_CPU = 2**25
#: Logits of a piece on a GPU. Log-softmax and its gradient hold four float32 copies of a piece: 512 MiB, where those of
#: an undivided chunk would be 2 GiB.
LOGITS_PER_PIECE = 2**25
#: The same on a CPU: 2**19 float32 numbers are 2 MiB and stay in the processor's cache, though a loss reads and writes
#: them up to ten times. R-Drop over 261 targets and a vocabulary of 16,000 takes 25 ms on two threads instead of 49.
LOGITS_IN_CACHE = 2**19


class LossInputs(NamedTuple):
    """The arguments of a loss that follow the hidden states. `cross_entropy_sum` describes each."""

    head: Head
    weights: list[Tensor]
    targets: Tensor
    vocab_size: int
    shift: Tensor | None = None
    linear: LinearHead | None = None


def cross_entropy_sum(
    hidden: Tensor,
    head: Head,
    weights: list[Tensor],
    targets: Tensor,
    vocab_size: int,
    shift: Tensor | None = None,
    linear: LinearHead | None = None,
) -> Tensor:
    """Cross-entropy summed over the scored targets, in nats, differentiable once.

    Args:
        hidden: Final hidden states, (B, T, C).
        head: Maps hidden states (N, C) and `weights` to logits (N, V).
        weights: All parameters that `head` uses. Each receives its gradient here; another one would receive none.
        targets: Token ids, (B, T); -100 where nothing is scored.
        vocab_size: V, the number of logits of a token. It decides how many tokens are a chunk.
        shift: Added to the logits in float32, (V,). In a sampled softmax: the log of how many tokens each stands for.
        linear: The network's `Network.linear_head`: what ``head`` does, if it is linear. None: `head` may be anything.
    """
    if linear is not None and hidden.is_cuda:
        return fused_cross_entropy_sum(hidden, linear, weights, targets, vocab_size, shift)
    return sum_in_chunks(_cross_entropy, hidden, LossInputs(head, weights, targets, vocab_size, shift))[0]


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
    return (F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum"),)


def sum_in_chunks(loss: Loss, hidden: Tensor, inputs: LossInputs) -> tuple[Tensor, ...]:
    """Sums of any loss over all targets (B, T) of ``inputs``. The first sum is differentiable, once.

    Args:
        loss: Computes the sums of a few targets. It is called once for every piece.
        hidden: Hidden states, (B, T, C), or (P, B, T, C) of P passes over the same targets (R-Drop has two).
        inputs: See `cross_entropy_sum`.

    Raises:
        UserError: The head uses a parameter that is not among the weights.
    """
    head, weights, targets, vocab_size, shift, _ = inputs
    hidden = hidden.flatten(-3, -2)  # (..., N, C)
    passes = hidden.shape[:-2].numel()
    tokens = _tokens_per_chunk(hidden, passes * vocab_size)
    trained = [weight for weight in weights if weight.requires_grad]
    return _SumInChunks.apply(hidden, targets.flatten(), lambda h: head(h, weights), loss, shift, tokens, *trained)


class _SumInChunks(torch.autograd.Function):
    """Runs head and loss over chunks of the tokens.

    The forward pass computes the gradients too, while it has the logits, so that no chunk is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: Callable[[Tensor], Tensor],
        loss: Loss,
        shift: Tensor | None,
        tokens: int,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """Sums of `loss` over hidden states (..., N, C) and targets (N,), `tokens` of them at a time."""
        hidden_grad = torch.empty_like(hidden)
        weight_grads: list[Tensor] = []
        sums: list[tuple[Tensor, ...]] = []
        chunks = (hidden.split(tokens, -2), targets.split(tokens), hidden_grad.split(tokens, -2))
        for states, chunk_targets, states_grad in zip(*chunks, strict=True):
            with torch.enable_grad():
                h = states.detach().requires_grad_()  # (..., n, C)
                logits = head(h)  # (..., n, V)
            _refuse_other_parameters(logits, (h, *weights))
            chunk_sums, logits_grad = _in_pieces(loss, logits.detach(), chunk_targets, shift)
            grad, *grads = torch.autograd.grad(logits, (h, *weights), logits_grad)
            states_grad.copy_(grad)
            sums += chunk_sums
            del logits, logits_grad, grad, h  # before memory is allocated for the next chunk's
            # The sum over chunks is in float32 also for weights of 16 bits. In bfloat16 the rounding error of 50 chunks
            # would be four times that of one.
            if weight_grads:
                torch._foreach_add_(weight_grads, grads)
            else:
                weight_grads = [at_least_float32(g) for g in grads]
            del grads
        # Sums over all targets may be too large for float16. They are rounded once they are scaled.
        ctx.save_for_backward(hidden_grad, *weight_grads)
        ctx.dtypes = [tensor.dtype for tensor in (hidden, *weights)]
        totals = tuple(torch.stack(terms).sum() for terms in zip(*sums, strict=True))
        ctx.mark_non_differentiable(*totals[1:])
        return totals

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The stored gradients, times the gradient of the first sum."""
        if torch.is_grad_enabled():  # create_graph=True: autograd would take the stored gradients for constants
            raise RuntimeError("the chunked loss keeps its gradients as numbers and has no second derivative")
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        hidden_grad, *weight_grads = ((grad * scale).to(dtype) for grad, dtype in grads)
        return hidden_grad, *[None] * 5, *weight_grads  # None for targets, head, loss, shift and tokens


def _in_pieces(
    loss: Loss, logits: Tensor, targets: Tensor, shift: Tensor | None
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """The sums of `loss` for each piece of a chunk's logits (..., n, V), and the gradient of the first sum with respect
    to these logits, (..., n, V).
    """
    sums, gradient = [], torch.empty_like(logits)
    size = max(1, (LOGITS_IN_CACHE if logits.is_cpu else LOGITS_PER_PIECE) // logits.size(-1))
    pieces = (logits.split(size, -2), targets.split(size), gradient.split(size, -2))
    for piece, piece_targets, piece_grad in zip(*pieces, strict=True):
        with torch.enable_grad():
            z = piece.detach().requires_grad_()
            # shift is float32, so the sum is float32 as well.
            piece_sums = loss(at_least_float32(z) if shift is None else z + shift, piece_targets)
        piece_grad.copy_(torch.autograd.grad(piece_sums[0], z)[0])
        sums.append(tuple(term.detach() for term in piece_sums))
    return sums, gradient


def _refuse_other_parameters(logits: Tensor, listed: tuple[Tensor, ...]) -> None:
    """Refuse logits that depend on a parameter that is not `listed`. It would silently not be trained."""
    for parameter in _other_parameters(logits.grad_fn, {get_gradient_edge(tensor).node for tensor in listed}):
        raise UserError(
            f"head() uses a parameter of shape {tuple(parameter.shape)} that head_weights() leaves out, so it would "
            "not be trained: return it there, or set its requires_grad to False."
        )


def _other_parameters(node: Node | None, listed: set[Node]) -> list[Tensor]:
    """Parameters that the autograd graph behind `node` reaches by a path without a `listed` node."""
    if node is None or node in listed:
        return []
    if hasattr(node, "variable"):  # a leaf: here torch adds to the gradient of a parameter
        return [node.variable]
    return [other for following, _ in node.next_functions for other in _other_parameters(following, listed)]


def _tokens_per_chunk(hidden: Tensor, logits_per_token: int) -> int:
    """How many tokens may have their logits in memory at a time, on the device of ``hidden``."""
    return max(1, (MAX_LOGITS_CPU if hidden.is_cpu else MAX_LOGITS) // logits_per_token)


@torch.no_grad()
def score(
    hidden: Tensor,
    head: Head,
    weights: list[Tensor],
    targets: Tensor,
    vocab_size: int,
    linear: LinearHead | None = None,
    probabilities: Head | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats (at least float32) and rank (int64) of every target, both (B, T) like ``targets``.

    The rank is the number of tokens that the model finds likelier: 0 is its first choice. Of equal logits the lower id
    comes first, as in ``argmax``, so that a model of equal logits does not score 100 % top-1. A target of -100 has 0
    nats and rank V. Arguments are those of `cross_entropy_sum`, and:

    Args:
        probabilities: The network's `Network.probability_head`, used in place of ``head``.
    """
    if linear is not None and hidden.is_cuda:
        return fused_score(hidden, linear, weights, targets, vocab_size)
    flat, flat_targets = hidden.flatten(0, 1), targets.flatten()  # (N, C), (N,)
    scored = places_to_score(flat_targets != IGNORE_INDEX)
    if scored is not None:
        flat, flat_targets = flat[scored], flat_targets[scored]
    # A part of the training loss's limit, on a CPU an eighth. With a vocabulary of 20,000 one thread then takes 6.7 ns
    # a logit; with a quarter of the limit 7.5, with a 32nd 7.3. With a vocabulary of 50,304: 11.0, 11.2 and 13.1.
    size = _tokens_per_chunk(flat, (8 if flat.is_cpu else 4) * vocab_size)
    cast = packed_for(len(flat_targets), [w.to(matmul_dtype(w)) for w in weights], size)
    nats_of = _nats_of_logits if probabilities is None else _nats_of_probabilities
    chunk_head: Head = probabilities or head
    if linear is not None and linear.softcap is not None and isinstance(cast[0], PackedWeight):
        chunk_head = SoftcappedHead(linear.softcap, vocab_size)
    chunks = zip(flat.split(size), flat_targets.split(size), strict=True)
    parts = [_nats_and_rank(chunk_head(h, cast), t, nats_of) for h, t in chunks]
    nats, rank = (torch.cat(part) for part in zip(*parts, strict=True))
    nats, rank = put_back(nats, rank, scored, targets.numel(), vocab_size)
    return nats.view_as(targets), rank.view_as(targets)


def places_to_score(is_scored: Tensor) -> Tensor | None:
    """The indices (n,) of the places of ``is_scored`` (N,) that are true. None: all places have to be computed.

    That is so where all or none are scored, and on a GPU, where the CPU would have to wait for their number.
    """
    if not is_scored.is_cpu:
        return None
    places = is_scored.nonzero()[:, 0]
    return places if 0 < len(places) < len(is_scored) else None


def put_back(nats: Tensor, rank: Tensor, places: Tensor | None, n: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Scores of the ``places`` alone, from `places_to_score`, as those of all ``n``: elsewhere 0 nats and rank V."""
    if places is None:
        return nats, rank
    all_nats = nats.new_zeros(n, *nats.shape[1:]).index_copy(0, places, nats)
    return all_nats, rank.new_full((n, *rank.shape[1:]), vocab_size).index_copy(0, places, rank)


#: Scores (N, V) and target ids (N, 1) to nats (N,) and memory that is free to use, (N, V).
NatsOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _nats_and_rank(scores: Tensor, targets: Tensor, nats_of: NatsOf) -> tuple[Tensor, Tensor]:
    """What `score` returns, of one chunk: logits or probabilities (N, V) and targets (N,) to nats (N,), rank (N,)."""
    scores = at_least_float32(scores)
    scored, target = targets != IGNORE_INDEX, targets.clamp(min=0)[:, None]  # (N,), (N, 1)
    # One buffer for all passes: to get 8 MB from the system takes longer than to compare as many logits.
    nats, buffer = nats_of(scores, target)
    return torch.where(scored, nats, 0), torch.where(scored, _rank(scores, target, buffer), scores.size(1))


def _nats_of_logits(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logs = torch.empty_like(logits)
    torch.log_softmax(logits, 1, out=logs)
    return logs.gather(1, target)[:, 0].neg_(), logs


def _nats_of_probabilities(p: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Divided by their sum, which rounding may have moved away from 1."""
    return p.sum(1).log_().sub_(p.gather(1, target)[:, 0].log_()), torch.empty_like(p)


def _rank(logits: Tensor, target: Tensor, buffer: Tensor) -> Tensor:
    """The number of ``logits`` (N, V) in each row that come before the logit of its target, (N,).

    Args:
        logits: All logits of each token, or their probabilities.
        target: The target's id, (N, 1).
        buffer: Memory for comparisons, (N, V).
    """
    own = logits.gather(1, target)  # (N, 1)
    # As floats: their sum is faster than that of booleans.
    greater, at_least = (compare(logits, own, out=buffer).sum(1) for compare in (torch.gt, torch.ge))  # (N,)
    # If another logit equals the target's, the id breaks the tie. A CPU does that for these rows alone: one in 500
    # in float32, nearly all in bfloat16. A GPU does it for all rows, because the CPU would wait for their number.
    tied = (at_least > greater + 1).nonzero()[:, 0] if logits.is_cpu else slice(None)
    ids = torch.arange(logits.size(1), device=logits.device)
    greater[tied] += ((logits[tied] == own[tied]) & (ids < target[tied])).sum(1)
    return greater.long()
