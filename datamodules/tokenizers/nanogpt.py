"""The characters of a data set that nanoGPT has prepared, from its ``meta.pkl``."""

import pickle
from pathlib import Path
from typing import Any, NoReturn

from datamodules.errors import UserError
from datamodules.tokenizers.simple import CharTokenizer

_MAX_BYTES = 64_000_000  # a character takes about 20


class _PlainValues(pickle.Unpickler):
    """Reads dicts, strings and numbers, and refuses whatever a pickle can import, which could run any code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def from_meta(path: Path) -> CharTokenizer:
    """The tokenizer of a ``meta.pkl``: one token for each character, in code point order.

    Raises:
        UserError: another pickle, or characters whose ids are in another order.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size > _MAX_BYTES:
                raise pickle.UnpicklingError("it is too large")
            meta: Any = _PlainValues(file).load()
        chars = [meta["itos"][i] for i in range(len(meta["itos"]))]
        tokenizer = CharTokenizer(chars)
    except (pickle.UnpicklingError, LookupError, TypeError, ValueError, EOFError, AttributeError, OSError) as error:
        raise UserError(f"{path} is no meta.pkl of nanoGPT's with characters ({error}): give another.") from None
    if chars != list(tokenizer.chars):
        raise UserError(f"{path} has characters in another order than by code point: prepare the text here instead.")
    return tokenizer
