"""The datamodule for the characters of one long text."""

from typing import Any, Literal

from datamodules.base import TextDataModule
from datamodules.prepare import NewTokenizer, Recipe
from datamodules.sources import Source, open_source


class CharDataModule(TextDataModule):
    """Windows of text with one token for each character, split into contiguous parts.

    The vocabulary is the sorted characters of all splits. From the validation text the model thus knows which
    characters exist, and nothing else. Otherwise a rare character near the end of a file would stop a run.

    Args:
        source: a file, folder or glob, the name of a download, or a list of these, which are joined by newlines; None
            is ``embedded``, the documentation of the running Python.
        val_source: text to validate on, instead of a part of ``source``.
        test_source: text to test on, instead of a part of ``source``.
        val_fraction: share of the characters of ``source`` to validate on; it follows the training part.
        test_fraction: share of the characters of ``source`` to test on, at its end.
        unknown: how to treat a character that no split has, in prompts and in ``predict_source``: ``error`` stops
            and names it, ``unk`` replaces it by the token ``<unk>``.
        **options: the options of every datamodule.
    """

    def __init__(
        self,
        source: str | list[str] | None = None,
        val_source: str | list[str] | None = None,
        test_source: str | list[str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        unknown: Literal["error", "unk"] = "error",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source = "embedded" if source is None else source
        self.val_source, self.test_source = val_source, test_source
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.unknown = unknown

    def recipe(self) -> Recipe:
        """The text, cut at character positions, and a vocabulary of all its characters."""
        tokenizer = NewTokenizer("char", train_on="all", eos=False, unknown=self.unknown)
        return Recipe.contiguous(tokenizer, self.opened_sources(), (self.val_fraction, self.test_fraction))

    def open_text(self, spec: str | list[str]) -> Source:
        """The source that ``spec`` names; each file is a document."""
        return open_source(spec, cache_dir=self.cache_dir)
