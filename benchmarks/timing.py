"""What is measured of `fit`: seconds of a step, by a callback that it imports from here by name, and what it logged."""

import contextlib
import csv
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.report import DEVICE
from lit_gpt.cli.lightning_cli import run


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class StepTimer(Callback):
    """Times of the ends of the steps in ``StepTimer.wanted``, in ``StepTimer.ends``.

    A GPU computes on while Python goes ahead: it is waited for at these steps, and at no other.
    """

    wanted: ClassVar[tuple[int, ...]] = ()
    ends: ClassVar[dict[int, float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last run."""
        StepTimer.ends = {}

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the time, once a step."""
        step = trainer.global_step
        if step in StepTimer.wanted and step not in StepTimer.ends:
            synchronize()
            StepTimer.ends[step] = time.perf_counter()


def fit_seconds(flags: list[str], steps: int, warmup: int) -> float:
    """Mean seconds of a step through `fit` with everything that is on by default, after some steps to warm up."""
    flags = [*flags, f"--trainer.max_steps={steps + warmup}", "--trainer.limit_val_batches=0"]
    flags += ["--trainer.callbacks+=benchmarks.timing.StepTimer"]
    StepTimer.wanted = (warmup, warmup + steps)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        run("fit", [*flags, f"--logs_dir={folder}"])
    return (StepTimer.ends[warmup + steps] - StepTimer.ends[warmup]) / steps


def column(folder: Path, name: str) -> dict[int, float]:
    """One metric of a run by step."""
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
