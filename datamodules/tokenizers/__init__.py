"""Tokenizers with one small interface. A library is imported when a tokenizer first needs it; torch never is."""

from datamodules.tokenizers.base import EOS_TOKEN, Tokenizer
from datamodules.tokenizers.bpe import ENCODINGS, PATTERNS, BPETokenizer, PatternName
from datamodules.tokenizers.files import (
    is_written_here,
    load_tokenizer,
    open_tokenizer,
    save_tokenizer,
    tokenizer_from_dict,
)
from datamodules.tokenizers.huggingface import from_huggingface, to_huggingface
from datamodules.tokenizers.parts import token_parts
from datamodules.tokenizers.simple import ByteTokenizer, CharTokenizer
from datamodules.tokenizers.training import train_tokenizer
from datamodules.tokenizers.unigram import UnigramTokenizer
from datamodules.tokenizers.wordpiece import WordPieceTokenizer, train_wordpiece

__all__ = [
    "ENCODINGS",
    "EOS_TOKEN",
    "PATTERNS",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "PatternName",
    "Tokenizer",
    "UnigramTokenizer",
    "WordPieceTokenizer",
    "from_huggingface",
    "is_written_here",
    "load_tokenizer",
    "open_tokenizer",
    "save_tokenizer",
    "to_huggingface",
    "token_parts",
    "tokenizer_from_dict",
    "train_tokenizer",
    "train_wordpiece",
]
