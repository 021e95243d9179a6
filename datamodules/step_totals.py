"""Micro-batches that know how many targets the whole optimizer step has, over all micro-batches and processes.

A loss may have two parts with different denominators: predicted tokens and labelled pairs. The mean of each over the
step is then exact in every micro-batch, without communication.
"""

import numpy as np
import torch

from datamodules.batches import Batch, MicroBatches
from datamodules.rows import IGNORE_INDEX


class StepBatches(MicroBatches):
    """Micro-batches of training with ``step_targets`` (1,) and ``step_pairs`` (1,), int64.

    Each process builds the rows of the whole step, which takes 0.1 to 0.2 microseconds a token, and takes its part. The
    last step is kept, so accumulation builds it once.
    """

    _step: tuple[tuple[int, int], dict[str, np.ndarray]] | None = None

    def __getitem__(self, index: tuple[int, int]) -> Batch:
        epoch, item = index
        number, micro = divmod(item, self.share.accumulation)
        step = self._of_step(epoch, number)
        low = (micro * self.share.world + self.share.rank) * self.share.micro
        part = {name: array[low : low + self.share.micro].copy() for name, array in step.items()}
        labels = step.get("next_sentence_label", np.empty(0))
        part["step_targets"] = np.array([np.count_nonzero(step["targets"] != IGNORE_INDEX)])
        part["step_pairs"] = np.array([np.count_nonzero(labels != IGNORE_INDEX)])
        return {name: torch.from_numpy(array) for name, array in part.items()}

    def _of_step(self, epoch: int, number: int) -> dict[str, np.ndarray]:
        """The arrays of a global batch."""
        if self._step is None or self._step[0] != (epoch, number):
            position = number * self.share.rows_per_batch + np.arange(self.share.rows_per_batch)
            rows = self.rows_at(epoch, np.where(position < self.share.rows, position, -1))
            self._step = (epoch, number), self.rows.batch(epoch, rows)
        return self._step[1]
