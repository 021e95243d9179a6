"""Tokenizers as plain values and as JSON files."""

import json
import zlib
from pathlib import Path
from typing import Any

from datamodules.errors import UserError
from datamodules.files import expanded, write_text
from datamodules.tokenizers.base import Tokenizer
from datamodules.tokenizers.bpe import ENCODINGS, BPETokenizer
from datamodules.tokenizers.byte_level import huggingface_state
from datamodules.tokenizers.huggingface import from_huggingface
from datamodules.tokenizers.nanogpt import from_meta
from datamodules.tokenizers.simple import ByteTokenizer, CharTokenizer
from datamodules.tokenizers.unigram import UnigramTokenizer
from datamodules.tokenizers.wordpiece import WordPieceTokenizer

#: A CRC-32 of the other keys. A tokenizer.json of Hugging Face's has none.
CHECKSUM = "checksum"

_CLASSES: dict[str, type[Tokenizer]] = {
    "char": CharTokenizer,
    "byte": ByteTokenizer,
    "bpe": BPETokenizer,
    "unigram": UnigramTokenizer,
    "wordpiece": WordPieceTokenizer,
}


def tokenizer_from_dict(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer of `Tokenizer.to_dict`, with the same ids. It needs neither a file nor a network.

    Raises:
        UserError: values that `Tokenizer.to_dict` never gives, such as ids outside of the vocabulary.
    """
    options = dict(state)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise UserError(f"the tokenizer kind {kind!r} is not known; it must be one of {', '.join(_CLASSES)}.")
    try:
        return _CLASSES[kind](**options)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # options of another type, too few or more
        raise UserError(f"the {kind} tokenizer is damaged ({error}); make or download it again.") from None


def open_tokenizer(spec: str) -> Tokenizer:
    """A tokenizer that needs no training: ``gpt2``, ``cl100k_base``, ``o200k_base``, ``byte``, a tokenizer file,
    or nanoGPT's ``meta.pkl``.

    Raises:
        UserError: neither a name nor a file, or ranks that cannot be downloaded.
    """
    if spec in ENCODINGS:
        return BPETokenizer.from_encoding(spec)
    if spec == "byte":
        return ByteTokenizer(eos=True)
    if expanded(spec).is_file():
        return from_meta(expanded(spec)) if spec.endswith(".pkl") else load_tokenizer(spec)
    raise UserError(f"the tokenizer {spec!r} is neither a file nor one of {', '.join(ENCODINGS)}, byte.")


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes a JSON file for `load_tokenizer`, atomically and with a checksum, which is compared when it is read."""
    state = tokenizer.to_dict()
    write_text(path, json.dumps({**state, CHECKSUM: _checksum(state)}, ensure_ascii=False))


def _checksum(state: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def is_written_here(path: Path) -> bool:
    """Whether a file comes from `save_tokenizer`, or is a ``tokenizer.json`` of `to_huggingface`.

    The ``tokenizer.json`` of published byte-level models differs from the latter in its post-processor.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(state, dict):
        return False
    exported = state.keys() == huggingface_state({}, "", {}).keys() and state["post_processor"] is None
    return exported or state.get("kind") in list(_CLASSES)


def load_tokenizer(path: str | Path, *, check: bool = True) -> Tokenizer:
    """The tokenizer in a file of `save_tokenizer`, or in Hugging Face's ``tokenizer.json``.

    Args:
        path: the file.
        check: whether to check that it can encode, which takes 0.2 s for 20,000 unigrams.

    Raises:
        UserError: no such file, not a tokenizer, or one whose ids cannot be reproduced exactly.
    """
    try:
        state = json.loads(expanded(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; make one with `python -m lit_gpt tokenizer train`.") from None
    except OSError as error:
        raise UserError(f"the file {path} cannot be read ({error.strerror}); give one that can.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); give a tokenizer of ours or a tokenizer.json.") from None
    if not isinstance(state, dict) or not {"kind", "model"} & state.keys():
        raise UserError(f"{path} is no tokenizer; give one of ours or a Hugging Face tokenizer.json.")
    if CHECKSUM in state and state.pop(CHECKSUM) != _checksum(state):
        raise UserError(f"{path} is damaged (it differs from its checksum); make or download it again.")
    try:
        tokenizer = from_huggingface(state) if "model" in state else tokenizer_from_dict(state)
        if check:
            tokenizer.encode("")  # it builds its tables now, so that an error comes before the first text does
        return tokenizer
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); make or download it again.") from None
