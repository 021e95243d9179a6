"""metrics.csv, with one row for each log call, and the loggers of a run.

A new metric becomes a new column. A resumed run continues the file without duplicate rows.
"""

import csv
import io
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files import append, write_atomically, writing
from lit_gpt.callbacks.tensorboard_logger import RunTensorBoard

#: How the names of metrics begin that a validation logs.
VALIDATION = ("val/", "train_eval/")


class MetricsCSV(Logger):
    """Appends to ``metrics.csv`` in the run's folder. (Lightning's CSVLogger deletes the file of a resumed run.)

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.path = self.folder / "metrics.csv"
        self.columns = ["step", "epoch"]
        if (lines := self._lines()) and _is_header(lines[0]):
            self.columns = lines[0]

    @property
    def name(self) -> str:
        """Empty: Lightning joins save_dir, name and version, and `save_dir` is the run's folder already."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as `name`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder, which the Trainer takes as its log_dir."""
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the resolved configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row. New names become new columns."""
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            rows = self._rows()
            self.columns += new
            self._rewrite(rows)
        with writing(self.path):
            append(self.path, _text([[row.get(name, "") for name in self.columns]]), _text([self.columns]))

    @rank_zero_only
    def rewind(self, step: int, validates: bool = False) -> None:
        """Drop rows after ``step``, which a resumed run writes again, and damaged rows, whose numbers are printed.

        Args:
            step: The step that is resumed.
            validates: Whether the run begins with the validation of that step, and writes its row again too.
        """
        rows = self._rows()
        damaged = [str(n) for n, line in enumerate(self._lines(), 1) if not self._is_row(line) and line != self.columns]
        if damaged:
            copy = self.path.replace(self.path.with_name(f"{self.path.name}.damaged"))
            print(f"{self.path}: damaged rows are dropped (lines {', '.join(damaged)}); the file as it was is {copy}")
        again = [i for i, name in enumerate(self.columns) if validates and name.startswith(VALIDATION)]
        kept = [row for row in rows if not (int(row[0]) == step and any(row[i] for i in again))]
        self._rewrite([row for row in kept if int(row[0]) <= step])

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, from the complete rows of the file."""
        column = self.columns.index(name)
        return [(int(row[0]), float(row[column])) for row in self._rows() if row[column]]

    def _rows(self) -> list[list[str]]:
        return [line for line in self._lines() if self._is_row(line)]

    def _is_row(self, line: list[str]) -> bool:
        """Whether a line is a complete row: a step and a number (or nothing) for each other column."""
        return len(line) == len(self.columns) and line[0].isdecimal() and all(_is_number(value) for value in line[1:])

    def _lines(self) -> list[list[str]]:
        """All lines of the file, split at commas. A last line without a newline was cut short and becomes an empty
        list.
        """
        try:
            content = self.path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return []
        *lines, rest = re.split("\r?\n", content.decode("utf-8", errors="replace"))
        return [_split(line) for line in lines] + ([[]] if rest else [])

    def _rewrite(self, rows: list[list[str]]) -> None:
        padded = [row + [""] * (len(self.columns) - len(row)) for row in rows]
        write_atomically(self.path, lambda file: file.write(_text([self.columns, *padded])))


def _text(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _split(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _is_header(names: list[str]) -> bool:
    return names[:1] == ["step"] and len(set(names)) == len(names) and not any(set("\0\ufffd") & set(n) for n in names)


def _is_number(value: str) -> bool:
    try:
        return not value or float(value) is not None
    except ValueError:
        return False


def run_loggers(folder: Path, logger: Any, settings: Callable[[], Mapping[str, Any]]) -> list[Logger]:
    """The loggers of a run: metrics.csv and the Trainer's.

    Args:
        folder: The run's folder.
        logger: The Trainer's option: a logger, a list of them, False for none; None or True is TensorBoard.
        settings: Returns the options that TensorBoard shows in its tab HParams; not called for other loggers.
    """
    if logger in (None, True):
        logger = RunTensorBoard(folder, settings())
    others = logger if isinstance(logger, list) else [logger]
    return [MetricsCSV(folder), *([] if logger is False else others)]
