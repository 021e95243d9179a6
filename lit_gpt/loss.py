"""Cross-entropy over the vocabulary without ever holding all logits, and the scores of an evaluation.

At GPT-2's vocabulary the logits of 2,048 tokens take 412 MB in float32, and their gradient as much again. Two loops
keep that small. The outer one runs the head over one chunk of the tokens at a time and keeps the gradients of the
hidden states and of the head's weights instead of the logits (the idea of Liger Kernel's fused linear cross-entropy).
The inner one takes the loss of a chunk, and its gradient by autograd, in pieces that the processor's cache holds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from datamodules.errors import UserError

#: Hidden states (..., N, C) and the head's weights to logits (..., N, V): `Network.head`.
Head: TypeAlias = Callable[[Tensor, list[Tensor]], Tensor]
#: Logits (..., n, V) in float32 and n targets to sums over these targets. The first sum is what is trained, and it is
#: differentiable; others are only reported.
Loss: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, ...]]

IGNORE_INDEX = -100

#: Logits held at once: 2**27 float32 numbers are 512 MiB. A character model never reaches it and runs as one chunk.
#: Each chunk reads the head's weights and adds to their gradient: for 32,768 targets, 50,257 tokens and 768 channels
#: under bf16-mixed the loss moves 128 GB in chunks of 2**25, 90 in these and 77 at once (counted, kernel by kernel).
MAX_LOGITS = 2**27
#: The same on a CPU, where glibc asks the system anew for every tensor of 32 MiB or more: a little less. With 16,000
#: tokens and 256 channels, one thread takes 2.0 s for 4,096 targets instead of 2.9; with 16,384, where 2**23 numbers
#: are 32 MiB exactly, two threads take 0.8 s instead of 1.7.
MAX_LOGITS_CPU = 2**23 - 2**15
#: Logits of a piece, on a GPU: log-softmax and its gradient hold four float32 copies of them, 512 MiB instead of 2 GiB
#: for a whole chunk.
LOGITS_PER_PIECE = 2**25
#: The same on a CPU, where 2**19 float32 numbers are 2 MiB and stay in the cache while they are read and written up to
#: ten times over: R-Drop over 261 targets of 16,000 tokens takes 25 ms on two threads instead of 49.
LOGITS_IN_CACHE = 2**19


class LossInputs(NamedTuple):
    """What a loss is taken over, besides the hidden states: `cross_entropy_sum` describes each."""

    head: Head
    weights: list[Tensor]
    targets: Tensor
    vocab_size: int
    shift: Tensor | None = None


def cross_entropy_sum(
    hidden: Tensor, head: Head, weights: list[Tensor], targets: Tensor, vocab_size: int, shift: Tensor | None = None
) -> Tensor:
    """Cross-entropy summed over the scored targets, in nats, differentiable once.

    Args:
        hidden: Final hidden states, (B, T, C).
        head: Maps hidden states (N, C) and `weights` to logits (N, V).
        weights: The tensors that the head multiplies with: all that receive a gradient through it.
        targets: Token ids, (B, T); -100 where nothing is scored.
        vocab_size: V, from which the size of a chunk follows.
        shift: To be added to the logits in float32, (V,).
    """
    return sum_in_chunks(_cross_entropy, hidden, LossInputs(head, weights, targets, vocab_size, shift))[0]


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
    return (F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum"),)


def sum_in_chunks(loss: Loss, hidden: Tensor, inputs: LossInputs) -> tuple[Tensor, ...]:
    """Sums of any loss over all targets (B, T) of ``inputs``; the first sum is differentiable, once.

    Args:
        loss: What is summed. It sees a few targets at a time.
        hidden: Hidden states, (B, T, C), or (P, B, T, C) of P passes over the same targets.
        inputs: See `cross_entropy_sum`.

    Raises:
        UserError: The head has a parameter that is not among the weights.
    """
    head, weights, targets, vocab_size, shift = inputs
    hidden = hidden.flatten(-3, -2)  # (..., N, C)
    passes = hidden.shape[:-2].numel()
    tokens = _tokens_per_chunk(hidden, passes * vocab_size)
    trained = [weight for weight in weights if weight.requires_grad]
    return _SumInChunks.apply(hidden, targets.flatten(), lambda h: head(h, weights), loss, shift, tokens, *trained)


class _SumInChunks(torch.autograd.Function):
    """Runs head and loss over chunks of the tokens. Gradients are taken at once, so that no chunk is computed twice."""

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
        for states, wanted, states_grad in zip(*chunks, strict=True):
            with torch.enable_grad():
                h = states.detach().requires_grad_()  # (..., n, C)
                logits = head(h)  # (..., n, V)
            _check_listed(logits, (h, *weights))
            chunk_sums, logits_grad = _in_pieces(loss, logits.detach(), wanted, shift)
            grad, *grads = torch.autograd.grad(logits, (h, *weights), logits_grad)
            states_grad.copy_(grad)
            sums += chunk_sums
            # In float32 whatever the weights': over 50 chunks bfloat16 would lose four times as much as over one.
            if weight_grads:
                torch._foreach_add_(weight_grads, grads)
            else:
                weight_grads = [g.float() for g in grads]
        ctx.save_for_backward(hidden_grad, *(g.to(w.dtype) for g, w in zip(weight_grads, weights, strict=True)))
        totals = tuple(torch.stack(one).sum() for one in zip(*sums, strict=True))
        ctx.mark_non_differentiable(*totals[1:])
        return totals

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients times that of the first sum."""
        if torch.is_grad_enabled():  # create_graph=True: the kept gradients would pass as constants
            raise RuntimeError("the chunked loss keeps its gradients as numbers and has no second derivative")
        hidden_grad, *weight_grads = (grad * scale.to(grad.dtype) for grad in ctx.saved_tensors)
        return hidden_grad, *[None] * 5, *weight_grads


def _in_pieces(
    loss: Loss, logits: Tensor, targets: Tensor, shift: Tensor | None
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """The sums of `loss` for each piece of a chunk's logits (..., n, V), and the gradient of the first, (..., n, V)."""
    sums, gradient = [], torch.empty_like(logits)
    size = max(1, (LOGITS_IN_CACHE if logits.is_cpu else LOGITS_PER_PIECE) // logits.size(-1))
    pieces = (logits.split(size, -2), targets.split(size), gradient.split(size, -2))
    for piece, wanted, piece_grad in zip(*pieces, strict=True):
        with torch.enable_grad():
            z = piece.detach().requires_grad_()
            found = loss(z.float() if shift is None else z + shift, wanted)
        piece_grad.copy_(torch.autograd.grad(found[0], z)[0])
        sums.append(tuple(one.detach() for one in found))
    return sums, gradient


def _check_listed(logits: Tensor, listed: tuple[Tensor, ...]) -> None:
    """Refuse logits that depend on another parameter than those `listed`: it would not be trained, without a word."""
    for parameter in _other_parameters(logits.grad_fn, {get_gradient_edge(tensor).node for tensor in listed}):
        raise UserError(
            f"head() uses a parameter of shape {tuple(parameter.shape)} that head_weights() leaves out, so it would "
            "not be trained: return it there, or set its requires_grad to False."
        )


def _other_parameters(node: Node | None, listed: set[Node]) -> list[Tensor]:
    """Parameters that the autograd graph behind `node` reaches on a way that meets no `listed` node."""
    if node is None or node in listed:
        return []
    if hasattr(node, "variable"):  # the end of a way: where torch adds to the gradient of a parameter
        return [node.variable]
    return [found for following, _ in node.next_functions for found in _other_parameters(following, listed)]


def _tokens_per_chunk(hidden: Tensor, logits_per_token: int) -> int:
    """Tokens whose logits may be held at once on the device of ``hidden``."""
    return max(1, (MAX_LOGITS_CPU if hidden.is_cpu else MAX_LOGITS) // logits_per_token)


@torch.no_grad()
def score(hidden: Tensor, head: Head, weights: list[Tensor], targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Nats (float32) and rank (int64, 0 is the model's first choice) of every target, both shaped like ``targets``
    (B, T).

    Ties go to the lower id, as in ``argmax``, so that a model of equal logits does not score 100 % top-1. Unscored
    places hold 0 nats and rank V. Arguments are those of `cross_entropy_sum`.
    """
    flat, wanted = hidden.flatten(0, 1), targets.flatten()  # (N, C), (N,)
    cast = [_as_multiplied(weight) for weight in weights]
    # A quarter of what may be held: for 20,000 tokens on a CPU 1.5 times as fast as all of it.
    size = _tokens_per_chunk(flat, 4 * vocab_size)
    parts = [_nats_and_rank(head(h, cast), t) for h, t in zip(flat.split(size), wanted.split(size), strict=True)]
    nats, rank = (torch.cat(part).view_as(targets) for part in zip(*parts, strict=True))
    return nats, rank


def _as_multiplied(weight: Tensor) -> Tensor:
    """A weight in the dtype that autocast multiplies in, so that it is cast once and not for every chunk."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


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
