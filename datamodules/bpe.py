"""Any text with any tokenizer."""

from typing import Any, Literal, cast

from datamodules.base import TextDataModule
from datamodules.errors import UserError
from datamodules.prepare import Kind, NewTokenizer, Recipe
from datamodules.sources import Documents, Source, open_source
from datamodules.tokenizers import PatternName, Tokenizer, open_tokenizer


def choose_tokenizer(
    name: str,
    vocab_size: int | None = None,
    train_on: Literal["train", "all"] = "train",
    pattern: PatternName = "cl100k",
) -> Tokenizer | NewTokenizer:
    """The tokenizer that an option names, with an end mark.

    Args:
        name: ``bpe`` or ``unigram`` (trained on the text), ``byte``, ``char``, the path of a tokenizer file, or an
            encoding of tiktoken such as ``gpt2``.
        vocab_size: size of one that is trained; for any other, the size it must have.
        train_on: what one that is trained sees.
        pattern: where text is split before one is trained.
    """
    if name in ("bpe", "unigram"):
        return NewTokenizer(cast(Kind, name), vocab_size or 16_000, train_on, pattern=pattern)
    if name == "char":
        return NewTokenizer("char", None, "all")  # see CharDataModule
    tokenizer = open_tokenizer(name)
    if vocab_size not in (None, tokenizer.vocab_size):
        raise UserError(
            f"The tokenizer {name} has {tokenizer.vocab_size} tokens, not vocab_size {vocab_size}; leave that out."
        )
    return tokenizer


class BPEDataModule(TextDataModule):
    """Any text with any tokenizer, split into contiguous parts, with an end mark between and around its documents.

    Args:
        source: ``embedded`` (what None means), a file, folder or glob, or the name of a download, or a list of such.
        val_source: text for validation, instead of a part of ``source``.
        test_source: text for the test split, instead of a part of ``source``.
        val_fraction: share of the characters of ``source`` that is validation; it follows the training part.
        test_fraction: share of the characters of ``source`` that is the test split, at its end.
        tokenizer: ``bpe`` or ``unigram``, trained once and kept beside the tokens; ``byte``; ``char``; a tokenizer
            file; or an encoding of tiktoken: ``gpt2``, ``cl100k_base``, ``o200k_base``.
        vocab_size: number of tokens of a trained tokenizer, the end mark included; None is 16,000.
        train_tokenizer_on: the text a tokenizer is trained on: ``train``, or ``all`` splits, which leaks a little.
        pattern: where text is split before a tokenizer is trained: as ``cl100k`` or ``gpt2`` do, or ``none``, nowhere.
        subword_sampling: smoothing of the segmentations that a unigram tokenizer draws anew for the training text in
            each epoch: 0 takes the likeliest ones always (validation does in any case), 1 draws by their likelihood,
            0.2 from much flatter odds. A million words take about 8 s at the start and 0.6 s an epoch in each process.
        documents: what a document is: a whole ``file`` (what None means), a ``line``, or a ``column`` of a table.
        column: the column to read with ``documents: column``.
        strip: whether to drop white space at both ends of each document.
        **options: what every datamodule takes.
    """

    def __init__(
        self,
        source: str | list[str] | None = None,
        val_source: str | list[str] | None = None,
        test_source: str | list[str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        tokenizer: str = "bpe",
        vocab_size: int | None = None,
        train_tokenizer_on: Literal["train", "all"] = "train",
        pattern: PatternName = "cl100k",
        subword_sampling: float = 0.0,
        documents: Documents | None = None,
        column: str | None = None,
        strip: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source, self.val_source, self.test_source = source or "embedded", val_source, test_source
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.tokenizer_name, self.wanted_vocab_size = tokenizer, vocab_size
        self.train_tokenizer_on, self.pattern = train_tokenizer_on, pattern
        self.subword_sampling = subword_sampling
        self.documents, self.column, self.strip = documents or "file", column, strip

    def recipe(self) -> Recipe:
        """The text cut at character positions."""
        tokenizer = choose_tokenizer(self.tokenizer_name, self.wanted_vocab_size, self.train_tokenizer_on, self.pattern)
        val, test = (self._open(spec) if spec else None for spec in (self.val_source, self.test_source))
        return Recipe.contiguous(
            tokenizer, (self._open(self.source), val, test), (self.val_fraction, self.test_fraction)
        )

    def open_predict_source(self, spec: str) -> Source:
        """Read like the training text."""
        return self._open(spec)

    def _open(self, spec: str | list[str]) -> Source:
        return open_source(
            spec, documents=self.documents, column=self.column, strip=self.strip, cache_dir=self.cache_dir
        )
