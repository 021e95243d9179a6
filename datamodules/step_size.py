"""The rows of an optimizer step, and how processes and micro-batches divide them.

A global batch is the rows of one optimizer step. It is divided among the processes, and each process divides its part
into micro-batches.
"""

from dataclasses import dataclass

import numpy as np

from datamodules.errors import UserError

#: Rows of a step where nothing is said.
_DEFAULT_ROWS = 32
#: Tokens of one process in one forward pass. Ids and targets alone would take 2 GB.
_MAX_MICRO_BATCH = 2**27


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


def rows_per_step(tokens_per_step: int | None, block_size: int) -> int:
    """Rows of an optimizer step over all processes: ``tokens_per_step / block_size``, or 32 for None.

    Raises:
        UserError: a step is not a whole number of rows.
    """
    if tokens_per_step is None:
        return _DEFAULT_ROWS
    rows, rest = divmod(tokens_per_step, block_size)
    if rest or rows == 0:
        raise UserError(
            f"tokens_per_step {tokens_per_step} is not a multiple of block_size {block_size}: choose "
            f"{_multiples_near(tokens_per_step, block_size)}."
        )
    return rows


def rows_per_micro_batch(step: int, micro_batch_size: int | None, block_size: int, processes: int) -> int:
    """Rows of a micro-batch, where a step's rows are divided among processes.

    Args:
        step: rows of an optimizer step over all processes.
        micro_batch_size: rows of a micro-batch, if that is asked for; None for all rows that a process has of a step.
        block_size: tokens of a row.
        processes: number of processes.

    Raises:
        UserError: the rows cannot be divided so, or a micro-batch is larger than any machine holds.
    """
    micro = micro_batch_size or step // processes
    if micro * processes == 0 or step % (micro * processes):
        asked = f" in micro-batches of {micro} row(s)" if micro_batch_size else ""
        unit = (micro_batch_size or 1) * processes * block_size  # tokens_per_step has to be a multiple of it
        raise UserError(
            f"a step of {step} rows (tokens_per_step / block_size) cannot be divided among {processes} process(es)"
            f"{asked}: set tokens_per_step to {_multiples_near(step * block_size, unit)}."
        )
    if micro * block_size > _MAX_MICRO_BATCH:
        raise UserError(
            f"a micro-batch of {micro * block_size:,} tokens is larger than any machine can train on: lower "
            "--data.tokens_per_step, or set --data.micro_batch_size."
        )
    return micro


def _multiples_near(number: int, unit: int) -> str:
    """The multiples of ``unit`` below and above a number, for a message. 0 is none to choose."""
    below = number // unit * unit
    return " or ".join(str(multiple) for multiple in (below, below + unit) if multiple)
