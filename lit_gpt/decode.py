"""Token ids from a trained network: how the next one is drawn, and the loop that draws one after another.

Randomness comes from a generator that the caller brings, so sampling during training does not change the training.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.errors import UserError
from lit_gpt.protocols import Network


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Raises UserError for a number that makes no sense."""

    temperature: float = 0.8
    """Divides the logits: below 1 is safer, above 1 wilder; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only, exactly k where several are equally likely."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have at least this probability (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Draw from tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:  # False for NaN, as are the comparisons below
            raise UserError(f"temperature is {self.temperature}: give 0 (always the likeliest token) or more.")
        if self.top_k is not None and not self.top_k >= 1:
            raise UserError(f"top_k is {self.top_k}: give at least 1, or leave it out.")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{name} is {value}: give a probability above 0 and at most 1, or leave it out.")

    def pick(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One token for each row of logits, (B, V) to (B,)."""
        if self.temperature < 1e-6:  # float32 cannot divide by much less
            return logits.argmax(-1)
        probabilities = self._limit(logits.float() / self.temperature).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    def _limit(self, logits: Tensor) -> Tensor:
        """Logits with -inf for the tokens that top_k, min_p and top_p exclude, in this order."""
        if self.top_k is not None and self.top_k < logits.size(-1):
            best = logits.topk(self.top_k)  # by place, not by value: a comparison would keep all that equal the last
            logits = torch.full_like(logits, -torch.inf).scatter(1, best.indices, best.values)
        if self.min_p is not None:
            probabilities = logits.softmax(-1)
            least = self.min_p * probabilities.amax(-1, keepdim=True)
            logits = logits.masked_fill(probabilities < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            probabilities, order = logits.softmax(-1).sort(descending=True)
            before = probabilities.cumsum(-1) - probabilities
            excluded = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= self.top_p)
            logits = logits.masked_fill(excluded, -torch.inf)
        return logits


@torch.inference_mode()
def decode(
    net: Network,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
    vocab_size: int | None = None,
    cache: bool = True,
) -> Iterator[list[int]]:
    """Continue prompts side by side; yield the new token of every row, `max_new_tokens` times.

    Every row is what its prompt gives alone, whatever stands beside it. Of a prompt longer than the block the network
    sees the last block_size tokens. When a row outgrows the block, the last half of the block is kept and read again
    from its first position, with or without a cache. (Dropping one token at a time would make every cached key wrong:
    keys of deeper layers have seen the dropped token.) All rows are read again when one is, so beyond the block 16 rows
    of 16 lengths take 4 times as long as 16 of one length, which is still less than one row after another.

    The network is in eval mode until the iterator ends or is closed, and then every part of it is as it was.

    Args:
        net: A `GPT` or another `Network`; without a cache of its own it reads the whole context for every token.
        prompts: Ids of each row, at least one; shorter rows are padded on the left.
        max_new_tokens: How many tokens to add to each row.
        sampling: How to draw them.
        generator: Source of randomness, on the network's device.
        vocab_size: Draw ids below this only; default all of the network's.
        cache: Keep keys and values. Off, every step reads the whole context again.

    Raises:
        UserError: When so many rows need more memory than there is.
    """
    block_size = int(net.config.block_size)
    prompts = [prompt[-block_size:] for prompt in prompts]
    device = generator.device
    text = deque(_pad_left(prompts, device).unbind(1), maxlen=block_size)  # one (B,) for each place
    uncompiled = _uncompiled(net)
    with _memory_for(len(prompts), device), _ready(net, len(prompts), device):
        memory = net.new_cache(len(prompts)) if cache else None
        for sizes, is_new in islice(_windows([len(p) for p in prompts], block_size), max_new_tokens):
            if memory is not None and is_new:
                memory.reset()
            with uncompiled():
                logits = _last_logits(net, text, sizes, memory)
            text.append(sampling.pick(logits[:, :vocab_size], generator))
            yield text[-1].tolist()


def _windows(sizes: list[int], block_size: int) -> Iterator[tuple[list[int], bool]]:
    """How many of its last tokens each row reads for each new one, and whether a row begins at another token than
    before: at the first step, and where it has outgrown the block.
    """
    is_new, half = True, max(1, block_size // 2)
    while True:
        yield sizes, is_new
        is_new = block_size in sizes
        sizes = [half if size == block_size else size + 1 for size in sizes]


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Prompts flush right, (B, T)."""
    longest = max(map(len, prompts))
    return torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)


@contextmanager
def _memory_for(rows: int, device: torch.device) -> Iterator[None]:
    """Say in a sentence that `rows` texts side by side are too many for the memory of `device`."""
    try:
        yield
    except RuntimeError as error:
        if "tried to allocate" not in str(error).lower():  # a CPU's allocator has no class of errors of its own
            raise
        message = f"{rows} texts at once need more memory than the {device.type} has: lower num_samples."
        raise UserError(message) from error


@contextmanager
def _ready(net: nn.Module, rows: int, device: torch.device) -> Iterator[None]:
    """Eval mode and, in float32 on a CPU, linear layers made for few rows; everything as it was afterwards."""
    modes = [(m, m.training) for m in net.modules()]  # a part that is frozen in eval mode stays so
    swaps = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    layers = [m for m in net.modules() if swaps and type(m) is nn.Linear and _is_swappable(m)]
    net.eval()
    try:
        for layer in layers:
            layer.forward = _for_few_rows(layer, rows)  # type: ignore[assignment,method-assign]
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
        net.train(modes[0][1])  # for what a network does in a `train` of its own
        for module, training in modes:
            module.training = training


def _is_swappable(layer: nn.Linear) -> bool:
    """Whether it is in float32 and no other text that is being written, nor a user, has given it a forward."""
    return layer.weight.dtype == torch.float32 and "forward" not in vars(layer)


def _for_few_rows(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    """A forward for `layer` that is fast where BLAS is slow: on the few rows of each step of decoding.

    1 or 2 rows multiply a batch of 4 slices of the weight, 2 to 4 times as fast. More rows multiply a copy of it in
    oneDNN's own layout, 1.7 to 2.3 times as fast at 16 (24 layers of 384 channels on 1 and 2 threads; the copies of
    10 million weights take 24 ms).
    """
    weight, bias = layer.weight.detach(), layer.bias
    if rows > 2 and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    if rows > 2 or layer.out_features % 4:
        return layer.forward
    slices = weight.view(4, -1, layer.in_features)

    def forward(x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        n = x.numel() // layer.in_features
        if n > 2:  # the prompt
            return F.linear(x, weight, bias)
        y = torch.bmm(slices, x.reshape(1, n, -1).mT.expand(4, -1, -1)).view(-1, n).t()
        return (y if bias is None else y + bias).reshape(*x.shape[:-1], -1)

    return forward


def _last_logits(net: Any, text: Iterable[Tensor], sizes: list[int], memory: Any) -> Tensor:
    """Logits (B, V) after the last sizes[b] tokens of each row b, of which only what the cache lacks is read."""
    longest, seen = max(sizes), 0 if memory is None else memory.length
    ids = torch.stack(list(text)[seen - longest :], dim=1)  # (B, T)
    mask = None
    if not seen and min(sizes) < longest:  # later the cache remembers it
        place = torch.arange(longest, 0, -1, device=ids.device)  # 1 is the last token
        mask = place <= torch.tensor(sizes, device=ids.device)[:, None]  # (B, T)
    return net.head(net.hidden(ids, attention_mask=mask, cache=memory)[:, -1])


def _uncompiled(net: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """The context of a step: a compiled block would compile again for each new length of the text."""
    compiled = any(m._compiled_call_impl is not None for m in net.modules())
    return partial(torch.compiler.set_stance, "force_eager") if compiled else nullcontext
