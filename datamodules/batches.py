"""From a token store to batches: rows of three kinds, in an order that is a pure function of (seed, epoch, batch).

Nothing here draws from a global random state, and nothing is shuffled in memory: a row's place in the epoch is computed
by a permutation that costs the same for ten rows and ten billion. So one process and many see the same global batches,
a run resumes from two integers on any number of processes, and every batch can be built again alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.permutation import permute, random_words
from datamodules.tokens import TokenStream

IGNORE_INDEX = -100
Batch = dict[str, torch.Tensor]
_ROW_ORDER, _OFFSET, DOCUMENT_ORDER = 0, 1, 2  # independent random streams of one epoch


class Rows(ABC):
    """Text cut into ``count`` rows of T tokens; the same number in every epoch, so that every epoch has equal steps.

    ``seed`` is None for evaluation and ordered training: no shuffling and no offset, each target scored once.
    """

    count: int
    seed: int | None

    @abstractmethod
    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Builds the given rows (B,) of an epoch; -1 is an empty row, in which nothing is scored."""

    def prepare(self, epoch: int) -> None:
        """Does what an epoch's batches share, once before worker processes start; without it `batch` does."""
        return


class StreamRows(Rows):
    """Rows of one stream of tokens.

    Args:
        store: the split.
        block_size: T.
        seed: as in `Rows`.
        mask_first: targets at the start of each row (or document) that are left out of the loss.
    """

    def __init__(self, store: TokenStream, block_size: int, seed: int | None = None, mask_first: int = 0) -> None:
        self.store, self.block_size, self.seed, self.mask_first = store, block_size, seed, mask_first
        self.last = len(store.tokens) - 1  # position of the last target
        self.columns = np.arange(block_size)
        self.pad_id = store.eos_id or 0

    def offset(self, epoch: int) -> int:
        """Length of the first row, 1 to T: where the epoch's cuts lie. T, that is no offset, without a seed."""
        if self.seed is None:
            return self.block_size
        return 1 + int(random_words(self.seed, epoch, _OFFSET, words=1)[0] % np.uint64(self.block_size))

    def slices(self, epoch: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First input and number of targets (B,) of rows that tile positions 0 to ``last`` - 1, cut at the offset."""
        first = self.offset(epoch) + (rows - 1) * self.block_size
        low, high = np.maximum(first, 0), np.minimum(first + self.block_size, self.last)
        return low, np.where(rows < 0, 0, np.maximum(high - low, 0))

    def tiling_rows(self) -> int:
        """Number of rows that `slices` needs at any offset: one more than whole rows would take, if it moves."""
        return -(-self.last // self.block_size) + (self.seed is not None)

    def finish(
        self, tokens: np.ndarray, length: np.ndarray, unscored: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Inputs, shifted targets and mask (B, T), from tokens (B, T + 1) and each row's number of targets (B,)."""
        mask = self.columns < length[:, None]
        scored = mask if unscored is None else mask & ~unscored
        return {
            "input_ids": np.where(mask, tokens[:, :-1], self.pad_id),
            "targets": np.where(scored, tokens[:, 1:], IGNORE_INDEX),
            "attention_mask": mask,
        }

    def gather(self, position: np.ndarray) -> np.ndarray:
        """Ids at the given positions, int64; positions behind the end read the last id."""
        return self.store.tokens[np.minimum(position, self.last)].astype(np.int64)


class Windows(StreamRows):
    """Spans of the stream that know nothing of documents.

    Args:
        store: the split.
        block_size: T.
        stride: distance of two windows, 1 to T, starting at 0 in every epoch; the last one is clipped at the end. None:
            windows side by side, with a seed from another offset in each epoch: every target is scored exactly once.
        seed: as in `Rows`.
        mask_first: as in `StreamRows`, of each window.
        once: whether a target that an earlier window holds too is scored there alone (evaluation): each is then scored
            with at least T - ``stride`` tokens before it, but for the first T.
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
        self.count = self.tiling_rows() if stride is None else int(pieces(self.last, block_size, stride))

    def slices(self, epoch: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First input and number of targets (B,) of each window."""
        if self.stride is None:
            return super().slices(epoch, rows)
        low = np.maximum(rows * self.stride, 0)
        return low, np.where(rows < 0, 0, np.minimum(self.block_size, self.last - low))

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids, targets, attention_mask (B, T)."""
        low, length = self.slices(epoch, rows)
        tokens = self.gather(low[:, None] + np.arange(self.block_size + 1))
        seen = self.block_size - self.stride if self.once and self.stride else 0  # targets of an earlier window
        unscored = self.columns < np.where(rows > 0, seen, 0)[:, None] + self.mask_first
        return self.finish(tokens, length, unscored)


def pieces(length: Any, block_size: int, stride: int) -> Any:
    """How many rows that start ``stride`` apart, and are full but for the last, hold ``length`` targets (n,)."""
    return 1 + -(-np.maximum(length - block_size, 0) // stride)


class Padded(StreamRows):
    """One document a row, ``E document E``; a longer one goes on in further rows. Pads are on the right.

    Args:
        store: the split.
        block_size: T.
        seed: as in `Rows`.
        mask_first: as in `StreamRows`, of each document.
        val_stride: distance of the rows of one document; a target that an earlier row holds too is scored there alone.
            None puts them side by side.
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
        self.length = np.diff(store.starts) - (store.eos_id is None)  # targets of each document
        rows = np.where(self.length > 0, pieces(self.length, block_size, self.stride), 0)
        self.first_row = np.concatenate([[0], np.cumsum(rows)])
        self.count = int(self.first_row[-1])

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids, targets, attention_mask (B, T), and document (B,): its number, -1 for an empty row."""
        document = np.searchsorted(self.first_row, rows, side="right") - 1
        done = (rows - self.first_row[document]) * self.stride  # where the row begins in its document
        length = np.where(rows < 0, 0, np.minimum(self.length[document] - done, self.block_size))
        tokens = self.gather(
            np.maximum(self.store.starts[document] + done, 0)[:, None] + np.arange(self.block_size + 1)
        )
        seen = np.where(done > 0, self.block_size - self.stride, 0)  # targets of an earlier row
        unscored = (self.columns < seen[:, None]) | (done[:, None] + self.columns < self.mask_first)
        return {**self.finish(tokens, length, unscored), "document": document}


@dataclass(frozen=True)
class RankShare:
    """Which rows of each global batch one process takes, and in how many micro-batches.

    Rank r's micro-batch j of global batch k takes the m rows from ``k * rows_per_batch + (j * world + r) * m``.
    """

    rows: int
    rows_per_batch: int
    micro: int
    rank: int = 0
    world: int = 1

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in a global batch."""
        return self.rows_per_batch // (self.micro * self.world)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one process in an epoch; the last global batch is filled up with empty rows."""
        return -(-self.rows // self.rows_per_batch) * self.accumulation

    def positions(self, item: int) -> np.ndarray:
        """Places in the epoch's order (m,) of the process's micro-batch ``item``; -1 for empty rows."""
        k, j = divmod(item, self.accumulation)
        place = k * self.rows_per_batch + (j * self.world + self.rank) * self.micro + np.arange(self.micro)
        return np.where(place < self.rows, place, -1)


class MicroBatches(Dataset[Batch]):
    """Map-style: (epoch, item) to one finished micro-batch, so a loader needs no collation and no sampler of rows.

    Args:
        rows: how the split is cut.
        share: this process's part of it.
        subset: row numbers to use instead of all, in this order (evaluation on a part).
    """

    def __init__(self, rows: Rows, share: RankShare, subset: np.ndarray | None = None) -> None:
        self.rows, self.share, self.subset = rows, share, subset

    def __len__(self) -> int:
        return self.share.micro_batches

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, item = place
        row = self.share.positions(item)
        real = row >= 0
        if self.subset is not None:
            row[real] = self.subset[row[real]]
        elif self.rows.seed is not None:
            row[real] = permute(row[real], self.share.rows, random_words(self.rows.seed, epoch, _ROW_ORDER))
        return {name: torch.from_numpy(array) for name, array in self.rows.batch(epoch, row).items()}


class BatchLoader:
    """Iterates over one process's micro-batches in a fixed order.

    Not a ``DataLoader`` itself, because Lightning rebuilds those with its own sampler under several processes, which
    would split rows that are split already. It uses one inside, with a generator of its own: the one it would make
    draws from the global random state, and runs would no longer resume exactly.
    """

    def __init__(self, dataset: MicroBatches, num_workers: int = 0) -> None:
        self.dataset, self.num_workers = dataset, num_workers

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        yield from self._batches(0, 0)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        self.dataset.rows.prepare(epoch)
        places = ((epoch, item) for item in range(start, len(self)))
        return iter(
            DataLoader(
                self.dataset,
                batch_size=None,
                sampler=places,
                num_workers=self.num_workers,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator().manual_seed(0),
            )
        )


class TrainLoader(BatchLoader):
    """Goes through one epoch after another, and can say and be told where it stands.

    The state counts the batches handed out, not those that workers have prepared, and is in global batches, so it can
    be loaded on another number of processes. ``iter`` after a whole or a broken-off epoch starts the next one, but
    right after ``load_state_dict`` it goes on in the middle.
    """

    def __init__(self, dataset: MicroBatches, num_workers: int = 0) -> None:
        super().__init__(dataset, num_workers)
        self.epoch = self.done = 0
        self._loaded = False
        self.sampler = self  # Lightning looks for set_epoch there

    def set_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch; in the middle of that very epoch it changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.done, self._loaded = epoch, 0, False

    def __iter__(self) -> Iterator[Batch]:
        if self.done and not (self._loaded and self.done < len(self)):
            self.epoch, self.done = self.epoch + 1, 0
        self._loaded = False
        for batch in self._batches(self.epoch, self.done):
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and the global batches of it that were handed out whole."""
        return {"epoch": self.epoch, "global_batches": self.done // self.dataset.share.accumulation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state, whatever number of processes and micro-batches it comes from."""
        self.epoch = state["epoch"]
        self.done = state["global_batches"] * self.dataset.share.accumulation
        self._loaded = True
