"""What BPE and Unigram share: tokens of bytes, a pattern of splits, special marks; and their Hugging Face form."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.errors import UserError
from datamodules.reading import cut
from datamodules.tokenizers.base import Ids, Tokenizer, check_unicode

if TYPE_CHECKING:
    import tokenizers

#: Longer texts are encoded in pieces (see `reading.cut`): regular expression engines overflow their stack on a million
#: spaces in a row, and tiktoken then panics.
LONGEST = 1 << 18


class ByteLevelTokenizer(Tokenizer):
    """Tokens are stretches of bytes, and every single byte is one: lossless for every text.

    Args:
        tokens: bytes of each id, one latin-1 character a byte; "" where the id is a special mark or unused.
        pattern: regular expression of the splits.
        specials: ids of the marks that no text encodes to, by name.
        eos: the name among ``specials`` that ends documents, or None.
        prefix_space: whether a space comes before each text, so that a word is the same token at its beginning as
            elsewhere.
    """

    def __init__(
        self,
        tokens: list[str],
        pattern: str,
        specials: dict[str, int],
        eos: str | None = None,
        prefix_space: bool = False,
    ) -> None:
        _check_types(tokens, pattern, specials, prefix_space)
        if missing := {chr(byte) for byte in range(256)}.difference(tokens):
            raise UserError(f"The vocabulary lacks {len(missing)} of the 256 bytes, so some text would have no ids.")
        if eos is not None and eos not in specials:
            raise UserError(f"The end mark {str(eos)[:40]!r} is none of the {len(specials)} special marks.")
        self.tokens = tokens
        self.pattern = pattern
        self.specials = specials
        self.vocab_size = len(tokens)
        self.eos = eos
        self.prefix_space = prefix_space
        self.eos_id = None if eos is None else specials[eos]

    @abstractmethod
    def _encode_short(self, text: str) -> Ids:
        """Ids of at most `LONGEST` characters of valid Unicode."""

    def encode_array(self, text: str, start: bool = True) -> Ids:
        """See `Tokenizer`."""
        check_unicode(text)  # the libraries below replace a lone surrogate in silence, or stop with a TypeError
        if start:
            text = self.prefixed(text)
        if len(text) <= LONGEST:
            return self._encode_short(text)
        return np.concatenate([self._encode_short(piece.text) for piece in cut([text], LONGEST)])

    def prefixed(self, text: str) -> str:
        """``text`` as it is split into tokens; an empty one stays empty."""
        return f" {text}" if self.prefix_space and text else text

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        text = super().decode(ids)
        return text.removeprefix(" ") if self.prefix_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`; an unused id stands for nothing."""
        return self._name_by_id.get(token_id, "").encode() or self.tokens[token_id].encode("latin-1")

    def to_dict(self) -> dict[str, Any]:
        """Tokens, pattern and marks; 0.8 MB as a pickle for gpt2."""
        state = {"tokens": self.tokens, "pattern": self.pattern, "specials": self.specials, "eos": self.eos}
        return state | ({"prefix_space": True} if self.prefix_space else {})

    @cached_property
    def ids_by_bytes(self) -> dict[bytes, int]:
        """Ids of the ordinary tokens by their bytes."""
        return {token.encode("latin-1"): token_id for token_id, token in enumerate(self.tokens) if token}

    @cached_property
    def _name_by_id(self) -> dict[int, str]:
        return {token_id: name for name, token_id in self.specials.items()}


def _check_types(tokens: list[str], pattern: str, specials: dict[str, int], prefix_space: bool) -> None:
    """Refuses what a damaged or forged file may hold, before anything is made of it."""
    if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        raise UserError("The vocabulary is not a list of texts.")
    if (beyond := max("".join(tokens), default="")) > "\xff":
        raise UserError(f"The vocabulary holds the character {beyond!r}, which is no byte.")
    if not (isinstance(pattern, str) and isinstance(prefix_space, bool) and isinstance(specials, dict)):
        raise UserError("The pattern, prefix_space or the special marks are of another type than text, bool and dict.")
    check_ids(specials, len(tokens))
    if taken := [name for name, token_id in specials.items() if tokens[token_id]]:
        raise UserError(f"The special mark {taken[0][:40]!r} has the id {specials[taken[0]]}, which is a token's.")


def check_ids(ids: Mapping[str, object], size: int) -> None:
    """Refuses ids by name that are no whole numbers from 0 up to ``size`` - 1.

    Raises:
        UserError: names the first.
    """
    for name, token_id in ids.items():
        if type(token_id) is not int or not 0 <= token_id < size:
            raise UserError(f"The token {str(name)[:40]!r} has the id {token_id!r}, and ids must be 0 to {size - 1}.")


def _visible_bytes() -> str:
    """GPT-2's printable stand-ins: a printable latin-1 byte is itself, the others are U+0100 and on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: chr(0x100 + n) for n, byte in enumerate(others)}
    return "".join(stand_ins.get(byte, chr(byte)) for byte in range(256))


_VISIBLE = _visible_bytes()
_TO_VISIBLE = str.maketrans(dict(enumerate(_VISIBLE)))
_FROM_VISIBLE = str.maketrans({visible: chr(byte) for byte, visible in enumerate(_VISIBLE)})


def to_visible(token: str) -> str:
    """Our token (one latin-1 character a byte) as Hugging Face writes it, such as ``Ġthe``."""
    return token.translate(_TO_VISIBLE)


def from_visible(token: str) -> str:
    """The inverse of `to_visible`. `UserError` for a token that is not byte-level."""
    if not _FROM_VISIBLE.keys() >= set(map(ord, token)):
        raise UserError(f"The token {token!r} is not byte-level, so it is not of a tokenizer that this project runs.")
    return token.translate(_FROM_VISIBLE)


def special_tokens(specials: dict[str, int]) -> list[dict[str, Any]]:
    """The ``added_tokens`` of a Hugging Face ``tokenizer.json``."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    marks = sorted(specials.items(), key=lambda mark: mark[1])
    return [{"id": token_id, "content": name, **flags, "special": True} for name, token_id in marks]


#: Hugging Face's steps that put a space before a text, and that take it away again.
PREPEND: dict[str, Any] = {"type": "Prepend", "prepend": " "}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def huggingface_state(
    model: dict[str, Any], pattern: str, specials: dict[str, int], prefix_space: bool = False
) -> dict[str, Any]:
    """A byte-level Hugging Face ``tokenizer.json`` around ``model``: split by ``pattern``, then bytes."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    decoder = byte_level | {"use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special_tokens(specials),
        "normalizer": PREPEND if prefix_space else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [decoder, _STRIP]} if prefix_space else decoder,
        "model": model,
    }


def library_tokenizer(state: dict[str, Any]) -> "tokenizers.Tokenizer":
    """The `tokenizers` library's own object for the content of a ``tokenizer.json``.

    Raises:
        UserError: what the installed version does not know, or a regular expression that is none.
    """
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(state))
    except Exception as error:  # it has no class of its own for these
        raise UserError(
            f"The installed tokenizers {tokenizers.__version__} cannot read it ({error}); upgrade that library, or "
            "write the file anew with this version of it."
        ) from None
