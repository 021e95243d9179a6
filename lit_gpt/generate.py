"""Text from a trained network, in plain PyTorch; decode.py generates its token ids.

    model = lit_gpt.load("best.ckpt")
    print("The " + model.generate("The ", max_new_tokens=100)[0])
    for piece in model.stream("The "):
        print(piece, end="", flush=True)

Random numbers come from a generator of its own, so that sampling during training does not change the training.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from numbers import Integral
from typing import Protocol

import torch

from datamodules.errors import UserError, check_at_least
from lit_gpt.decode import Sampling, check_number, decode
from lit_gpt.protocols import Network

#: The most samples in one batch. Even with a KV cache of 4 KB for each they take 256 MB.
MAX_SAMPLES = 2**16


class Tokenizer(Protocol):
    """What generation needs of a tokenizer. Every tokenizer of `datamodules.tokenizers` has it."""

    vocab_size: int
    eos_id: int | None
    prefix_space: bool

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes of token ids; a character may be cut at either end."""


class _SampleText:
    """Turns the tokens of one sample into text, token by token.

    Bytes that may be the beginning of a stop string or of a character are held back until that is decided.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str], prompt: str) -> None:
        self.tokenizer = tokenizer
        # Without a prompt, the first space of the text is the one that the tokenizer adds to every text.
        self.drops_space = tokenizer.prefix_space and not prompt
        self.stop = [s.encode() for s in ([stop] if isinstance(stop, str) else stop)]
        if b"" in self.stop:
            raise UserError("a stop text is empty, and would end every sample at once: leave it out.")
        self.pending = b""
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """Add a token; return the text that is certain now."""
        if self.ended:
            return ""
        if token == self.tokenizer.eos_id:
            return self.end()
        piece = self.tokenizer.decode_bytes([token])
        self.pending += piece.removeprefix(b" ") if self.drops_space else piece
        self.drops_space = False
        stops = [index for index in map(self.pending.find, self.stop) if index >= 0]
        if stops:
            self.pending = self.pending[: min(stops)]
            return self.end()
        return self._release(len(self.pending) - self._possible_stop())

    def end(self) -> str:
        """End the sample; return the rest of its text."""
        if self.ended:
            return ""
        self.ended = True
        return self._release(len(self.pending)) + self._decoder.decode(b"", final=True)

    def _release(self, size: int) -> str:
        released, self.pending = self.pending[:size], self.pending[size:]
        return self._decoder.decode(released)

    def _possible_stop(self) -> int:
        """How many bytes at the end of the pending ones may be the beginning of a stop string."""
        longest = max(map(len, self.stop), default=1) - 1
        sizes = range(min(longest, len(self.pending)), 0, -1)
        return next((n for n in sizes if any(s.startswith(self.pending[-n:]) for s in self.stop)), 0)


def _check_num_samples(prompts: int, num_samples: int) -> None:
    """Refuse more samples than `MAX_SAMPLES`, before a list of that length is made."""
    check_number("num_samples", num_samples, Integral)
    check_at_least(1, "num_samples", num_samples)
    total = prompts * num_samples
    if total > MAX_SAMPLES:
        raise UserError(f"num_samples is {num_samples}, in all {total} texts: ask for at most {MAX_SAMPLES} at once.")


class TextModel:
    """A network and its tokenizer: text in, text out. `lit_gpt.load` makes one from a checkpoint."""

    def __init__(self, net: Network, tokenizer: Tokenizer) -> None:
        """Neither is copied."""
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
            prompt: A text or several of any length. An empty one stands for the EOS token, after which documents begin.
                Without an EOS token in the vocabulary it stands for a newline, without a newline for token 0.
            max_new_tokens: The most tokens to generate for each sample; the EOS token ends it earlier.
            temperature: See `Sampling`; 0 is greedy.
            top_k: See `Sampling`.
            top_p: See `Sampling`.
            min_p: See `Sampling`.
            stop: A text or several that end a sample; they are not part of it.
            new_document: Put the EOS token before the prompt, so that it begins a document. Otherwise the prompt may be
                a piece from the middle of one.
            num_samples: How many samples of each prompt.
            seed: Makes samples repeatable on the same machine; None for other samples each time.
            cache: Use a KV cache. Without it the text is the same, and takes longer.

        Returns:
            What follows the prompt (not the prompt itself): all samples of the first prompt, then of the second.

        Raises:
            UserError: For a number out of range, a character that the tokenizer does not know, or a new document where
                the vocabulary has no EOS token.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        _check_num_samples(len(prompts), num_samples)
        encoded = [self._encode(p, new_document) for p in prompts]
        rows = [ids for ids in encoded for _ in range(num_samples)]
        texts = [_SampleText(self.tokenizer, stop, p) for p in prompts for _ in range(num_samples)]
        if not rows:
            return []
        pieces: list[list[str]] = [[] for _ in rows]
        for tokens in self._decode(rows, max_new_tokens, Sampling(temperature, top_k, top_p, min_p), seed, cache):
            for text, parts, token in zip(texts, pieces, tokens, strict=True):
                parts.append(text.add(token))
            if all(text.ended for text in texts):
                break
        return ["".join(parts) + text.end() for text, parts in zip(texts, pieces, strict=True)]

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
        """Continue one text piece by piece. Joined, the pieces are what `generate` returns for the same arguments."""
        text = _SampleText(self.tokenizer, stop, prompt)
        sampling = Sampling(temperature, top_k, top_p, min_p)
        for (token,) in self._decode([self._encode(prompt, new_document)], max_new_tokens, sampling, seed, cache=True):
            yield text.add(token)
            if text.ended:
                return
        yield text.end()

    def _encode(self, prompt: str, new_document: bool) -> list[int]:
        if prompt and new_document:
            if self.tokenizer.eos_id is None:
                raise UserError("new_document needs an EOS token, and this vocabulary has none: leave it out.")
            return [self.tokenizer.eos_id, *self.tokenizer.encode(prompt)]
        if prompt:
            return self.tokenizer.encode(prompt)
        if self.tokenizer.eos_id is not None:
            return [self.tokenizer.eos_id]
        try:
            return self.tokenizer.encode("\n")
        except UserError:  # the vocabulary has no newline
            return [0]

    def _decode(
        self, rows: list[list[int]], max_new_tokens: int, sampling: Sampling, seed: int | None, cache: bool
    ) -> Iterator[list[int]]:
        check_number("max_new_tokens", max_new_tokens, Integral)
        check_at_least(1, "max_new_tokens", max_new_tokens)
        tensors = chain(self.net.parameters(), self.net.buffers())  # a table of counts has no parameters
        generator = torch.Generator(device=next(tensors).device)
        if seed is not None:
            check_number("seed", seed, Integral)
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
