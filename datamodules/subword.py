"""The base class of the datamodules for any text with any tokenizer."""

from typing import Any, Literal, cast

from datamodules.base import TextDataModule
from datamodules.errors import UserError
from datamodules.prepare import Kind, NewTokenizer
from datamodules.sources import Documents, Source, open_source
from datamodules.tokenizers import PatternName, Tokenizer, open_tokenizer

_TRAIN_ON: Literal["train"] = "train"
_PATTERN: PatternName = "cl100k"


class SubwordDataModule(TextDataModule):
    """Any text with any tokenizer. A subclass chooses how the text is split.

    Args:
        source: a file, folder or glob, the name of a download or of a data set of the hub
            (``hf:OWNER/NAME/CONFIG/SPLIT@REVISION``), or a list of files.
        val_source: text to validate on, all of it, instead of a part of ``source``.
        test_source: text to test on, all of it, instead of a part of ``source``.
        documents: what a document is: a whole ``file``, a ``line``, or a value in a ``column`` of a table; None is a
            file, for headlines a line.
        column: the column to read, with ``documents: column``.
        strip: whether to remove white space at both ends of each document.
        tokenizer: ``bpe`` or ``unigram``, which are trained once and kept with the tokens; ``wordpiece``, likewise, to
            compare with a BERT; ``byte``; ``char``; a tokenizer file; or an encoding of tiktoken: ``gpt2``,
            ``cl100k_base``, ``o200k_base``.
        vocab_size: number of tokens of a trained tokenizer, the EOS token included; None is 16,000, of a WordPiece
            30,522.
        train_tokenizer_on: the text to train a tokenizer on: the ``train`` split, or ``all`` splits, which leaks a
            little of the validation text.
        pattern: how text is split into words, which no token of a trained tokenizer crosses: as ``cl100k`` or ``gpt2``
            do; ``none`` does not split.
        prefix_space: whether a trained tokenizer encodes each document with a space before it. Its first word is then
            the same token as inside a text.
        subword_sampling: smoothing exponent of subword regularization: in each epoch a unigram tokenizer samples
            another segmentation of the training text. 0 always takes the most likely one, as validation does. 1 samples
            by likelihood, and 0.2 much more evenly. A million words take about 6 s at the start and 0.5 s an epoch in
            each process.
        **options: the options of every datamodule.
    """

    default_documents: Documents

    def __init__(
        self,
        source: str | list[str],
        val_source: str | list[str] | None = None,
        test_source: str | list[str] | None = None,
        documents: Documents | None = None,
        column: str | None = None,
        strip: bool = False,
        tokenizer: str = "bpe",
        vocab_size: int | None = None,
        train_tokenizer_on: Literal["train", "all"] = _TRAIN_ON,
        pattern: PatternName = _PATTERN,
        prefix_space: bool = False,
        subword_sampling: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source, self.val_source, self.test_source = source, val_source, test_source
        self.documents, self.column, self.strip = documents or self.default_documents, column, strip
        self.tokenizer_name, self.wanted_vocab_size = tokenizer, vocab_size
        self.train_tokenizer_on, self.pattern, self.prefix_space = train_tokenizer_on, pattern, prefix_space
        self.subword_sampling = subword_sampling

    def open_text(self, spec: str | list[str]) -> Source:
        """See `TextDataModule`."""
        return open_source(
            spec, documents=self.documents, column=self.column, strip=self.strip, cache_dir=self.cache_dir
        )

    def chosen_tokenizer(self) -> Tokenizer | NewTokenizer:
        """The tokenizer of the options, with an EOS token."""
        name, vocab_size = self.tokenizer_name, self.wanted_vocab_size
        if name in ("bpe", "unigram"):
            kind, size = cast(Kind, name), 16_000 if vocab_size is None else vocab_size
            return NewTokenizer(
                kind, size, self.train_tokenizer_on, pattern=self.pattern, prefix_space=self.prefix_space
            )
        for option, is_set in (
            ("prefix_space", self.prefix_space),
            ("pattern", self.pattern != _PATTERN),
            ("train_tokenizer_on", self.train_tokenizer_on != _TRAIN_ON),
            ("vocab_size", name == "char" and vocab_size is not None),
        ):
            if is_set:
                raise UserError(f"{option} is for a bpe or unigram that is trained here, not for {name}: leave it out.")
        if name == "wordpiece":
            return NewTokenizer("wordpiece", vocab_size)
        if name == "char":
            return NewTokenizer("char", None, "all")  # see CharDataModule
        return self.named_tokenizer(name, lambda: open_tokenizer(name), vocab_size)
