"""Many short documents: titles, messages, one a line or one a row of a table."""

from typing import Any, Literal

from datamodules.base import RowKind, TextDataModule
from datamodules.bpe import choose_tokenizer
from datamodules.prepare import Recipe
from datamodules.sources import Documents, Source, open_source
from datamodules.splitting import Split
from datamodules.tokenizers import PatternName


class HeadlinesDataModule(TextDataModule):
    """Documents kept whole: each in one split, and packed into rows that attend inside a document only.

    Args:
        source: ``embedded_headlines`` (synthetic; what None means), a file, folder or glob, the name of a download, or
            a list of such.
        documents: what a document is: a ``line`` (what None means), a whole ``file``, or a ``column`` of a table.
        column: the column to read with ``documents: column``.
        strip: whether to drop white space at both ends of each document.
        deduplicate: whether only the first of equal documents is kept; this happens before the split.
        split: ``order`` takes the last documents for validation, ``shuffle`` a random choice.
        split_seed: decides that choice, whatever ``seed`` is.
        val_fraction: share of the documents that is validation.
        test_fraction: share of the documents that is the test split, after the validation part.
        val_documents: number of documents for validation, instead of a share.
        test_documents: likewise for the test split.
        tokenizer: as in `BPEDataModule`.
        vocab_size: as in `BPEDataModule`.
        train_tokenizer_on: as in `BPEDataModule`.
        pattern: as in `BPEDataModule`.
        **options: what every datamodule takes.
    """

    default_rows: RowKind = "packed"

    def __init__(
        self,
        source: str | list[str] | None = None,
        documents: Documents | None = None,
        column: str | None = None,
        strip: bool = False,
        deduplicate: bool = False,
        split: Literal["order", "shuffle"] = "order",
        split_seed: int = 1337,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        val_documents: int | None = None,
        test_documents: int | None = None,
        tokenizer: str = "bpe",
        vocab_size: int | None = None,
        train_tokenizer_on: Literal["train", "all"] = "train",
        pattern: PatternName = "cl100k",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source, self.documents = source or "embedded_headlines", documents or "line"
        self.column, self.strip = column, strip
        self.split = Split(
            by="documents",
            val=val_fraction if val_documents is None else val_documents,
            test=test_fraction if test_documents is None else test_documents,
            shuffle=split_seed if split == "shuffle" else None,
            deduplicate=deduplicate,
        )
        self.tokenizer_name, self.wanted_vocab_size = tokenizer, vocab_size
        self.train_tokenizer_on, self.pattern = train_tokenizer_on, pattern

    def recipe(self) -> Recipe:
        """Whole documents, dealt out to the splits."""
        tokenizer = choose_tokenizer(self.tokenizer_name, self.wanted_vocab_size, self.train_tokenizer_on, self.pattern)
        return Recipe(self.open_predict_source(self.source), tokenizer, self.split)

    def open_predict_source(self, spec: str | list[str]) -> Source:
        """Read like the training text."""
        return open_source(
            spec, documents=self.documents, column=self.column, strip=self.strip, cache_dir=self.cache_dir
        )
