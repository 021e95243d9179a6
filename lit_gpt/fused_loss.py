"""Cross-entropy of a linear head on a GPU: the work between its three matmuls is one kernel.

The matmuls of the head take 12 ms of a step of GPT-2 124M on an H200 (32,768 tokens; calculated, not measured), and
reading and writing logits takes longer unless it is done once. So the logits of a chunk are replaced in place by
their gradient. Columns that pad the vocabulary are masked, not cut off: autograd would copy every chunk to undo a
slice. The weight is cast to the matmuls' dtype once, and each chunk's matmul adds to its gradient in float32.

`lit_gpt.loss` calls this on CUDA for a network that has a `Network.linear_head`. Everything else it computes itself.
"""

from collections.abc import Callable
from functools import cache
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: A target that is not scored.
IGNORE_INDEX = -100

#: The most logits in memory at a time: 2**28 bfloat16 numbers are 512 MiB. Every chunk reads the weight's gradient and
#: writes it, 309 MB for GPT-2: 32,768 tokens are 8 chunks, whose gradients take 0.6 ms at an H200's bandwidth.
MAX_LOGITS = 2**28
#: Logits at a time if the kernel is not compiled: each of its operations then has a float32 copy of them.
LOGITS_PER_PIECE = 2**25
#: The gradient p - y of a logit is multiplied by this before it is stored in float16, whose smallest number is 6e-8.
#: Products with it are float32, and are divided by it. The largest gradient becomes 4,096.
FLOAT16_FACTOR = 2.0**12


class LinearHead(NamedTuple):
    """How a head turns hidden states into logits, if it is a matmul with the first of its weights and adds the second.

    Args:
        softcap: Logits are bounded to softcap * tanh(logits / softcap); None: they are not.
        compiled: Whether to compile the kernel with torch.compile. If not, its operations run one by one.
    """

    softcap: float | None = None
    compiled: bool = False


class Columns(NamedTuple):
    """What makes log-probabilities (at least float32) of the columns of a head's matmul.

    Args:
        vocab_size: The number of columns that are tokens. The others are padding, with a probability of 0.
        softcap: See `LinearHead`.
        shift: Added to the logits after the softcap, (columns,); None for nothing.
    """

    vocab_size: int
    softcap: float | None = None
    shift: Tensor | None = None


def fused_cross_entropy_sum(
    hidden: Tensor, linear: LinearHead, weights: list[Tensor], targets: Tensor, vocab_size: int, shift: Tensor | None
) -> Tensor:
    """Cross-entropy summed over the scored targets, in nats, differentiable once. See `loss.cross_entropy_sum`.

    Args:
        hidden: Final hidden states, (B, T, C).
        linear: What follows the matmul.
        weights: The head's weight, (P, C) with P >= vocab_size rows, and perhaps its bias, (P,).
        targets: Token ids, (B, T); -100 where nothing is scored. Another id outside of the vocabulary makes the sum and
            its gradient NaN: to refuse it, the CPU would wait for the GPU.
        vocab_size: V, the number of columns that are tokens.
        shift: Added to the logits in float32, (V,); for a sampled softmax.
    """
    columns = Columns(vocab_size, linear.softcap, shift)
    weight, bias = weights[0], weights[1] if len(weights) > 1 else None
    return _CrossEntropy.apply(hidden.flatten(0, 1), weight, bias, targets.flatten(), columns, linear.compiled)


class _CrossEntropy(torch.autograd.Function):
    """The forward pass computes the gradients too, while it has the logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, columns: Columns, compiled: bool
    ) -> Tensor:
        """The sum over hidden states (N, C) and targets (N,)."""
        dtype, factor = matmul_dtype(weight), 1.0
        if dtype == torch.float16:
            factor = FLOAT16_FACTOR
        sums = torch.promote_types(weight.dtype, torch.float32)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=sums)
        bias_grad = None if bias is None else torch.zeros_like(bias, dtype=sums)
        nats = []
        with torch.autocast(hidden.device.type, enabled=False):
            w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
            size = chunk_size(len(hidden), MAX_LOGITS // len(weight))
            chunks = hidden.to(dtype).split(size), targets.split(size), hidden_grad.split(size)
            for states, chunk_targets, states_grad in zip(*chunks, strict=True):
                gradient = F.linear(states, w, b)  # (n, P), still the logits
                nats += _in_pieces(replace_by_gradient, compiled, gradient, chunk_targets, columns, factor)
                _multiply(gradient, w, out=states_grad)
                _add_product(weight_grad, gradient.T, states, 1 / factor)
                if bias_grad is not None:
                    bias_grad.add_(gradient.sum(0, dtype=sums), alpha=1 / factor)
                del gradient  # before the next chunk's logits are there
        if factor != 1:
            hidden_grad /= factor
        # Weights of 16 bits: sums over all targets may be too large for float16, and are rounded once they are scaled.
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = hidden.dtype, weight.dtype, weight.dtype
        return torch.cat(nats).sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """The stored gradients, times that of the sum."""
        if torch.is_grad_enabled():  # create_graph=True: autograd would take the stored gradients for constants
            raise RuntimeError("the chunked loss keeps its gradients as numbers and has no second derivative")
        stored = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:3], strict=True)
        grads = [(grad * scale).to(dtype) if grad is not None and need else None for grad, dtype, need in stored]
        return *grads, None, None, None


def matmul_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of a matmul with ``weight``: that of autocast, or its own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def chunk_size(rows: int, limit: int) -> int:
    """At most ``limit`` rows of a chunk; if possible a divisor of ``rows``, so that the kernel is compiled once."""
    fewest = ceil(rows / max(limit, 1))
    equal = next((chunks for chunks in range(fewest, 2 * fewest) if rows % chunks == 0), None)
    return rows // equal if equal else max(limit, 1)


def _in_pieces(kernel: Callable[..., Any], compiled: bool, logits: Tensor, targets: Tensor, *more: Any) -> list[Any]:
    """Results of a kernel for logits (n, P) and targets (n,): all at once if it is compiled."""
    if compiled:
        return [_compiled(kernel)(logits, targets, *more)]
    size = max(1, LOGITS_PER_PIECE // logits.size(1))
    return [kernel(*piece, *more) for piece in zip(logits.split(size), targets.split(size), strict=True)]


@cache
def _compiled(kernel: Callable[..., Any]) -> Any:
    return torch.compile(kernel, fullgraph=True)


def replace_by_gradient(logits: Tensor, targets: Tensor, columns: Columns, factor: float) -> Tensor:
    """Write the gradient of the cross-entropy, times ``factor``, over the logits of a matmul.

    Args:
        logits: (n, P).
        targets: (n,), -100 where nothing is scored.
        columns: What becomes of the logits in float32.
        factor: See `FLOAT16_FACTOR`.

    Returns:
        The cross-entropy of each target in nats, (n,).
    """
    z, slope = _float_logits(logits, columns)  # (n, P)
    is_target = torch.arange(logits.size(1), device=logits.device) == targets[:, None]  # (n, P)
    largest = z.amax(1, keepdim=True)  # (n, 1)
    exponentials = (z - largest).exp()
    total = exponentials.sum(1, keepdim=True)  # (n, 1)
    scored = targets != IGNORE_INDEX
    total = torch.where(_is_valid(targets, columns)[:, None], total, torch.nan)
    # A sum instead of gather(): it belongs to the same loop over the columns.
    own = torch.where(is_target, z, 0).sum(1)
    nats = torch.where(scored, (total.log() + largest)[:, 0] - own, 0)
    gradient = torch.where(scored[:, None], exponentials / total - is_target.float(), 0)  # p - y
    logits.copy_(gradient * factor if slope is None else gradient * slope * factor)
    return nats


def _is_valid(targets: Tensor, columns: Columns) -> Tensor:
    """Whether each target is a token or not scored."""
    return (targets == IGNORE_INDEX) | ((targets >= 0) & (targets < columns.vocab_size))


def at_least_float32(x: Tensor) -> Tensor:
    """A copy in float32 of a tensor of 16 bits. One in float64 stays as it is."""
    return x if x.dtype == torch.float64 else x.float()


def _float_logits(logits: Tensor, columns: Columns) -> tuple[Tensor, Tensor | None]:
    """Logits of a matmul (n, P) in at least float32, -inf in padding, and the softcap's derivative (None: 1)."""
    z, slope = at_least_float32(logits), None
    if columns.softcap is not None:
        bounded = torch.tanh(z / columns.softcap)
        z, slope = columns.softcap * bounded, 1 - bounded * bounded
    if columns.shift is not None:
        z = z + columns.shift
    if columns.vocab_size < logits.size(1):
        z = torch.where(torch.arange(logits.size(1), device=z.device) < columns.vocab_size, z, -torch.inf)
    return z, slope


def _multiply(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """``out = a @ b``, in the dtype of ``out``."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(a @ b)


def _add_product(total: Tensor, a: Tensor, b: Tensor, share: float) -> None:
    """``total += share * a @ b``, where ``total`` is at least float32."""
    if not a.is_cuda or a.dtype == total.dtype:
        total.addmm_(a.to(total.dtype), b.to(total.dtype), alpha=share)
    elif _can_add_float32(a.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=torch.float32, alpha=share, out=total)
    else:
        total.add_(torch.mm(a, b, out_dtype=torch.float32), alpha=share)


@cache
def _can_add_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a matmul of 16 bits adds to a float32 tensor itself, without a pass over it. In torch 2.9 it does not."""
    # The dtype is written out: that of a new tensor may be bfloat16, as in a step under bf16-true.
    factor, total = (torch.ones(8, 8, device=device, dtype=kind) for kind in (dtype, torch.float32))
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except torch.OutOfMemoryError:
        raise  # says nothing about the matmul
    except RuntimeError:
        return False
    return True


@torch.no_grad()
def fused_score(
    hidden: Tensor, linear: LinearHead, weights: list[Tensor], targets: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats (at least float32) and rank (int64) of every target, both (B, T). See `loss.score`."""
    columns = Columns(vocab_size, linear.softcap)
    dtype, flat, flat_targets = matmul_dtype(weights[0]), hidden.flatten(0, 1), targets.flatten()
    results = []
    with torch.autocast(hidden.device.type, enabled=False):
        cast = [weight.to(dtype) for weight in weights]
        size = chunk_size(len(flat), MAX_LOGITS // len(weights[0]))
        for states, chunk_targets in zip(flat.to(dtype).split(size), flat_targets.split(size), strict=True):
            results += _in_pieces(nats_and_rank, linear.compiled, F.linear(states, *cast), chunk_targets, columns)
    nats, rank = (torch.cat(part).view_as(targets) for part in zip(*results, strict=True))
    return nats, rank


def nats_and_rank(logits: Tensor, targets: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
    """Cross-entropy and rank of targets (n,) from the logits of a matmul (n, P), which are read and not written."""
    z, _ = _float_logits(logits, columns)
    ids, target = torch.arange(logits.size(1), device=logits.device), targets[:, None]
    is_target = ids == target
    # -inf where nothing is scored: then every token comes before the target.
    own = torch.where(is_target, z, 0).sum(1, keepdim=True).where(target >= 0, -torch.inf)  # (n, 1)
    is_ahead = (z > own) | ((z == own) & (ids < target))
    largest = z.amax(1, keepdim=True)  # with its sum of exponentials, one loop: logsumexp() would have two
    total = largest + (z - largest).exp().sum(1, keepdim=True).log()
    nats = torch.where(targets == IGNORE_INDEX, 0, (total - own)[:, 0])
    return torch.where(_is_valid(targets, columns), nats, torch.nan), is_ahead.sum(1)
