"""A callback that notes when each step ended. In a file of its own, since `fit` imports it by name."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepTimer(Callback):
    """Times of the ends of a run's steps, in ``StepTimer.ends``."""

    ends: list[float]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last run."""
        StepTimer.ends = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the time."""
        StepTimer.ends.append(time.perf_counter())
