"""From a token store to batches: rows of three kinds, in an order that is a pure function of (seed, epoch, batch).

No code here draws from a global random state, and nothing is shuffled in memory. A row's position in the epoch comes
from a permutation that costs the same for ten rows and ten billion. So one process and many see the same global
batches, a run resumes from two integers on any number of processes, and every batch can be rebuilt alone.

A global batch is the rows of one optimizer step. It is divided among the processes, and each process divides its part
into micro-batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.errors import UserError
from datamodules.permutation import permute, random_words
from datamodules.read_ahead import ahead
from datamodules.tokens import TokenStream
from datamodules.windowed_order import WindowedOrder, equal_windows

IGNORE_INDEX = -100
Batch = dict[str, torch.Tensor]
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


@dataclass(frozen=True)
class StepSize:
    """The size of an optimizer step.

    Attributes:
        rows: rows of the step, over all processes.
        micro: rows of one process in a forward pass.
        accumulation: forward passes of one process in a step.
        block_size: tokens of a row.
        packed: whether a row holds several documents, which do not see each other.
    """

    rows: int
    micro: int
    accumulation: int
    block_size: int
    packed: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the step, padding included."""
        return self.rows * self.block_size


@dataclass(frozen=True)
class RankShare:
    """The rows of each global batch that one process takes, and their division into micro-batches.

    Micro-batch j of rank r in global batch k takes m rows, from ``k * rows_per_batch + (j * world + r) * m`` on. So
    micro-batch j of all ranks together is one stretch of the epoch, for every number of ranks.

    Attributes:
        rows: number of rows of an epoch.
        rows_per_batch: rows of a global batch.
        micro: m, rows of a micro-batch.
        rank: number of this process.
        world: number of processes.
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
        """Micro-batches of one process in an epoch. Empty rows fill up the last global batch."""
        return -(-self.rows // self.rows_per_batch) * self.accumulation

    def positions(self, item: int) -> np.ndarray:
        """Positions in the epoch's order (m,) of the process's micro-batch ``item``; -1 for empty rows."""
        k, j = divmod(item, self.accumulation)
        position = k * self.rows_per_batch + (j * self.world + self.rank) * self.micro + np.arange(self.micro)
        return np.where(position < self.rows, position, -1)


class MicroBatches(Dataset[Batch]):
    """A dataset whose items are whole micro-batches of this process, by (epoch, item).

    A loader then needs no collation and no sampler of rows.

    Args:
        rows: the rows of the split.
        share: this process's part of them.
        subset: row numbers (n,) to use instead of all, in this order, for evaluation on a part.
    """

    def __init__(self, rows: Rows, share: RankShare, subset: np.ndarray | None = None) -> None:
        self.rows, self.share, self.subset = rows, share, subset

    def __len__(self) -> int:
        return self.share.micro_batches

    def __getitem__(self, index: tuple[int, int]) -> Batch:
        epoch, item = index
        rows = self.rows_at(epoch, self.share.positions(item))  # (m,)
        return {name: torch.from_numpy(array) for name, array in self.rows.batch(epoch, rows).items()}

    def rows_at(self, epoch: int, position: np.ndarray) -> np.ndarray:
        """The row numbers (n,) at positions (n,) of an epoch's order; -1 for the empty row at -1."""
        real, row = position >= 0, position.copy()
        if self.subset is not None:
            row[real] = self.subset[row[real]]
        elif self.rows.seed is not None:
            row[real] = self.rows.shuffled(epoch, row[real])
        return row


class BatchLoader:
    """Iterates over one process's micro-batches in a fixed order.

    It is no ``DataLoader``: under several processes Lightning rebuilds those with its own sampler, which would divide
    rows that are divided already. It has a ``DataLoader`` inside.

    Args:
        dataset: the micro-batches.
        num_workers: number of processes that build batches.
        remote: whether rows are in object storage. Without workers, threads of this process then read ahead.
    """

    def __init__(self, dataset: MicroBatches, num_workers: int = 0, remote: bool = False) -> None:
        self.dataset, self.num_workers, self.remote = dataset, num_workers, remote

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        yield from self._batches(0, 0)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        self.dataset.rows.prepare(epoch)
        indices = ((epoch, item) for item in range(start, len(self)))
        if self.remote and not self.num_workers:
            yield from ahead(self._pinned, indices)
            return
        loader = DataLoader(
            self.dataset,
            batch_size=None,  # an item is a batch
            sampler=indices,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Without a generator, it draws a seed for its workers from the global random state. A run that
            # resumes would draw at other steps than a straight one, and its dropout masks would differ.
            generator=torch.Generator().manual_seed(0),
        )
        try:
            yield from loader
        except UserError as error:  # torch puts the worker's traceback into the message
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            if not self.num_workers or "in DataLoader worker" in str(error):  # raised by the dataset there
                raise
            # It died between announcing a batch and handing it over, which torch's own check of workers does not see.
            raise UserError(
                "a worker process of the data loader was killed, often for want of memory: try a smaller "
                "--data.num_workers, and go on with --resume auto."
            ) from error

    def _pinned(self, index: tuple[int, int]) -> Batch:
        batch = self.dataset[index]
        return {name: value.pin_memory() for name, value in batch.items()} if torch.cuda.is_available() else batch


class TrainLoader(BatchLoader):
    """Iterates over one epoch after another, with a state that can be saved and loaded.

    The state counts the batches that were yielded, not those that workers have built ahead. It counts global batches,
    so that it can be loaded on another number of processes.

    Attributes:
        epoch: the epoch of the last batch.
        done: micro-batches of that epoch that were yielded.
    """

    def __init__(self, dataset: MicroBatches, num_workers: int = 0, remote: bool = False) -> None:
        super().__init__(dataset, num_workers, remote)
        self.epoch = self.done = 0
        self._loaded = False
        self.sampler = self  # Lightning looks for set_epoch there

    def set_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch. It changes nothing when that epoch has begun, as after a resume."""
        if epoch != self.epoch:
            self.epoch, self.done, self._loaded = epoch, 0, False

    def __iter__(self) -> Iterator[Batch]:
        # Each `iter` starts an epoch. With done > 0 the last epoch has begun, so the next one is due, even if the last
        # was left before its end (`limit_train_batches`). The first `iter` after `load_state_dict` is the exception: it
        # continues the epoch in the middle. A state that was saved after the last batch has nothing to continue.
        continues = self._loaded and self.done < len(self)
        if self.done and not continues:
            self.epoch, self.done = self.epoch + 1, 0
        self._loaded = False
        for batch in self._batches(self.epoch, self.done):
            # Before the yield: a checkpoint is saved while the consumer still holds this batch, and counts it as done.
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and the number of its global batches that were yielded whole."""
        return {"epoch": self.epoch, "global_batches": self.done // self.dataset.share.accumulation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state, which may come from another number of processes and other micro-batches."""
        self.epoch = state["epoch"]
        self.done = state["global_batches"] * self.dataset.share.accumulation
        self._loaded = True
