"""The base class of BPE and Unigram: tokens of bytes, a pattern that splits text into words, special tokens."""

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

#: Longer texts are encoded in pieces (see `reading.cut`). On a million spaces in a row the stack of regular expression
#: engines overflows, and tiktoken panics.
LONGEST = 1 << 18


class ByteLevelTokenizer(Tokenizer):
    """A tokenizer whose tokens are byte strings. Every single byte is a token, so it is lossless for every text.

    Args:
        tokens: the bytes of each id, one latin-1 character for each byte; "" if the id is a special token or unused.
        pattern: regular expression that splits text into words, which no token crosses.
        specials: ids of the special tokens, by name. No text encodes to them.
        eos: the name of the EOS token, which is one of ``specials``, or None.
        prefix_space: whether a text is encoded with a space before it, so that its first word is the same token as
            inside a text.
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
            raise UserError(f"the vocabulary lacks {len(missing)} of the 256 bytes, so some text would have no ids.")
        if eos is not None and eos not in specials:
            raise UserError(f"the EOS token {str(eos)[:40]!r} is none of the {len(specials)} special tokens.")
        self.tokens = tokens
        self.pattern = pattern
        self.specials = specials
        self.vocab_size = len(tokens)
        self.eos = eos
        self.prefix_space = prefix_space
        self.eos_id = None if eos is None else specials[eos]

    @abstractmethod
    def _encode_short(self, text: str) -> Ids:
        """The ids of a text of at most `LONGEST` characters of valid Unicode."""

    def encode_array(self, text: str, start: bool = True) -> Ids:
        """See `Tokenizer`."""
        check_unicode(text)  # the libraries replace a lone surrogate silently, or raise a TypeError
        if start:
            text = self.prefixed(text)
        if len(text) <= LONGEST:
            return self._encode_short(text)
        return np.concatenate([self._encode_short(piece.text) for piece in cut([text], LONGEST)])

    def prefixed(self, text: str) -> str:
        """``text`` with the prefix space, if the tokenizer has one. An empty text stays empty."""
        return f" {text}" if self.prefix_space and text else text

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        text = super().decode(ids)
        return text.removeprefix(" ") if self.prefix_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`. An unused id has no bytes."""
        return self._name_by_id.get(token_id, "").encode() or self.tokens[token_id].encode("latin-1")

    def to_dict(self) -> dict[str, Any]:
        """See `Tokenizer`. For gpt2 it is a pickle of 0.8 MB."""
        state = {"tokens": self.tokens, "pattern": self.pattern, "specials": self.specials, "eos": self.eos}
        return state | ({"prefix_space": True} if self.prefix_space else {})

    @cached_property
    def ids_by_bytes(self) -> dict[bytes, int]:
        """The ids of all tokens but special ones, by their bytes."""
        return {token.encode("latin-1"): token_id for token_id, token in enumerate(self.tokens) if token}

    @cached_property
    def _name_by_id(self) -> dict[int, str]:
        return {token_id: name for name, token_id in self.specials.items()}


def _check_types(tokens: list[str], pattern: str, specials: dict[str, int], prefix_space: bool) -> None:
    """Refuses values of wrong types, which a damaged or forged file may hold."""
    if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        raise UserError("the vocabulary is not a list of texts.")
    if (beyond := max("".join(tokens), default="")) > "\xff":
        raise UserError(f"the vocabulary holds the character {beyond!r}, which is no byte.")
    if not (isinstance(pattern, str) and isinstance(prefix_space, bool) and isinstance(specials, dict)):
        raise UserError("the pattern, prefix_space or the special tokens are of another type than text, bool and dict.")
    check_ids(specials, len(tokens))
    if taken := [name for name, token_id in specials.items() if tokens[token_id]]:
        raise UserError(f"the special token {taken[0][:40]!r} has the id {specials[taken[0]]}, which is a token's.")


def check_ids(ids: Mapping[str, object], size: int) -> None:
    """Checks that ids, by name, are whole numbers from 0 to ``size`` - 1.

    Raises:
        UserError: names the first wrong one.
    """
    for name, token_id in ids.items():
        if type(token_id) is not int or not 0 <= token_id < size:
            raise UserError(f"the token {str(name)[:40]!r} has the id {token_id!r}, and ids must be 0 to {size - 1}.")


def _visible_bytes() -> str:
    """GPT-2's printable characters for bytes: a printable latin-1 byte is itself, the others are U+0100, U+0101, ..."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: chr(0x100 + n) for n, byte in enumerate(others)}
    return "".join(stand_ins.get(byte, chr(byte)) for byte in range(256))


_VISIBLE = _visible_bytes()
_TO_VISIBLE = str.maketrans(dict(enumerate(_VISIBLE)))
_FROM_VISIBLE = str.maketrans({visible: chr(byte) for byte, visible in enumerate(_VISIBLE)})


def to_visible(token: str) -> str:
    """A token with one latin-1 character for each byte as Hugging Face writes it, such as ``Ġthe``."""
    return token.translate(_TO_VISIBLE)


def from_visible(token: str) -> str:
    """The inverse of `to_visible`. A token that is not byte-level raises `UserError`."""
    if not _FROM_VISIBLE.keys() >= set(map(ord, token)):
        raise UserError(f"the token {token!r} is not byte-level, so it is not of a tokenizer that this project runs.")
    return token.translate(_FROM_VISIBLE)


def special_tokens(specials: dict[str, int]) -> list[dict[str, Any]]:
    """The ``added_tokens`` of a Hugging Face ``tokenizer.json``."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    by_id = sorted(specials.items(), key=lambda special: special[1])
    return [{"id": token_id, "content": name, **flags, "special": True} for name, token_id in by_id]


#: Hugging Face's steps that put a space before a text, and that remove it again.
PREPEND: dict[str, Any] = {"type": "Prepend", "prepend": " "}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def huggingface_state(
    model: dict[str, Any], pattern: str, specials: dict[str, int], prefix_space: bool = False
) -> dict[str, Any]:
    """The content of a Hugging Face ``tokenizer.json`` with ``model``: it splits by ``pattern``, then into bytes."""
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
    """The tokenizer object of the `tokenizers` library for the content of a ``tokenizer.json``.

    Raises:
        UserError: the installed version cannot read it, or a regular expression is wrong.
    """
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(state))
    except Exception as error:  # the library raises no class of its own
        raise UserError(
            f"the installed tokenizers {tokenizers.__version__} cannot read it ({error}); upgrade that library, or "
            "write the file anew with this version of it."
        ) from None
