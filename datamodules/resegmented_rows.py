"""Rows of a text that comes in other tokens in each epoch."""

from collections.abc import Callable
from itertools import count

import numpy as np

from datamodules.batches import Rows, StreamRows
from datamodules.tokenizers.sampling import SampledTexts
from datamodules.tokens import TokenArrays, TokenStream

_SEGMENTATION = 3  # a random stream of its own beside those in `batches`


class ResegmentedRows(Rows):
    """Rows of which each epoch has its own segmentation, a pure function of (seed, epoch).

    Segmentations differ in length, so ``count`` has room for 0.4 % more rows than epoch 0 takes. Those that an epoch
    does not need are empty; an epoch that would need more is drawn again, which never happens with long texts.

    Args:
        texts: the training documents.
        cut: makes the rows of one segmentation; those of all epochs must be of one kind and seed.
        seed: decides the segmentations, with the epoch.
    """

    def __init__(self, texts: SampledTexts, cut: Callable[[TokenStream], StreamRows], seed: int) -> None:
        self._texts, self._cut, self._seed = texts, cut, seed
        first = self._drawn(0, 0)
        self.seed = first.seed
        self.count = first.count + first.count // 256 + 1
        self._current = 0, first

    def prepare(self, epoch: int) -> None:
        """Segments the text, unless that was the last thing done."""
        if self._current[0] != epoch:
            draws = (self._drawn(epoch, attempt) for attempt in count())
            self._current = epoch, next(rows for rows in draws if rows.count <= self.count)
        self._current[1].prepare(epoch)

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """See `Rows`; keys are those of the kind of rows."""
        self.prepare(epoch)
        drawn = self._current[1]
        return drawn.batch(epoch, np.where(rows < drawn.count, rows, -1))

    def _drawn(self, epoch: int, attempt: int) -> StreamRows:
        tokens, starts = self._texts.draw(self._seed, epoch, _SEGMENTATION, attempt)
        return self._cut(TokenArrays(tokens, starts, self._texts.eos_id))
