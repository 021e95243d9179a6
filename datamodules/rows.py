"""Rows: a token store cut into pieces of T tokens, in an order that is a pure function of (seed, epoch, position).

No code here draws from a global random state, and nothing is shuffled in memory. A row's position in the epoch comes
from a permutation that costs the same for ten rows and ten billion.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from datamodules.permutation import permute, random_words
from datamodules.tokens import TokenStream
from datamodules.windowed_order import WindowedOrder, equal_windows

IGNORE_INDEX = -100
_ROW_ORDER, _OFFSET, DOCUMENT_ORDER = 0, 1, 2  # independent random streams of one epoch
_WINDOWED_ROWS, WINDOWED_DOCUMENTS = (4, 5), (6, 7)  # 3 is that of `resegmented_rows`


class Rows(ABC):
    """Text cut into rows of T tokens.

    Attributes:
        count: number of rows, the same in every epoch, so that every epoch has the same number of steps.
        seed: decides the order of the rows and where they are cut. None means neither shuffling nor an offset, as in
            evaluation and in ordered training.
        windows: number of windows of the text that are read one after the other; rows are shuffled inside of each.
    """

    count: int
    seed: int | None
    windows: int = 1
    _order: WindowedOrder | None = None

    @abstractmethod
    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of a batch for the given row numbers (B,); -1 is an empty row, in which nothing is scored."""

    def shuffled(self, epoch: int, position: np.ndarray) -> np.ndarray:
        """The row numbers (B,) at positions (B,) of the epoch's random order."""
        assert self.seed is not None
        if self.windows == 1:
            return permute(position, self.count, random_words(self.seed, epoch, _ROW_ORDER))
        if self._order is None:
            self._order = WindowedOrder(equal_windows(self.count, min(self.windows, self.count)), _WINDOWED_ROWS)
        return self._order.items(position, self.seed, epoch)

    def prepare(self, epoch: int) -> None:
        """Computes what all batches of an epoch share. A loader calls it before worker processes start, so that they
        inherit the result; without it each process computes it in its first `batch`.
        """
        return


class StreamRows(Rows):
    """Rows of one stream of tokens: position p of the stream is an input, position p + 1 its target.

    Args:
        store: the split.
        block_size: T.
        seed: as in `Rows`.
        mask_first: number of targets at the start of each row (or document) that are left out of the loss.
    """

    def __init__(self, store: TokenStream, block_size: int, seed: int | None = None, mask_first: int = 0) -> None:
        self.store, self.block_size, self.seed, self.mask_first = store, block_size, seed, mask_first
        self.last = len(store.tokens) - 1  # position of the last target
        self.columns = np.arange(block_size)
        self.pad_id = store.eos_id or 0

    def offset(self, epoch: int) -> int:
        """Length of the first row of an epoch, 1 to T, which moves all later cuts. Without a seed it is T."""
        if self.seed is None:
            return self.block_size
        return 1 + int(random_words(self.seed, epoch, _OFFSET, words=1)[0] % np.uint64(self.block_size))

    def slices(self, epoch: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First input position (B,) and number of targets (B,) of rows that lie side by side, from position 0 on.

        The rows cover the input positions 0 to ``last`` - 1. The first row ends at the offset.
        """
        first = self.offset(epoch) + (rows - 1) * self.block_size  # (B,); row 0 begins before the stream
        low, high = np.maximum(first, 0), np.minimum(first + self.block_size, self.last)
        return low, np.where(rows < 0, 0, np.maximum(high - low, 0))

    def tiling_rows(self) -> int:
        """Number of rows that `slices` needs at every offset. An offset that moves can need one row more."""
        return -(-self.last // self.block_size) + (self.seed is not None)

    def finish(
        self, tokens: np.ndarray, length: np.ndarray, unscored: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch, (B, T) each.

        Args:
            tokens: inputs and, one to the right, their targets, (B, T + 1).
            length: number of targets of each row, (B,); the positions behind them are padding.
            unscored: targets that are left out of the loss, (B, T).
        """
        mask = self.columns < length[:, None]  # (B, T)
        scored = mask if unscored is None else mask & ~unscored
        return {
            "input_ids": np.where(mask, tokens[:, :-1], self.pad_id),
            "targets": np.where(scored, tokens[:, 1:], IGNORE_INDEX),
            "attention_mask": mask,
        }

    def gather(self, position: np.ndarray) -> np.ndarray:
        """Ids at the given positions of the stream, int64. A position behind the end gives the last id."""
        return self.store.tokens[np.minimum(position, self.last)].astype(np.int64)


class Windows(StreamRows):
    """Windows of T tokens of the stream, across the borders of documents.

    Args:
        store: the split.
        block_size: T.
        stride: distance of two windows, 1 to T. The first window starts at 0, and the last one is clipped. None puts
            windows side by side and scores every target exactly once; with a seed each epoch has another offset.
        seed: as in `Rows`.
        mask_first: as in `StreamRows`, of each window.
        once: whether a target of two overlapping windows is scored only in the first (evaluation). Each target but the
            first T then has at least T - ``stride`` tokens before it.
    """

    def __init__(
        self,
        store: TokenStream,
        block_size: int,
        stride: int | None = None,
        seed: int | None = None,
        mask_first: int = 0,
        once: bool = False,
    ) -> None:
        super().__init__(store, block_size, seed, mask_first)
        self.stride, self.once = stride, once
        self.count = self.tiling_rows() if stride is None else int(rows_needed(self.last, block_size, stride))

    def slices(self, epoch: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First input position (B,) and number of targets (B,) of each window."""
        if self.stride is None:
            return super().slices(epoch, rows)
        low = np.maximum(rows * self.stride, 0)
        return low, np.where(rows < 0, 0, np.minimum(self.block_size, self.last - low))

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids, targets, attention_mask (B, T)."""
        low, length = self.slices(epoch, rows)
        tokens = self.gather(low[:, None] + np.arange(self.block_size + 1))  # (B, T + 1)
        overlap = self.block_size - self.stride if self.once and self.stride else 0  # targets of the window before
        unscored = self.columns < np.where(rows > 0, overlap, 0)[:, None] + self.mask_first  # (B, T)
        return self.finish(tokens, length, unscored)


def rows_needed(length: Any, block_size: int, stride: int) -> Any:
    """Number of rows, ``stride`` apart, that hold ``length`` targets, an int or (n,); only the last may be short."""
    return 1 + -(-np.maximum(length - block_size, 0) // stride)


class Padded(StreamRows):
    """One document in each row: EOS token, document, EOS token, then padding.

    A document of more than T targets takes several rows.

    Args:
        store: the split.
        block_size: T.
        seed: as in `Rows`.
        mask_first: as in `StreamRows`, of each document.
        val_stride: distance of the rows of one document. A target that two rows hold is scored only in the first. None
            puts the rows side by side.
    """

    def __init__(
        self,
        store: TokenStream,
        block_size: int,
        seed: int | None = None,
        mask_first: int = 0,
        val_stride: int | None = None,
    ) -> None:
        super().__init__(store, block_size, seed, mask_first)
        self.stride = val_stride or block_size
        self.length = np.diff(store.starts) - (store.eos_id is None)  # targets of each document, (documents,)
        rows = np.where(self.length > 0, rows_needed(self.length, block_size, self.stride), 0)
        self.first_row = np.concatenate([[0], np.cumsum(rows)])  # of each document, (documents + 1,)
        self.count = int(self.first_row[-1])

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids, targets, attention_mask (B, T), and document (B,): its number, -1 for an empty row."""
        document = np.searchsorted(self.first_row, rows, side="right") - 1  # (B,)
        done = (rows - self.first_row[document]) * self.stride  # where the row begins in its document, (B,)
        length = np.where(rows < 0, 0, np.minimum(self.length[document] - done, self.block_size))
        tokens = self.gather(
            np.maximum(self.store.starts[document] + done, 0)[:, None] + np.arange(self.block_size + 1)
        )
        overlap = np.where(done > 0, self.block_size - self.stride, 0)  # targets of the row before, (B,)
        unscored = (self.columns < overlap[:, None]) | (done[:, None] + self.columns < self.mask_first)
        return {**self.finish(tokens, length, unscored), "document": document}
