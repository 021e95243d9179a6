"""What is measured of `fit`: seconds of a step, by a callback that it imports from here by name, and what it logged."""

import contextlib
import csv
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.cli import run


class StepTimer(Callback):
    """Times of the ends of a run's steps, in ``StepTimer.ends``."""

    ends: list[float]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last run."""
        StepTimer.ends = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the time."""
        StepTimer.ends.append(time.perf_counter())


def fit_seconds(flags: list[str], steps: int, warmup: int) -> float:
    """Mean seconds of a step through `fit` with everything that is on by default, after some steps to warm up."""
    flags = [*flags, f"--trainer.max_steps={steps + warmup}", "--trainer.val_check_interval=100000"]
    flags += ["--trainer.callbacks+=benchmarks.timing.StepTimer"]
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        run("fit", [*flags, f"--logs_dir={folder}"])
    return (StepTimer.ends[-1] - StepTimer.ends[warmup - 1]) / steps


def column(folder: Path, name: str) -> dict[int, float]:
    """One metric of a run by step."""
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
