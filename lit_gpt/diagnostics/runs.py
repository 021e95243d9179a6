"""Reads the folders of runs as plain files: nothing of a run is imported, and a broken file becomes a note."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from datamodules.errors import UserError
from datamodules.files import expanded
from lit_gpt.diagnostics.shown import printable

#: What makes a folder a run's.
FILES = ("config.yaml", "summary.json", "metrics.csv", "checkpoints")
#: A config.yaml that `fit` wrote has 200 settings at most. A file may claim more, or repeat itself without end.
_MOST_SETTINGS, _DEEPEST = 1000, 8
#: Digits of the largest seed, 2**32 - 1.
_LONGEST_SEED = 10
_JSON = json.JSONEncoder(default=str)
#: Of steps, tokens and the like: JavaScript's integers are exact to here. Of metrics: their squares can be summed.
_LARGEST, _LARGEST_METRIC = 2**53, 1e100
#: What parsing a damaged file may raise.
_DAMAGE = (ValueError, TypeError, ArithmeticError, LookupError, RecursionError, OSError)
Value = TypeVar("Value")
#: Metric, step, value.
Metrics = dict[str, dict[int, float]]


@dataclass(eq=False)
class Run:
    """A run, as far as its files tell.

    Attributes:
        folder: Its folder.
        name: The last two parts of that, NAME/version_N; the whole folder where another run has the same.
        settings: config.yaml with dotted names. Empty: it cannot be read.
        summary: summary.json.
        metrics: Values by name and step.
        samples: Steps and texts.
        notes: What is missing or damaged.
    """

    folder: Path
    name: str
    settings: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    samples: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> str:
        """The seed, or an empty text."""
        return printable(str(self.settings.get("seed_everything", self.summary.get("seed", ""))))[:_LONGEST_SEED]

    @property
    def steps(self) -> int:
        """Steps so far."""
        logged = [max(values) for values in self.metrics.values() if values]
        return int(self.number("steps") or max(logged, default=0))

    @property
    def state(self) -> str:
        """Whether the run is over."""
        if "finished" not in self.summary:
            return "unknown"
        return "finished" if self.summary["finished"] is True else f"unfinished, step {self.steps}"

    def number(self, name: str) -> float | None:
        """A number of the summary. None: there is none."""
        value = self.summary.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and abs(value) < _LARGEST else None  # type: ignore[arg-type]

    def tokens_at(self, step: int) -> float | None:
        """Tokens until a step: all steps of a run have the same number. None: unknown."""
        tokens, steps = self.number("tokens"), self.number("steps")
        return tokens / steps * step if tokens and steps else None

    def seconds_at(self, step: int) -> float | None:
        """Seconds of training until a step, validations left out. None: unknown."""
        steps, seconds = self._clock
        return float(np.interp(step, steps, seconds)) if len(steps) > 1 and step <= steps[-1] else None

    @cached_property
    def _clock(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and the seconds until them: ``train/step_seconds`` is a mean since the last time it was logged."""
        means = self.metrics.get("train/step_seconds", {})
        steps = [0, *sorted(step for step in means if step > 0 and means[step] >= 0)]  # not NaN
        seconds = [0.0, *accumulate(means[step] * (step - before) for before, step in pairwise(steps))]
        if self.steps > steps[-1] and (whole := self.number("training_seconds")):
            steps, seconds = [*steps, self.steps], [*seconds, max(whole, seconds[-1])]
        return np.array(steps), np.array(seconds)


def find_runs(places: list[str]) -> list[Run]:
    """The runs that are these folders or are in them.

    Raises:
        UserError: A folder does not exist or holds no run.
    """
    if not places:
        raise UserError("report needs a folder of runs: give one, such as logs.")
    folders: dict[Path, Path] = {}
    for place in places:
        path = expanded(place)
        if not place or not path.is_dir():
            raise UserError(f"{place!r} is no folder: give a run's, such as logs/NAME/version_0, or a folder of runs.")
        found = _runs_in(path)
        if not found:
            raise UserError(f"folder {place!r} holds no run: give one like logs/NAME/version_0, or a folder of such.")
        folders |= {folder.resolve(): folder for folder in found}
    names = [_name(folder.absolute().parts[-2:]) for folder in folders.values()]
    return [
        read_run(folder, name if names.count(name) == 1 else _name(folder.parts))
        for name, folder in zip(names, folders.values(), strict=True)
    ]


def _name(parts: Sequence[str]) -> str:
    return printable(str(Path(*parts)))


def _runs_in(folder: Path) -> list[Path]:
    """The folder itself, or else the runs in it, up to three folders deep, with numbers in their order: n_embd64 comes
    before n_embd128, and version_9 before version_10.
    """
    if _is_run(folder):
        return [folder]
    inside = [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth) if _is_run(path)]
    return sorted(inside, key=lambda path: [_with_numbers(part) for part in path.parts])


def _with_numbers(name: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _is_run(path: Path) -> bool:
    return path.is_dir() and (path.match("version_*") or any((path / name).exists() for name in FILES))


def read_run(folder: Path, name: str) -> Run:
    """Read a run's files."""
    run = Run(folder, name)
    run.settings = _read(run, "config.yaml", _settings, {})
    run.summary = _read(run, "summary.json", lambda text: _mapping(json.loads(text)), {})
    run.metrics = _read(run, "metrics.csv", lambda text: _metrics(text, run.notes), {})
    if (folder / "samples.jsonl").is_file():
        run.samples = _read(run, "samples.jsonl", _samples, [])
    return run


def _read(run: Run, name: str, parse: Callable[[str], Value], default: Value) -> Value:
    try:
        return parse((run.folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        run.notes.append(f"no {name}")
    except (*_DAMAGE, yaml.YAMLError, csv.Error) as error:
        run.notes.append(f"{name} cannot be read ({' '.join(str(error).split())[:160]})")
    return default


def _settings(text: str) -> dict[str, str]:
    """Settings with dotted names. Tags that would create objects are an error of the safe loader."""
    loaded = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return dict(islice(_flat(_mapping(loaded)), _MOST_SETTINGS))


def _flat(values: dict[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and depth < _DEEPEST:
            yield from _flat(value, f"{name}.", depth + 1)
        else:
            shown = value if isinstance(value, str) else "".join(islice(_JSON.iterencode(value), _MOST_SETTINGS))
            yield name.replace(".init_args", ""), shown


def _mapping(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError("it holds no names with values")
    return value


def _metrics(text: str, notes: list[str]) -> Metrics:
    """Values by name and step. A row that is damaged is left out, as is a last line that was cut short."""
    lines = text.splitlines(keepends=True)
    header, *rows = list(csv.reader(lines)) or [[]]
    if "step" not in header:
        raise ValueError("it has no column step" if text else "it is empty")
    metrics: Metrics = {}
    whole = [row for row in rows[: len(rows) - (not text.endswith("\n"))] if _add_row(metrics, header, row)]
    if damaged := len(rows) - len(whole):
        notes.append(f"metrics.csv: damaged rows left out: {damaged}")
    if not whole:
        notes.append("metrics.csv has no rows")
    return metrics


def _add_row(metrics: Metrics, header: list[str], row: list[str]) -> bool:
    """Add a row's values; False: it is damaged."""
    values = dict(zip(header, row, strict=False))
    try:
        step = int(values.pop("step"))
        numbers = {name: float(value) for name, value in values.items() if value}
    except (KeyError, ValueError):
        return False
    if len(row) != len(header) or not 0 <= step < _LARGEST:
        return False
    for name, number in numbers.items():
        if name != "epoch":
            metrics.setdefault(name, {})[step] = number if abs(number) < _LARGEST_METRIC else float("nan")
    return True


def _samples(text: str) -> list[tuple[int, str]]:
    return [(int(line["step"]), str(line["text"])) for line in map(json.loads, text.splitlines())]
