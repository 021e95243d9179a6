"""A run's loggers, and metrics.csv: one row a log call, new columns as they come, continued without duplicates by a
resumed run.
"""

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files import write_text, writing


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
        if self.path.is_file():
            self.columns = self._rows()[0]

    @property
    def name(self) -> str:
        """The name that the run's folder is under."""
        return self.folder.parent.name

    @property
    def version(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def save_dir(self) -> str:
        """The run's folder, which the Trainer takes as its log_dir."""
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; new names become new columns."""
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new or not self.path.is_file():
            self.columns += new
            self._rewrite(self._rows()[1:])
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([row.get(name, "") for name in self.columns])

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop rows after ``step``: a resumed run writes them again."""
        self._rewrite([row for row in self._rows()[1:] if row and int(row[0]) <= step])

    def _rows(self) -> list[list[str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    def _rewrite(self, rows: list[list[str]]) -> None:
        text = io.StringIO()
        padded = [row + [""] * (len(self.columns) - len(row)) for row in rows]
        csv.writer(text).writerows([self.columns, *padded])
        write_text(self.path, text.getvalue())


def run_loggers(folder: Path, given: Any) -> list[Logger]:
    """metrics.csv of a run and what the Trainer is given, TensorBoard where that is nothing; False is no other."""
    if given in (None, True):
        root, name, version = folder.parent.parent, folder.parent.name, folder.name
        given = TensorBoardLogger(root, name, version, default_hp_metric=False)
    others = given if isinstance(given, list) else [given]
    return [MetricsCSV(folder), *([] if given is False else others)]
