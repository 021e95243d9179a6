"""The datamodule for any text with any tokenizer."""

from typing import Any

from datamodules.prepare import Recipe
from datamodules.sources import Documents
from datamodules.subword import SubwordDataModule


class BPEDataModule(SubwordDataModule):
    """Any text with any tokenizer, split into contiguous parts. EOS tokens are before, between and after documents.

    Args:
        source: a file, folder or glob, the name of a download or of a data set of the hub, or a list; None is
            ``embedded``, the documentation of the running Python.
        val_fraction: share of the characters of ``source`` to validate on; it follows the training part.
        test_fraction: share of the characters of ``source`` to test on, at its end.
        **options: the options of `SubwordDataModule`; by default a document is a whole file.
    """

    default_documents: Documents = "file"

    def __init__(
        self,
        source: str | list[str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__("embedded" if source is None else source, **options)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def recipe(self) -> Recipe:
        """The text, cut at character positions."""
        fractions = self.val_fraction, self.test_fraction
        return Recipe.contiguous(self.chosen_tokenizer(), self.opened_sources(), fractions)
