"""Text from a trained network, in plain PyTorch; the ids behind it come from decode.py.

    model = lit_gpt.load("best.ckpt")
    print("The " + model.generate("The ", max_new_tokens=100)[0])
    for piece in model.stream("The "):
        print(piece, end="", flush=True)

Randomness comes from a generator of its own, so sampling in the middle of training does not change the training.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Protocol

import torch

from datamodules.errors import UserError, check_at_least
from lit_gpt.decode import Sampling, decode
from lit_gpt.protocols import Network

#: Texts that are written side by side. Even a cache of 4 KB for each then takes 256 MB.
MOST_ROWS = 2**16


class Tokenizer(Protocol):
    """What generation needs of a tokenizer; those of `datamodules.tokenizers` have it."""

    vocab_size: int
    eos_id: int | None
    prefix_space: bool

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes of ids; a character may be cut at either end."""


class _Text:
    """The text of one row as it grows. Held back: half a character, and what may be the beginning of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str], prompt: str) -> None:
        self.tokenizer = tokenizer
        self.prefixed = tokenizer.prefix_space and not prompt  # the text's first space is the tokenizer's
        self.stop = [s.encode() for s in ([stop] if isinstance(stop, str) else stop)]
        if b"" in self.stop:
            raise UserError("a stop text is empty, and would end every sample at once: leave it out.")
        self.held = b""
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """Text that `token` makes certain."""
        if self.ended:
            return ""
        if token == self.tokenizer.eos_id:
            return self.end()
        piece = self.tokenizer.decode_bytes([token])
        self.held += piece.removeprefix(b" ") if self.prefixed else piece
        self.prefixed = False
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


def _check_rows(prompts: int, num_samples: int) -> None:
    """Refuse what no memory holds before a list of that length is made."""
    check_at_least(1, "num_samples", num_samples)
    rows = prompts * num_samples
    if rows > MOST_ROWS:
        raise UserError(f"num_samples is {num_samples}, in all {rows} texts: ask for at most {MOST_ROWS} at once.")


class TextModel:
    """A network and its tokenizer: text in, text out. `lit_gpt.load` makes one from a checkpoint."""

    def __init__(self, net: Network, tokenizer: Tokenizer) -> None:
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
        stop: str | Sequence[str] = (),
        new_document: bool = False,
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
            stop: A text or several that end a sample; they are not part of it.
            new_document: Put the end mark before the prompt, where every document of the training text begins; without
                it, the prompt is a piece from somewhere.
            num_samples: How many samples of each prompt.
            seed: Makes samples repeatable on the same machine.
            cache: Keep keys and values between tokens. The text is the same without, and slower.

        Returns:
            What follows the prompt (not the prompt itself): all samples of the first prompt, then of the second.

        Raises:
            UserError: For a number out of range, a character that the tokenizer does not know, or a new document where
                the vocabulary has no end mark.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        _check_rows(len(prompts), num_samples)
        rows = [ids for ids in (self._encode(p, new_document) for p in prompts) for _ in range(num_samples)]
        texts = [_Text(self.tokenizer, stop, p) for p in prompts for _ in range(num_samples)]
        if not rows:
            return []
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
        stop: str | Sequence[str] = (),
        new_document: bool = False,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue one text piece by piece; the pieces joined are what `generate` returns for the same arguments."""
        text = _Text(self.tokenizer, stop, prompt)
        sampling = Sampling(temperature, top_k, top_p, min_p)
        for (token,) in self._decode([self._encode(prompt, new_document)], max_new_tokens, sampling, seed, cache=True):
            yield text.add(token)
            if text.ended:
                return
        yield text.end()

    def _encode(self, prompt: str, new_document: bool) -> list[int]:
        if prompt and new_document:
            if self.tokenizer.eos_id is None:
                raise UserError("new_document needs an end mark, and this vocabulary has none: leave it out.")
            return [self.tokenizer.eos_id, *self.tokenizer.encode(prompt)]
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
        check_at_least(1, "max_new_tokens", max_new_tokens)
        tensors = chain(self.net.parameters(), self.net.buffers())
        generator = torch.Generator(device=next(tensors).device)
        if seed is not None and not 0 <= seed < 2**63:
            raise UserError(f"seed is {seed}: give 0 to 2**63 - 1.")
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
