"""Waiting for the device, and what a run of `fit` logged."""

import csv
from pathlib import Path

import torch

from benchmarks.report import DEVICE


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def column(folder: Path, name: str) -> dict[int, float]:
    """One metric of a run by step."""
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
