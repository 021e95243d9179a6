"""Token ids from a trained network: how the next token is drawn, and the loop that draws one after another.

Random numbers come from the caller's own generator, so that sampling during training does not change the training.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Integral, Real
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from lit_gpt.decode_cpu import FastForwards
from lit_gpt.distributed import agreed, outside_inference_mode
from lit_gpt.forwards import replaced_forwards
from lit_gpt.protocols import Network


def check_number(name: str, value: Any, kind: type) -> None:
    """Raises a UserError if a value is no number of a kind, `numbers.Integral` or `numbers.Real`."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{name} is {value!r}: give {'an integer' if kind is Integral else 'a number'}.")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Raises UserError for a number out of range."""

    temperature: float = 0.8
    """Divides the logits: below 1 favours likely tokens, above 1 unlikely ones. 0 is greedy: always the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only; exactly k, also where several are equally likely."""
    top_p: float | None = None
    """Draw from the smallest set of likeliest tokens whose probabilities sum to at least this (nucleus sampling,
    Holtzman et al. 2020).
    """
    min_p: float | None = None
    """Draw from tokens whose probability is at least this fraction of the likeliest token's (Nguyen et al. 2024)."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, Real)
        for name, kind in (("top_k", Integral), ("top_p", Real), ("min_p", Real)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), kind)
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
        if self.temperature < 1e-6:  # the quotient of a smaller one could overflow float32
            return logits.argmax(-1)
        probabilities = self._limit(logits.float() / self.temperature).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    def _limit(self, logits: Tensor) -> Tensor:
        """Logits with -inf for the tokens that top_k, min_p and top_p exclude, in this order."""
        if self.top_k is not None and self.top_k < logits.size(-1):
            # By index, not by value: a comparison with the k-th logit would keep all that are equal to it.
            best = logits.topk(self.top_k)
            logits = torch.full_like(logits, -torch.inf).scatter(1, best.indices, best.values)
        if self.min_p is not None:
            probabilities = logits.softmax(-1)
            threshold = self.min_p * probabilities.amax(-1, keepdim=True)
            logits = logits.masked_fill(probabilities < threshold, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            probabilities, order = logits.softmax(-1).sort(descending=True)
            likelier = probabilities.cumsum(-1) - probabilities  # the sum over all likelier tokens, 0 for the first
            excluded = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, likelier >= self.top_p)
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
    """Continue a batch of prompts; yield the new token of every row, `max_new_tokens` times.

    A row does not depend on the other rows of the batch. Of a prompt longer than block_size the network sees the last
    block_size tokens.

    When a row has block_size tokens, its context is cut to the last block_size / 2, which then start at position 0.
    This is so with and without a cache. (Dropping one token at a time would make every cached key wrong, because keys
    of deeper layers depend on the dropped token.) All rows are read again when one is cut. So beyond the block, 16 rows
    of 16 lengths take 4 times as long as 16 of one length, which is still less than one row after another.

    The network is in eval mode while a token is computed. In between it is as it was, and may be trained or copied.

    Args:
        net: A `GPT` or another `Network`. One whose `new_cache` returns None reads the whole context for every token.
        prompts: Token ids of each row, at least one; shorter rows are padded on the left.
        max_new_tokens: How many tokens to add to each row.
        sampling: How to draw them.
        generator: Source of random numbers, on the network's device.
        vocab_size: Draw only ids below this, such as the tokenizer's; None for all of the network's.
        cache: Whether to use a KV cache. Without one, every step reads the whole context again.

    Raises:
        UserError: The batch needs more memory than there is.
    """
    block_size = int(net.config.block_size)
    prompts = [prompt[-block_size:] for prompt in prompts]
    device = generator.device
    tokens = deque(_pad_left(prompts, device).unbind(1), maxlen=block_size)  # one (B,) for each position
    step = _step_of(net, len(prompts), device)
    with _explaining_out_of_memory(len(prompts), device):
        with outside_inference_mode(net):
            kv_cache = net.new_cache(len(prompts)) if cache else None
        for lengths, starts_anew in islice(_context_lengths([len(p) for p in prompts], block_size), max_new_tokens):
            if kv_cache is not None and starts_anew:
                kv_cache.reset()
            with step():
                logits = _last_logits(net, tokens, lengths, kv_cache)
            tokens.append(agreed(sampling.pick(logits[:, :vocab_size], generator), net))
            yield tokens[-1].tolist()


def _context_lengths(lengths: list[int], block_size: int) -> Iterator[tuple[list[int], bool]]:
    """For each new token: the length of every row's context, and whether the first token of a context is another than
    in the step before. It is at the first step, and after a row had block_size tokens.
    """
    starts_anew, half = True, max(1, block_size // 2)
    while True:
        yield lengths, starts_anew
        starts_anew = block_size in lengths
        lengths = [half if length == block_size else length + 1 for length in lengths]


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """The prompts in one tensor, (B, T), padded on the left with id 0, which the padding mask hides."""
    longest = max(map(len, prompts))
    return torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)


@contextmanager
def _explaining_out_of_memory(batch_size: int, device: torch.device) -> Iterator[None]:
    """If memory runs out, raise a UserError that says so."""
    try:
        yield
    except RuntimeError as error:
        if "tried to allocate" not in str(error).lower():  # the CPU's allocator raises a plain RuntimeError
            raise
        message = f"{batch_size} texts at once need more memory than the {device.type} has: lower num_samples."
        raise UserError(message) from error


def _step_of(net: nn.Module, batch_size: int, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A context manager for each step: eval mode and, in float32 on a CPU, modules that are fast for one token of each
    row. Compiled blocks are off: they would compile again for each new length.
    """
    modules, fast = list(net.modules()), FastForwards(net, batch_size)
    is_compiled = any(m._compiled_call_impl is not None for m in modules)
    uncompiled = partial(torch.compiler.set_stance, "force_eager") if is_compiled else nullcontext

    @contextmanager
    def step() -> Iterator[None]:
        speeds_up = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        with uncompiled(), outside_inference_mode(net), _in_eval_mode(modules):
            changes = fast.current() if speeds_up else []
            with replaced_forwards(changes):
                yield

    return step


#: The networks in `_in_eval_mode` by their id: how many threads are in it, the modules, and the mode that each had.
_EVALUATED: dict[int, tuple[int, list[nn.Module], list[bool]]] = {}
_LOCK = Lock()


@contextmanager
def _in_eval_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Eval mode for a network, of which all modules are given, itself first. When the last thread leaves, each module
    has its own mode again: one that is frozen in eval mode stays in it.
    """
    key = id(modules[0])
    with _LOCK:
        users, modules, modes = _EVALUATED.get(key, (0, modules, [m.training for m in modules]))
        _EVALUATED[key] = users + 1, modules, modes
        if not users and any(modes):
            _set_modes(modules, [False] * len(modules))
    try:
        yield
    finally:
        with _LOCK:
            users = _EVALUATED.pop(key)[0] - 1
            if users:
                _EVALUATED[key] = users, modules, modes
            elif any(modes):
                _set_modes(modules, modes)


def _set_modes(modules: list[nn.Module], modes: list[bool]) -> None:
    """Of a network's modules, itself first. `nn.Module.train` takes ten times as long, half of a small network's step,
    and is called only where a module overrides it.
    """
    if any(type(module).train is not nn.Module.train for module in modules):
        modules[0].train(modes[0])
    for module, mode in zip(modules, modes, strict=True):
        vars(module)["training"] = mode


def _last_logits(net: Any, tokens: Iterable[Tensor], lengths: list[int], kv_cache: Any) -> Tensor:
    """Logits (B, V) after the last lengths[b] tokens of each row b. The network reads those that are not cached."""
    longest, cached = max(lengths), 0 if kv_cache is None else kv_cache.length
    ids = torch.stack(list(tokens)[cached - longest :], dim=1)  # (B, T)
    mask = None
    if not cached and min(lengths) < longest:  # in later steps the cache has the padding mask
        from_end = torch.arange(longest, 0, -1, device=ids.device)  # 1 for the last token
        mask = from_end <= torch.tensor(lengths, device=ids.device)[:, None]  # (B, T)
    return net.head(net.hidden(ids, attention_mask=mask, cache=kv_cache)[:, -1])
