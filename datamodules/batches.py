"""From rows to batches: each process's micro-batches, and loaders that resume from two integers.

The order of the rows is a pure function of (seed, epoch, position), see `datamodules.rows`. So one process and many see
the same global batches, a run resumes on any number of processes, and every batch can be rebuilt alone.

A global batch is the rows of one optimizer step. How it is divided is in `datamodules.step_size`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.errors import UserError
from datamodules.read_ahead import ahead
from datamodules.rows import Rows
from datamodules.step_size import RankShare

Batch = dict[str, torch.Tensor]

#: Micro-batches whose rows are looked up together: a shuffled order takes 0.15 ms, for a few rows as for hundreds.
_ITEMS_AT_ONCE = 32


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
        self._rows: tuple[int, int, np.ndarray] | None = None  # epoch, number of the group, rows (items, m)

    def __len__(self) -> int:
        return self.share.micro_batches

    def __getitem__(self, index: tuple[int, int]) -> Batch:
        epoch, item = index
        rows = self._rows_of(epoch, item)  # (m,)
        return {name: torch.from_numpy(array) for name, array in self.rows.batch(epoch, rows).items()}

    def _rows_of(self, epoch: int, item: int) -> np.ndarray:
        """The row numbers (m,) of a micro-batch. They are looked up for `_ITEMS_AT_ONCE` of them."""
        group, index = divmod(item, _ITEMS_AT_ONCE)
        looked_up = self._rows  # read once: threads that read ahead ask for other groups at the same time
        if looked_up is None or looked_up[:2] != (epoch, group):
            items = range(group * _ITEMS_AT_ONCE, min((group + 1) * _ITEMS_AT_ONCE, len(self)))
            positions = np.concatenate([self.share.positions(i) for i in items])
            looked_up = self._rows = epoch, group, self.rows_at(epoch, positions).reshape(len(items), -1)
        rows: np.ndarray = looked_up[2][index]
        return rows

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
