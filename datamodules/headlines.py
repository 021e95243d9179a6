"""Many short documents: titles, messages, one a line or one a row of a table."""

from dataclasses import replace
from typing import Any, Literal

from datamodules.base import RowKind, TextDataModule
from datamodules.bpe import choose_tokenizer
from datamodules.errors import UserError
from datamodules.prepare import Recipe
from datamodules.scoring import ScoredText, challenge_coverage
from datamodules.sources import Documents, Source, open_source
from datamodules.splitting import Split
from datamodules.tokenizers import PatternName


class HeadlinesDataModule(TextDataModule):
    """Documents kept whole: each in one split, and packed into rows that attend inside a document only.

    Args:
        source: ``embedded_headlines`` (synthetic; what None means), a file, folder or glob, the name of a download, or
            a list of such.
        val_source: documents for validation, all of them, instead of a part of ``source``.
        test_source: documents for the test split, all of them, instead of a part of ``source``.
        documents: what a document is: a ``line`` (what None means), a whole ``file``, or a ``column`` of a table.
        column: the column to read with ``documents: column``.
        strip: whether to drop white space at both ends of each document.
        deduplicate: whether only the first of equal documents is kept; this happens before the split,
            and not to ``val_source`` and ``test_source``.
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
        subword_sampling: as in `BPEDataModule`.
        **options: what every datamodule takes.
    """

    default_rows: RowKind = "packed"

    def __init__(
        self,
        source: str | list[str] | None = None,
        val_source: str | list[str] | None = None,
        test_source: str | list[str] | None = None,
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
        subword_sampling: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source, self.documents = source or "embedded_headlines", documents or "line"
        self.val_source, self.test_source = val_source, test_source
        self.column, self.strip = column, strip
        self.split = Split(
            by="documents",
            val=_held_out("val", val_source, val_fraction, val_documents),
            test=_held_out("test", test_source, test_fraction, test_documents),
            shuffle=split_seed if split == "shuffle" else None,
            deduplicate=deduplicate,
        )
        self.tokenizer_name, self.wanted_vocab_size = tokenizer, vocab_size
        self.train_tokenizer_on, self.pattern = train_tokenizer_on, pattern
        self.subword_sampling = subword_sampling

    def recipe(self) -> Recipe:
        """Whole documents, dealt out to the splits."""
        tokenizer = choose_tokenizer(self.tokenizer_name, self.wanted_vocab_size, self.train_tokenizer_on, self.pattern)
        val, test = (self.open_predict_source(spec) if spec else None for spec in (self.val_source, self.test_source))
        return Recipe(self.open_predict_source(self.source), tokenizer, self.split, val, test)

    def open_predict_source(self, spec: str | list[str]) -> Source:
        """Read like the training text."""
        return open_source(
            spec, documents=self.documents, column=self.column, strip=self.strip, cache_dir=self.cache_dir
        )

    def scored_text(self, split: str) -> ScoredText:
        """See `TextDataModule`; of val and test also the ``coverage``, for this module's tokens of a step."""
        text = super().scored_text(split)
        if split == "train_eval":
            return text
        return replace(text, coverage=challenge_coverage(len(self.stores[split]), self._rows_per_step() * self._size))


def _held_out(split: str, source: str | list[str] | None, fraction: float, documents: int | None) -> float | int:
    """The part of the source that a split takes: nothing where it has a source of its own."""
    if source and documents is not None:
        raise UserError(f"{split}_source and {split}_documents={documents} contradict each other: give one of them.")
    if source:
        return 0
    return fraction if documents is None else documents
