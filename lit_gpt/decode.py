"""Token ids from a trained network: how the next one is drawn, and the loop that draws one after another.

Randomness comes from a generator that the caller brings, so sampling during training does not change the training.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Raises UserError for a number that makes no sense."""

    temperature: float = 0.8
    """Divides the logits: below 1 is safer, above 1 wilder; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have at least this probability (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Draw from tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024)."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}: give 0 (always the likeliest token) or more.")
        if self.top_k is not None and self.top_k < 1:
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
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], -torch.inf)
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
    net: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
    vocab_size: int | None = None,
    cache: bool = True,
) -> Iterator[list[int]]:
    """Continue prompts side by side; yield the new token of every row, `max_new_tokens` times.

    When the text outgrows the block, the last half of the block is kept and read again from its first position, with
    or without a cache. (Dropping one token at a time would make every cached key wrong: keys of deeper layers have seen
    the dropped token.) The network is in eval mode until the iterator ends or is closed, and then as it was.

    Args:
        net: A `GPT`, or a network with its `hidden`, `head` and `config`; with its `new_cache` it need not read the
            whole context at each token.
        prompts: Ids of each row, at least one; shorter rows are padded on the left.
        max_new_tokens: How many tokens to add to each row.
        sampling: How to draw them.
        generator: Source of randomness, on the network's device.
        vocab_size: Draw ids below this only; default all of the network's.
        cache: Keep keys and values. Off, every step reads the whole context again.
    """
    ids, real = _pad_left(prompts, max_new_tokens, generator.device)
    new_cache: Any = getattr(net, "new_cache", None)
    memory = new_cache(len(prompts)) if cache and new_cache else None
    block_size = int(net.config.block_size)  # type: ignore[union-attr, arg-type]
    uncompiled = _uncompiled(net)
    with _ready(net, len(prompts), generator.device):
        for start, end in _windows(ids.size(1) - max_new_tokens, ids.size(1), block_size):
            with uncompiled():
                logits = _last_logits(net, ids[:, start:end], real[:, start:end], memory)
            ids[:, end] = sampling.pick(logits[:, :vocab_size], generator)
            yield ids[:, end].tolist()


def _windows(first: int, last: int, block_size: int) -> Iterator[tuple[int, int]]:
    """From which column the network sees the text, and up to which, to write columns `first` to `last` - 1."""
    start = 0
    for end in range(first, last):
        if end - start > block_size:
            start = end - max(1, block_size // 2)
        yield start, end


def _pad_left(prompts: Sequence[Sequence[int]], room: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts flush right, followed by `room` free columns: ids and the mask of real tokens, each (B, T + room)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) + [0] * room for p in prompts])
    pads = torch.tensor([longest - len(p) for p in prompts])
    return ids.to(device), (torch.arange(longest + room) >= pads[:, None]).to(device)


@contextmanager
def _ready(net: nn.Module, rows: int, device: torch.device) -> Iterator[None]:
    """Eval mode and, in float32 on a CPU, linear layers made for few rows; everything as it was afterwards."""
    training = net.training
    swaps = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    layers = [m for m in net.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32 and swaps]
    net.eval()
    try:
        for layer in layers:
            layer.forward = _for_few_rows(layer, rows)  # type: ignore[assignment,method-assign]
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
        net.train(training)


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


def _last_logits(net: Any, ids: Tensor, real: Tensor, memory: Any) -> Tensor:
    """Logits (B, V) after a window (B, T) of the text, of which only what the cache lacks is read."""
    if memory is not None and memory.length >= ids.size(1):  # the window has moved
        memory.reset()
    seen = 0 if memory is None else memory.length
    mask = None if seen or real.all() else real  # the cache remembers it
    return net.head(net.hidden(ids[:, seen:], attention_mask=mask, cache=memory)[:, -1])


def _uncompiled(net: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """The context of a step: a compiled block would compile again for each new length of the text."""
    compiled = any(m._compiled_call_impl is not None for m in net.modules())
    return partial(torch.compiler.set_stance, "force_eager") if compiled else nullcontext
