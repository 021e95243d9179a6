"""The two tokenizers that need no training: one token for each character, or for each byte."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from datamodules.errors import UserError
from datamodules.tokenizers.base import EOS_TOKEN, Ids, Tokenizer, refuse_surrogate

UNKNOWN_TOKEN = "<unk>"
_UNICODE_SIZE = 0x110000
_ABSENT = np.uint32(0xFFFFFFFF)


class CharTokenizer(Tokenizer):
    """One token for each character of a fixed alphabet, in code point order, then ``<unk>`` and the EOS token if asked.

    Args:
        chars: the alphabet, in any order; repeated characters count once.
        unknown: how to treat a character outside of the alphabet: ``error`` raises `UserError`, ``unk`` encodes it as
            ``<unk>``.
        eos: whether to add an EOS token.
    """

    def __init__(self, chars: Iterable[str], unknown: Literal["error", "unk"] = "error", eos: bool = False) -> None:
        if unknown not in ("error", "unk") or not isinstance(eos, bool):
            raise UserError(
                f"a character vocabulary has unknown 'error' or 'unk', not {unknown!r}, and eos true or false."
            )
        self.chars = "".join(sorted(set("".join(chars))))
        if not self.chars:
            raise UserError("a character vocabulary needs at least one character; the text it was made from is empty.")
        self.unknown = unknown
        self.unk_id = len(self.chars) if unknown == "unk" else None
        specials = ([UNKNOWN_TOKEN] if unknown == "unk" else []) + ([EOS_TOKEN] if eos else [])
        self._tokens = [*self.chars, *specials]
        self.vocab_size = len(self._tokens)
        self.eos_id = self.vocab_size - 1 if eos else None

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], unknown: Literal["error", "unk"] = "error", eos: bool = False
    ) -> "CharTokenizer":
        """The tokenizer with the alphabet of ``texts``, which are read once and not held in memory."""
        seen = np.zeros(_UNICODE_SIZE, dtype=bool)
        known = b""  # ASCII characters seen; to remove them first is several times faster than to mark them again
        for text in texts:
            rest = _utf8(text).translate(None, known)
            if rest:
                seen[_code_points(rest.decode())] = True
                known = np.flatnonzero(seen[:128]).astype(np.uint8).tobytes()
        return cls(map(chr, np.flatnonzero(seen)), unknown, eos)

    def encode_array(self, text: str, start: bool = True) -> Ids:
        """See `Tokenizer`. An unknown character raises `UserError` or becomes ``unk_id``."""
        codes = _code_points(text)
        ids = self._id_by_code_point.take(codes, mode="clip")  # the last entry is that of no character, see below
        if self.unk_id is None and (ids == _ABSENT).any():
            self._refuse(text, int(np.argmax(ids == _ABSENT)))
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The character in UTF-8; for ``<unk>`` U+FFFD, as the character is lost."""
        return b"\xef\xbf\xbd" if token_id == self.unk_id else self._tokens[token_id].encode()

    def to_dict(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"kind": "char", "chars": self.chars, "unknown": self.unknown, "eos": self.eos_id is not None}

    @cached_property
    def _id_by_code_point(self) -> Ids:
        # One entry more than the highest code point: `take(mode="clip")` uses it for all code points above.
        fill = _ABSENT if self.unk_id is None else np.uint32(self.unk_id)
        table = np.full(ord(self.chars[-1]) + 2, fill, dtype=np.uint32)
        table[_code_points(self.chars)] = np.arange(len(self.chars), dtype=np.uint32)
        return table

    def _refuse(self, text: str, position: int) -> None:
        character, around = text[position], text[max(position - 12, 0) : position + 13]  # long texts come in pieces
        raise UserError(
            f"the character {character!r} (U+{ord(character):04X}), as in {around!r}, is not among the "
            f"{len(self.chars)} of this vocabulary: leave it out of the text, or use a model trained with "
            "--data.unknown unk or with a byte-level tokenizer."
        )


class ByteTokenizer(Tokenizer):
    """One token for each byte of UTF-8, 0 to 255; with ``eos`` the EOS token is 256."""

    def __init__(self, eos: bool = False) -> None:
        if not isinstance(eos, bool):
            raise UserError(f"the eos of a byte tokenizer is {eos!r}: give true or false.")
        self.vocab_size = 257 if eos else 256
        self.eos_id = 256 if eos else None

    def encode_array(self, text: str, start: bool = True) -> Ids:
        """See `Tokenizer`."""
        return np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.uint32)

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`."""
        return EOS_TOKEN.encode() if token_id == self.eos_id else bytes([token_id])

    def to_dict(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"kind": "byte", "eos": self.eos_id is not None}


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        refuse_surrogate(error)


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    try:
        return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    except UnicodeEncodeError as error:
        refuse_surrogate(error)
