"""The base class of all tokenizers: text to ids and back, and the tokenizer to plain values and back."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from datamodules.errors import UserError

EOS_TOKEN = "<|endoftext|>"

#: Ids as they are counted, stored and concatenated; no vocabulary comes near 2 ** 32.
Ids = npt.NDArray[np.uint32]


class Tokenizer(ABC):
    """Text to ids and back, without loss for every valid Unicode text unless a class says otherwise.

    Attributes:
        vocab_size: number of ids; every id is in ``range(vocab_size)``.
        eos_id: id of the EOS token between documents, or None. No text encodes to it, not even ``<|endoftext|>``.
        prefix_space: whether a text is encoded with a space before it, which `decode` removes.
        lossless: whether `decode` gives the text back. If not, a loss is not that of the text's bytes and characters.
    """

    vocab_size: int
    eos_id: int | None
    prefix_space: bool = False
    lossless: bool = True

    @abstractmethod
    def encode_array(self, text: str, start: bool = True) -> Ids:
        """The ids of a text as an array (T,), for long texts. A lone surrogate raises `UserError`.

        Args:
            text: the text.
            start: whether it is the beginning of a document. If not, ``prefix_space`` puts no space before it.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token; those of the EOS token are its name."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that `tokenizer_from_dict` needs, as str, int, float, list and dict, which JSON and safe pickles hold."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text. A lone surrogate raises `UserError`."""
        return self.encode_array(text).tolist()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ``ids``. A character may be cut at either end: decode a stream incrementally."""
        table = self._bytes_by_id
        try:
            return b"".join([table[i] for i in ids])
        except IndexError:
            raise UserError(f"a token id is outside the vocabulary of {self.vocab_size}.") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        """The text of one token for printing. Other than printable characters are escaped, as in a Python string."""
        text = self.token_bytes(token_id).decode("utf-8", errors="backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], "Tokenizer"], tuple[dict[str, Any]]]:
        """Pickles as ``to_dict()``, without the objects of libraries and without caches."""
        from datamodules.tokenizers.files import tokenizer_from_dict

        return tokenizer_from_dict, (self.to_dict(),)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of ``to_dict()``. Tokenizers with equal fingerprints give equal ids on every machine."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def _bytes_by_id(self) -> Sequence[bytes]:
        return [self.token_bytes(i) for i in range(self.vocab_size)]


def check_unicode(text: str) -> None:
    """Raises `UserError` for a lone surrogate. It takes about 1 % of the time of encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        refuse_surrogate(error)


def refuse_surrogate(error: UnicodeEncodeError) -> NoReturn:
    """Turns Python's error for a lone surrogate into a `UserError`."""
    character = error.object[error.start]
    raise UserError(
        f"the text holds the lone surrogate U+{ord(character):04X} at character {error.start}, which is not valid "
        "Unicode; clean it with text.encode('utf-8', 'replace').decode()."
    ) from None
