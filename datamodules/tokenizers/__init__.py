"""Tokenizers behind one small interface. Nothing heavy is imported before a tokenizer needs it, and torch never is."""

from typing import Any

from datamodules.errors import UserError
from datamodules.tokenizers.base import END_MARK, Tokenizer
from datamodules.tokenizers.simple import ByteTokenizer, CharTokenizer

__all__ = ["END_MARK", "ByteTokenizer", "CharTokenizer", "Tokenizer", "tokenizer_from_dict"]


def tokenizer_from_dict(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `Tokenizer.to_dict` described: same ids, no file and no network needed."""
    options = {key: value for key, value in state.items() if key != "kind"}
    match state.get("kind"):
        case "char":
            return CharTokenizer(**options)
        case "byte":
            return ByteTokenizer(**options)
        case kind:
            raise UserError(f"The tokenizer kind {kind!r} is not known; this file was made by another version.")
