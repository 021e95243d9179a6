"""Byte-level BPE, trained or by a tiktoken name; tiktoken runs both, as it is the fastest that we measured."""

from array import array
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datamodules.errors import UserError
from datamodules.tokenizers.base import END_MARK, Ids
from datamodules.tokenizers.byte_level import ByteLevelTokenizer, to_visible

if TYPE_CHECKING:
    import tiktoken

PatternName = Literal["cl100k", "gpt2", "none"]

#: How text is split before tokens are sought, which never cross a split. The first two are the patterns of OpenAI's
#: encodings of those names, without possessive quantifiers, so that Oniguruma (in `tokenizers`) reads them alike.
PATTERNS: dict[PatternName, str] = {
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "none": r"[\s\S]+",
}

#: tiktoken's encodings that have an end mark and that people train with.
ENCODINGS = ("gpt2", "cl100k_base", "o200k_base")


class BPETokenizer(ByteLevelTokenizer):
    """Byte-level BPE (Sennrich et al. 2016, Radford et al. 2019): inside a split, the pair of lowest id merges first.

    Ids are therefore merge ranks, and need no list of merges beside them. With the pattern ``none`` merges
    cross words, so tokens can differ around the places where a text beyond 262,144 characters is cut.
    """

    @classmethod
    def from_encoding(cls, name: str) -> "BPETokenizer":
        """One of tiktoken's encodings (see ``ENCODINGS``), with OpenAI's ids; ``<|endoftext|>`` is the end mark.

        Raises:
            UserError: the ranks are not cached and cannot be downloaded.
        """
        import tiktoken

        try:
            encoding = tiktoken.get_encoding(name)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
            raise UserError(
                f"The ranks of {name} are not on this machine and cannot be downloaded ({type(error).__name__}): copy "
                "them from one that has them, and set TIKTOKEN_CACHE_DIR to their folder, where tiktoken looks first."
            ) from None
        tokens = [""] * encoding.n_vocab
        for token, rank in encoding._mergeable_ranks.items():
            tokens[rank] = token.decode("latin-1")
        return cls(tokens, encoding._pat_str, dict(encoding._special_tokens), END_MARK)

    def encode_array(self, text: str) -> Ids:
        """See `Tokenizer`. Through `array`, which takes a list of ints 3 times faster than numpy does."""
        return np.frombuffer(array("I", self.encode(text)), dtype=np.uint32)

    def to_dict(self) -> dict[str, Any]:
        """See `ByteLevelTokenizer`."""
        return {"kind": "bpe", **super().to_dict()}

    def huggingface_model(self) -> dict[str, Any]:
        """The ``model`` of a Hugging Face ``tokenizer.json``. Finding the merges of gpt2 takes about 1 s."""
        vocab = {to_visible(token): token_id for token_id, token in enumerate(self.tokens) if token}
        merges = [[to_visible(part.decode("latin-1")) for part in pair] for pair in self.merges()]
        return {"type": "BPE", "vocab": vocab | self.specials, "merges": merges, "ignore_merges": False}

    def merges(self) -> list[tuple[bytes, bytes]]:
        """The pair that makes each token of two bytes and more, in order of ids.

        Raises:
            UserError: merges of lower ids leave more or less than a pair, so no list of merges gives these ids.
        """
        pairs = []
        for token, rank in self.ids_by_bytes.items():
            if len(token) > 1:
                parts = self._merged(token, rank)
                if len(parts) != 2:
                    raise UserError(f"The BPE token {token!r} (id {rank}) is not a merge of two tokens of lower ids.")
                pairs.append((parts[0], parts[1]))
        return pairs

    def _merged(self, token: bytes, below: int) -> list[bytes]:
        """``token`` as the merges of ids under ``below`` leave it."""
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 1:
            ranks = [self.ids_by_bytes.get(a + b, below) for a, b in pairwise(parts)]
            rank = min(ranks)
            if rank >= below:
                break
            at = ranks.index(rank)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts

    def _encode_short(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        import tiktoken

        return tiktoken.Encoding("ours", pat_str=self.pattern, mergeable_ranks=self.ids_by_bytes, special_tokens={})
