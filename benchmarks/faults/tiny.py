"""Runs small enough for a second each, and when two of them have ended in the same way."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.harness import Done, WrongError, typed
from datamodules.synthetic import headlines

#: Parts of a metric's name, and keys of summary.json, that depend on the clock or the place.
TIMED = ("tokens_per_second", "step_seconds", "data_wait", "peak_memory", "mfu")
PLACED = ("training_seconds", "validation_seconds", "tokens_per_second", "started_in", "device", "versions")
#: What differs between the runs that are killed or refused.
FACTORS: dict[str, tuple[Any, ...]] = {
    "rows": ("windows", "padded", "packed"),
    "optimizer": ("adamw", "muon", "torch.optim.SGD"),
    "accumulation": (1, 2),
    "workers": (0, 1),
    "epochs": (False, True),
    "kept": (False, True),
}


@dataclass(frozen=True)
class Setup:
    """One combination of the factors."""

    rows: str = "windows"
    optimizer: str = "adamw"
    accumulation: int = 1
    workers: int = 0
    epochs: bool = False
    kept: bool = False

    @property
    def name(self) -> str:
        """The values that are not the usual ones."""
        length = "epochs" if self.epochs else "steps"
        kept = ", kept files" if self.kept else ""
        how = f"{self.rows}, {self.optimizer}, accumulation {self.accumulation}"
        return f"{how}, {self.workers} workers, {length}{kept}"

    def arguments(self, text: Path) -> list[str]:
        """``fit`` and its options; the cache is in the current folder."""
        shape = {"block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1}
        given = [f"--model.config.{name}={value}" for name, value in shape.items()]
        module = "CharDataModule" if self.rows == "windows" else "HeadlinesDataModule"
        given += [f"--data={module}", f"--data.source={text}", "--data.cache_dir=cache", "--data.tokens_per_step=256"]
        given += [f"--data.micro_batch_size={8 // self.accumulation}", f"--data.num_workers={self.workers}"]
        if self.rows != "windows":
            given += [f"--data.rows={self.rows}", "--data.tokenizer=char"]
        given += [f"--model.optimizer.kind={self.optimizer}", "--model.optimizer.lr=0.01"]
        given += ["--trainer.max_epochs=2"] if self.epochs else ["--trainer.max_steps=12"]
        given += ["--checkpoint.keep_every_n_steps=5"] if self.kept else []
        return ["fit", *given, *FLAGS, "--resume=auto"]


FLAGS = (
    *("--trainer.val_check_interval=4", "--checkpoint.every_n_steps=3", "--trainer.log_every_n_steps=2"),
    *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false", "--samples.max_new_tokens=0"),
    *("--trainer.limit_val_batches=2", "--trainer.enable_progress_bar=false"),
)


def pairwise() -> list[Setup]:
    """Few setups in which any two values of two factors meet."""
    names = list(FACTORS)
    everything = [dict(zip(names, values, strict=True)) for values in product(*FACTORS.values())]
    missing = {pair for setup in everything for pair in _pairs(setup)}
    chosen = []
    while missing:
        best = max(everything, key=lambda setup: len(missing & _pairs(setup)))
        missing -= _pairs(best)
        chosen.append(Setup(**best))
    return chosen


def _pairs(setup: dict[str, Any]) -> set[tuple[Any, ...]]:
    return set(combinations(setup.items(), 2))


def write_texts(folder: Path) -> tuple[Path, Path]:
    """A running text and titles."""
    titles = list(headlines(60, seed=1))
    text, lines = folder / "text.txt", folder / "titles.txt"
    text.write_text("\n".join(titles)[:2400], encoding="utf-8")
    lines.write_text("\n".join(titles), encoding="utf-8")
    return text, lines


def straight(arguments: list[str], first: Callable[[], object] = lambda: None) -> Done:
    """A run that nothing happens to.

    Raises:
        WrongError: it does not end well.
    """
    done = typed(arguments, first)
    if done.status:
        raise WrongError(f"the straight run ends with {done.status}: {done.err[-400:]}")
    return done


# ---- the same end?


def newest(folder: Path) -> Path:
    """The folder of the run that began last below a current folder."""
    runs = (folder / "logs" / "run").glob("version_*")
    return max(runs, key=lambda run: int(run.name.rpartition("_")[2]))


def differences(one: Path, two: Path) -> list[str]:
    """What is not equal in the folders of two runs, but for times and places."""
    found = [] if metrics(one) == metrics(two) else ["metrics.csv"]
    found += [] if summary(one) == summary(two) else ["summary.json"]
    names = [sorted(path.name for path in (run / "checkpoints").glob("*.ckpt")) for run in (one, two)]
    if names[0] != names[1]:
        return [*found, f"checkpoints {names[1]}, not {names[0]}"]
    files = [[run / "checkpoints" / name for run in (one, two)] for name in names[0]]
    return found + [a.name for a, b in files if not same(state(a), state(b))]


def leftovers(folder: Path) -> list[str]:
    """Temporary files below a current folder."""
    hidden = [*folder.glob("logs/**/.*"), *folder.glob("cache/**/.*")]
    return sorted(str(path.relative_to(folder)) for path in (*hidden, *folder.glob("cache/*.part")))


def state(path: Path) -> dict[str, Any]:
    """Weights, optimizer, schedules and counters of a checkpoint."""
    stored = torch.load(path, weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {name: stored[name] for name in names}


def same(one: Any, two: Any) -> bool:
    """Whether two values are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two) or (isinstance(one, float) and math.isnan(one) and math.isnan(two))


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without times."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not any(word in str(k) for word in TIMED)} for row in rows]


def summary(run: Path) -> dict[str, Any]:
    """summary.json without times and places."""
    found = json.loads((run / "summary.json").read_text())
    kept = {name: value for name, value in found.items() if name not in PLACED}
    for name in ("final", "best"):
        kept[name] = {k: v for k, v in kept[name].items() if not any(word in k for word in TIMED)}
    return kept
