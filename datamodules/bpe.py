"""Any text with any tokenizer."""

from pathlib import Path
from typing import Any, Literal

from datamodules.base import TextDataModule
from datamodules.errors import UserError
from datamodules.prepare import NewTokenizer, Recipe
from datamodules.sources import Documents, Source, open_source
from datamodules.splitting import Split
from datamodules.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer, named_encoding

_TRAINED = ("bpe", "unigram")


def choose_tokenizer(
    name: str, vocab_size: int | None = None, train_on: Literal["train", "all"] = "train"
) -> Tokenizer | NewTokenizer:
    """The tokenizer that an option names, with an end mark.

    Args:
        name: ``bpe`` or ``unigram`` (trained on the text), ``bytes``, ``chars``, the path of a tokenizer file, or an
            encoding of tiktoken such as ``gpt2``.
        vocab_size: size of one that is trained; for any other, the size it must have.
        train_on: what one that is made from the text sees.
    """
    if name in _TRAINED:
        return NewTokenizer(name, 16_000 if vocab_size is None else vocab_size, train_on)
    if name == "chars":
        return NewTokenizer("char", None, "all")  # see CharDataModule
    tokenizer = ByteTokenizer(eos=True) if name == "bytes" else _made(name)
    if vocab_size not in (None, tokenizer.vocab_size):
        raise UserError(
            f"The tokenizer {name} has {tokenizer.vocab_size} tokens, not the {vocab_size} of vocab_size; leave that out."
        )
    return tokenizer


def _made(name: str) -> Tokenizer:
    return load_tokenizer(name) if Path(name).expanduser().is_file() else named_encoding(name)


class BPEDataModule(TextDataModule):
    """Any text with any tokenizer, split into contiguous parts, with an end mark between and around its documents.

    Args:
        source: ``embedded``, a file, folder or glob, or the name of a download, or a list of such.
        val_source: text for validation, instead of a part of ``source``.
        test_source: text for the test split, instead of a part of ``source``.
        val_fraction: share of the characters of ``source`` that is validation; it follows the training part.
        test_fraction: share of the characters of ``source`` that is the test split, at its end.
        tokenizer: ``bpe`` or ``unigram``, trained once and kept beside the tokens; ``bytes``; ``chars``; a tokenizer file;
            or an encoding of tiktoken, such as ``gpt2``.
        vocab_size: number of tokens of a trained tokenizer, the end mark included; None is 16,000.
        train_tokenizer_on: the text a tokenizer is trained on: ``train`` alone, or ``all`` splits, which leaks a little.
        documents: what a document is: a whole ``file``, a ``line``, or a ``column`` of a table.
        column: the column to read with ``documents: column``.
        strip: whether to drop white space at both ends of each document.
        **options: what every datamodule takes.
    """

    def __init__(
        self,
        source: str | list[str] = "embedded",
        val_source: str | list[str] | None = None,
        test_source: str | list[str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        tokenizer: str = "bpe",
        vocab_size: int | None = None,
        train_tokenizer_on: Literal["train", "all"] = "train",
        documents: Documents = "file",
        column: str | None = None,
        strip: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source, self.val_source, self.test_source = source, val_source, test_source
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.tokenizer_name, self.wanted_vocab_size = tokenizer, vocab_size
        self.train_tokenizer_on = train_tokenizer_on
        self.documents, self.column, self.strip = documents, column, strip

    def recipe(self) -> Recipe:
        """The text cut at character positions."""
        return Recipe(
            source=self._open(self.source),
            tokenizer=choose_tokenizer(self.tokenizer_name, self.wanted_vocab_size, self.train_tokenizer_on),
            split=Split(
                val=0.0 if self.val_source else self.val_fraction,
                test=0.0 if self.test_source else self.test_fraction,
            ),
            val_source=self._open(self.val_source) if self.val_source else None,
            test_source=self._open(self.test_source) if self.test_source else None,
        )

    def open_predict_source(self, spec: str) -> Source:
        """Read like the training text."""
        return self._open(spec)

    def _open(self, spec: str | list[str]) -> Source:
        return open_source(spec, documents=self.documents, column=self.column, strip=self.strip)
