"""Text from a trained network: sampling with a key/value cache, in plain PyTorch.

    model = lit_gpt.load("best.ckpt")
    print("The " + model.generate("The ", max_new_tokens=100)[0])
    for piece in model.stream("The "):
        print(piece, end="", flush=True)

Randomness comes from a generator of its own, so sampling in the middle of training does not change the training.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from lit_gpt.model import GPT, Linear


class Tokenizer(Protocol):
    """What generation needs of a tokenizer; those of `datamodules.tokenizers` have it."""

    vocab_size: int
    eos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes of ids; a character may be cut at either end."""


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
        if self.temperature == 0:
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
        net: A `GPT`, or a network with its `hidden`, `head` and `config`.
        prompts: Ids of each row, at least one; shorter rows are padded on the left.
        max_new_tokens: How many tokens to add to each row.
        sampling: How to draw them.
        generator: Source of randomness, on the network's device.
        vocab_size: Draw ids below this only; default all of the network's.
        cache: Keep keys and values. Off, every step reads the whole context again.
    """
    device = generator.device
    ids, real = _pad_left(prompts, max_new_tokens, device)
    first_shared = max(map(len, prompts)) - min(map(len, prompts))  # the column from which no row has a pad
    memory = net.new_cache(len(prompts)) if cache and isinstance(net, GPT) else None
    start, block_size = 0, int(net.config.block_size)  # type: ignore[union-attr, arg-type]
    with _ready(net, len(prompts), device):
        for end in range(ids.size(1) - max_new_tokens, ids.size(1)):
            if end - start > block_size:
                start = end - max(1, block_size // 2)
                if memory is not None:
                    memory.reset()
            seen = start + (memory.length if memory is not None else 0)
            mask = real[:, seen:end] if seen == start < first_shared else None
            with _uncompiled(net):
                logits = _last_logits(net, ids[:, seen:end], mask, memory)[:, :vocab_size]
            ids[:, end] = sampling.pick(logits, generator)
            yield ids[:, end].tolist()


def _pad_left(prompts: Sequence[Sequence[int]], room: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts flush right, followed by `room` free columns: ids and the mask of real tokens, each (B, T + room)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) + [0] * room for p in prompts])
    pads = torch.tensor([longest - len(p) for p in prompts])
    return ids.to(device), (torch.arange(longest + room) >= pads[:, None]).to(device)


@contextmanager
def _ready(net: nn.Module, rows: int, device: torch.device) -> Iterator[None]:
    """Eval mode; on a CPU, for more than 2 rows, packed weights too (24 ms for 10 million, where torch has the kernel)."""
    training = net.training
    layers = [m for m in net.modules() if isinstance(m, Linear) and m.weight.dtype == torch.float32]
    packs = device.type == "cpu" and rows > 2 and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    net.eval()
    try:
        for layer in layers if packs else ():
            layer.pack(rows)
        yield
    finally:
        for layer in layers:
            layer.packed = None
        net.train(training)


def _last_logits(net: Any, ids: Tensor, mask: Tensor | None, memory: Any) -> Tensor:
    return net.head(net.hidden(ids, attention_mask=mask, cache=memory)[:, -1])  # (B, V)


def _uncompiled(net: nn.Module) -> AbstractContextManager[Any]:
    """A compiled block would compile again for each new length of the context."""
    compiled = any(m._compiled_call_impl is not None for m in net.children() for m in (m, *m.children()))
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


class _Text:
    """The text of one row as it grows. Held back: half a character, and what may be the beginning of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = [s.encode() for s in stop]
        self.held = b""
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """Text that `token` makes certain."""
        if self.ended:
            return ""
        if token == self.tokenizer.eos_id:
            return self.end()
        self.held += self.tokenizer.decode_bytes([token])
        places = [place for place in map(self.held.find, self.stop) if place >= 0]
        if places:
            self.held = self.held[: min(places)]
            return self.end()
        return self._release(len(self.held) - self._unsure())

    def end(self) -> str:
        """The rest of the text; nothing comes after it."""
        if self.ended:
            return ""
        self.ended = True
        return self._release(len(self.held)) + self._decoder.decode(b"", final=True)

    def _release(self, size: int) -> str:
        released, self.held = self.held[:size], self.held[size:]
        return self._decoder.decode(released)

    def _unsure(self) -> int:
        """Length of the longest end of the held bytes with which a stop string begins."""
        longest = max(map(len, self.stop), default=1) - 1
        sizes = range(min(longest, len(self.held)), 0, -1)
        return next((n for n in sizes if any(s.startswith(self.held[-n:]) for s in self.stop)), 0)


class TextModel:
    """A network and its tokenizer: text in, text out. `lit_gpt.load` makes one from a checkpoint."""

    def __init__(self, net: nn.Module, tokenizer: Tokenizer) -> None:
        """Keep both; nothing is copied."""
        self.net = net
        self.tokenizer = tokenizer

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        stop: Sequence[str] = (),
        num_samples: int = 1,
        seed: int | None = None,
        cache: bool = True,
    ) -> list[str]:
        """Continue texts.

        Args:
            prompt: A text or several of any length. An empty one starts at the end mark, where documents begin; without
                an end mark in the vocabulary after a newline, without a newline after the first token.
            max_new_tokens: The most tokens to write for each sample; the end mark ends it earlier.
            temperature: See `Sampling`; 0 is greedy.
            top_k: See `Sampling`.
            top_p: See `Sampling`.
            min_p: See `Sampling`.
            stop: Texts that end a sample; they are not part of it.
            num_samples: How many samples of each prompt.
            seed: Makes samples repeatable on the same machine.
            cache: Keep keys and values between tokens. The text is the same without, and slower.

        Returns:
            What follows the prompt (not the prompt itself): all samples of the first prompt, then of the second.

        Raises:
            UserError: For a number out of range or a character that the tokenizer does not know.
        """
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}: give at least 1.")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = [ids for ids in map(self._encode, prompts) for _ in range(num_samples)]
        texts = [_Text(self.tokenizer, stop) for _ in rows]
        pieces: list[list[str]] = [[] for _ in rows]
        for tokens in self._decode(rows, max_new_tokens, Sampling(temperature, top_k, top_p, min_p), seed, cache):
            for text, written, token in zip(texts, pieces, tokens, strict=True):
                written.append(text.add(token))
            if all(text.ended for text in texts):
                break
        return ["".join(written) + text.end() for text, written in zip(texts, pieces, strict=True)]

    def stream(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue one text piece by piece; the pieces joined are what `generate` returns for the same arguments."""
        text = _Text(self.tokenizer, stop)
        sampling = Sampling(temperature, top_k, top_p, min_p)
        for (token,) in self._decode([self._encode(prompt)], max_new_tokens, sampling, seed, cache=True):
            yield text.add(token)
            if text.ended:
                return
        yield text.end()

    def _encode(self, prompt: str) -> list[int]:
        if prompt:
            return self.tokenizer.encode(prompt)
        if self.tokenizer.eos_id is not None:
            return [self.tokenizer.eos_id]
        try:
            return self.tokenizer.encode("\n")
        except UserError:
            return [0]

    def _decode(
        self, rows: list[list[int]], max_new_tokens: int, sampling: Sampling, seed: int | None, cache: bool
    ) -> Iterator[list[int]]:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}: give at least 1.")
        generator = torch.Generator(device=next(_tensors(self.net)).device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return decode(
            self.net,
            rows,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            generator=generator,
            vocab_size=self.tokenizer.vocab_size,
            cache=cache,
        )


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    yield from net.parameters()
    yield from net.buffers()
