"""Characters of one long text."""

from typing import Any, Literal

from datamodules.base import TextDataModule
from datamodules.prepare import NewTokenizer, Recipe
from datamodules.sources import Source, open_source


class CharDataModule(TextDataModule):
    """Windows of text, one token a character, split into contiguous parts.

    The vocabulary is the sorted characters of all splits. That tells the model no more of the validation text than that
    its characters exist, and a person's first run does not fail on a rare sign near the end of their file.

    Args:
        source: ``embedded`` (what None means), a file, folder or glob, or the name of a download; of several, each
            starts on a new line.
        val_source: text for validation, instead of a part of ``source``.
        test_source: text for the test split, instead of a part of ``source``.
        val_fraction: share of the characters of ``source`` that is validation; it follows the training part.
        test_fraction: share of the characters of ``source`` that is the test split, at its end.
        unknown: what a character that no split holds does in prompts and in ``predict_source``: ``error`` names it,
            ``unk`` adds an id for all such.
        **options: what every datamodule takes.
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
        """The text cut at character positions, and a vocabulary of all of it."""
        tokenizer = NewTokenizer("char", train_on="all", eos=False, unknown=self.unknown)
        val, test = (None if spec is None else self._open(spec) for spec in (self.val_source, self.test_source))
        return Recipe.contiguous(
            tokenizer, (self._open(self.source), val, test), (self.val_fraction, self.test_fraction)
        )

    def open_predict_source(self, spec: str) -> Source:
        """Each file is a document."""
        return self._open(spec)

    def _open(self, spec: str | list[str]) -> Source:
        return open_source(spec, cache_dir=self.cache_dir)
