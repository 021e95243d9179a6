"""Rows of a text with another sampled segmentation into tokens in each epoch (subword regularization)."""

from collections.abc import Callable
from itertools import count

import numpy as np

from datamodules.rows import Rows, StreamRows
from datamodules.tokenizers.sampling import SampledTexts
from datamodules.tokens import TokenArrays, TokenStream

_SEGMENTATION = 3  # an independent random stream, beside those of `batches`


class ResegmentedRows(Rows):
    """Rows whose text has another segmentation in each epoch, a pure function of (seed, epoch).

    Segmentations differ in length, but all epochs must have equally many rows. So ``count`` is 0.4 % more than epoch 0
    needs. An epoch that needs fewer has empty rows. An epoch that needs more is sampled again, which does not happen
    with long texts: their relative differences in length are far smaller.

    Args:
        texts: the training documents.
        cut: makes the rows of one segmentation, of the same kind and with the same seed in each epoch.
        seed: decides the segmentations, with the epoch.
    """

    def __init__(self, texts: SampledTexts, cut: Callable[[TokenStream], StreamRows], seed: int) -> None:
        self._texts, self._cut, self._seed = texts, cut, seed
        first = self._sampled_rows(0, 0)
        self.seed, self.windows = first.seed, first.windows
        self.count = first.count + first.count // 256 + 1
        self._current = 0, first

    def prepare(self, epoch: int) -> None:
        """Samples the segmentation of an epoch, unless it is the current one."""
        if self._current[0] != epoch:
            samples = (self._sampled_rows(epoch, attempt) for attempt in count())
            self._current = epoch, next(rows for rows in samples if rows.count <= self.count)
        self._current[1].prepare(epoch)

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """See `Rows`."""
        self.prepare(epoch)
        current = self._current[1]
        return current.batch(epoch, np.where(rows < current.count, rows, -1))

    def _sampled_rows(self, epoch: int, attempt: int) -> StreamRows:
        tokens, starts = self._texts.draw(self._seed, epoch, _SEGMENTATION, attempt)
        return self._cut(TokenArrays(tokens, starts, self._texts.eos_id))
