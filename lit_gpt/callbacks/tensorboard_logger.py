"""The TensorBoard logger of a run: one subfolder for each split, so that a metric of all splits is one chart."""

import io
import os
import socket
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from datamodules.files import append

#: Splits with a subfolder of their own. All else is logged in that of `train`.
SPLITS = ("train", "train_eval", "val", "test")
#: The chart of a metric is SECTION/NAME. Sections are sorted by name: those of losses and accuracies come first.
SECTIONS = {
    "speed": ("tokens_per_second", "step_seconds", "data_wait", "peak_memory_gb", "mfu"),
    "optimizer": ("lr", "grad_norm"),
}
#: The subfolder of the settings and final metrics, which make a row of TensorBoard's tab HParams.
SETTINGS = "hparams"
FOLDERS = (*SPLITS, SETTINGS)
#: The splits that a validation scores.
OF_VALIDATIONS = ("train_eval", "val")


class RunTensorBoard(TensorBoardLogger):
    """Writes ``val/loss`` as ``metrics/loss`` of the run ``NAME/version_N/val``, and so on.

    TensorBoard overlays runs in one chart, each in its colour, when their tags are equal.

    Args:
        folder: The run's folder.
        settings: The options that differ from their defaults, for the tab HParams.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(folder.parent.parent, folder.parent.name, folder.name, default_hp_metric=False)
        self.folder = folder
        self.settings = dict(settings or {})
        self._writers: dict[str, SummaryWriter] = {}
        self._purge_steps: dict[str, int] = {}

    def writer(self, split: str) -> SummaryWriter:
        """The writer of a split's subfolder, which is created when it is first asked for. Only rank 0 may ask."""
        if split not in self._writers:
            self._writers[split] = _Writer(str(self.folder / split), purge_step=self._purge_steps.get(split))
        return self._writers[split]

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer of ``train``."""
        return self.writer("train")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log each metric in its split's subfolder. ``epoch`` is left out: it is in metrics.csv."""
        for name, value in metrics.items():
            if name != "epoch":
                split, tag = chart_of(name)
                self.writer(split).add_scalar(tag, float(value), step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `log_settings` fills the tab HParams."""

    @rank_zero_only
    def log_settings(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the row of the tab HParams: the settings, and the metrics of a finished run."""
        writer = self.writer(SETTINGS)
        _, start, end = hparams({k: _plain(v) for k, v in self.settings.items()}, {})
        for summary in (start, end) if metrics else (start,):
            writer._get_file_writer().add_summary(summary, step)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    @rank_zero_only
    def rewind(self, step: int, validates: bool = False) -> None:
        """Hide what was logged after ``step`` in earlier event files: a new file can ask for that.

        Args:
            step: The step that is resumed.
            validates: Whether the run begins with the validation of that step, so that its metrics are hidden too.
        """
        self._close()
        self._purge_steps = {split: step if validates and split in OF_VALIDATIONS else step + 1 for split in FOLDERS}
        for split in FOLDERS:
            if any((self.folder / split).glob("*tfevents*")):
                self.writer(split)

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered."""
        for writer in self._writers.values():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the files."""
        self._close()

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


def writer_of(logger: TensorBoardLogger, split: str) -> SummaryWriter:
    """The writer of a split. A TensorBoardLogger of Lightning has one for all."""
    return logger.writer(split) if isinstance(logger, RunTensorBoard) else logger.experiment


def hide_after(logger: TensorBoardLogger, step: int) -> None:
    """What `RunTensorBoard.rewind` does, for a TensorBoardLogger of Lightning."""
    writer = logger.experiment
    writer.purge_step = step + 1
    writer.close()  # the next event opens a new file


def chart_of(name: str) -> tuple[str, str]:
    """Split and tag of a metric: ``val/loss`` is ``metrics/loss`` of ``val``, ``lr/head`` is ``optimizer/lr/head``."""
    split, _, rest = name.partition("/")
    split, rest = (split, rest) if split in SPLITS else ("train", name)
    for section, names in SECTIONS.items():
        if rest.split("/")[0] in names:
            return split, f"{section}/{rest}"
    return split, f"metrics/{rest}"


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


class _Writer(SummaryWriter):
    """A SummaryWriter with a file that `EventFile` writes."""

    file_writer: Any
    all_writers: Any

    def _get_file_writer(self) -> Any:
        if self.file_writer is None:
            self.file_writer = EventFile(Path(self.log_dir))
            self.all_writers = {self.log_dir: self.file_writer}
            if self.purge_step is not None:
                self.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), self.purge_step)
        return self.file_writer


class EventFile:
    """Appends events to a file, as torch's FileWriter does, but in the caller's thread and without an open file.

    So a folder that was moved or deleted is created again, and an error of the disk is raised where it can be handled.

    Args:
        folder: The folder of the file.
        every_seconds: The longest time that an event waits in the buffer while others follow.
    """

    _numbers = count()

    def __init__(self, folder: Path, every_seconds: float = 5.0) -> None:
        self.folder, self.every_seconds = folder, every_seconds
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers):06d}"
        self.path = folder / f"events.out.tfevents.{name}"
        self._buffer = io.BytesIO()
        self._records = RecordWriter(self._buffer)
        self._flush_at = 0.0  # at once: TensorBoard shows the run
        self.add_event(Event(file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        """The folder of the file."""
        return str(self.folder)

    def add_summary(self, summary: Any, global_step: int | None = None, walltime: float | None = None) -> None:
        """Add an event with a summary, such as a scalar or an image."""
        self.add_event(Event(summary=summary), global_step, walltime)

    def add_event(self, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        """Add an event."""
        event.wall_time = time.time() if walltime is None else walltime
        event.step = int(step or 0)
        self._records.write(event.SerializeToString())
        if time.monotonic() >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Append what is buffered to the file."""
        if data := self._buffer.getvalue():
            append(self.path, data)
            self._buffer.seek(0)
            self._buffer.truncate()
        self._flush_at = time.monotonic() + self.every_seconds

    def close(self) -> None:
        """Append what is buffered."""
        self.flush()
