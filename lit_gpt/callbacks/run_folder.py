"""A run's folder, ``logs/<name>/version_N``: creates it for a new run and finds it for a resumed one.

`RunFolder` writes to it when training begins and not before, so that a refused checkpoint changes nothing in its run.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.errors import UserError
from datamodules.files import remove_leftovers, write_text
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from lit_gpt.callbacks.run_lock import RunLock, is_locked
from lit_gpt.callbacks.tensorboard_logger import RunTensorBoard, hide_after
from lit_gpt.integrity import checkpoint_to_resume

Settings: TypeAlias = dict[str, Any]

#: The reason why a finished run cannot resume. With more steps it can.
FINISHED = "is finished"
SUMMARY, CONFIG = "summary.json", "config.yaml"
LAST = Path("checkpoints") / "last.ckpt"
#: Environment variable in which rank 0 passes its id and the run's folder to the processes that it
#: starts.
FOLDER_VARIABLE = "LIT_GPT_RUN_FOLDER"
#: Options of the data that do not change the content of the training batches.
CHANGEABLE_OPTIONS = (
    "micro_batch_size",
    "num_workers",
    "cache_dir",
    "max_cache_size",
    "max_shard_size",
    "predict_source",
)


def settings_of(config: Namespace) -> Settings:
    """The settings that must be equal for a run to resume: options of model and data, and the seed.

    Keys are dotted names, and values are JSON.
    """
    relevant = Namespace({key: config[key] for key in ("model", "data", "seed_everything")})
    return {
        name: json.dumps(value, sort_keys=True, default=str)
        for name, value in vars(relevant.as_flat()).items()
        if name.rpartition(".")[-1] not in CHANGEABLE_OPTIONS
    }


def hash_of(settings: Settings) -> str:
    """A short hash of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def new_run_folder(parent: Path) -> RunLock:
    """Create the next ``version_N`` below ``parent``. Two runs that start at the same time get two folders.

    An empty folder of a run that was killed before it began is used again.

    Returns:
        The lock of the folder, to hold until training begins.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return _new_version(parent)
    except OSError as error:
        raise UserError(
            f"a run's folder cannot be made in {str(parent)!r} ({error.strerror}): choose another --logs_dir or --name."
        ) from error


def _new_version(parent: Path) -> RunLock:
    number = max((_version(folder) for folder in parent.glob("version_*")), default=-1)
    if number >= 0 and (lock := _lock_if_empty(parent / f"version_{number}")) and lock.is_locked:
        return lock
    while True:
        number += 1
        folder = parent / f"version_{number}"
        with suppress(FileExistsError):
            folder.mkdir()
            if lock := _lock_if_empty(folder):
                return lock


def _lock_if_empty(folder: Path) -> RunLock | None:
    """Lock a folder. None: it is no empty folder, or another process that starts has it."""
    with suppress(UserError, FileNotFoundError):
        lock = RunLock(folder)
        if folder.is_dir() and not any(folder.iterdir()):
            return lock
        lock.release()
    return None


def remove_unused(folder: Path) -> None:
    """Remove the folder of a run that never began, unless it holds more than loggers write before the first step."""
    files = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    if any("tfevents" not in path.name for path in files):
        return
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # it holds other runs
        folder.parent.rmdir()


def _version(folder: Path) -> int:
    match = re.fullmatch(r"version_(\d+)", folder.name)
    return int(match[1]) if match else -1


def rank() -> int:
    """The rank of this process: its number among the processes of the run."""
    return int(getattr(rank_zero_only, "rank", 0))


def set_rank() -> None:
    """Set the rank that `rank` returns, as far as variables of launchers tell it: only whether it is 0 matters.

    Lightning sets it when the Trainer is built, after the run's folder is chosen. Before that, it does not read
    NODE_RANK, which is all that is set where somebody starts one process on each machine by hand.
    """
    names = [name for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ][:1]
    if names != ["RANK"]:
        names += ["NODE_RANK"] if "NODE_RANK" in os.environ else []
    if names:
        rank_zero_only.rank = max(int(os.environ[name]) for name in names)  # type: ignore[attr-defined]


def pass_on(folder: Path) -> None:
    """Tell the processes that this one starts which folder the run has."""
    if rank() == 0:
        os.environ[FOLDER_VARIABLE] = f"{os.getpid()}:{folder}"


def pass_on_no_more() -> None:
    """Forget the folder at the end of a run: a process that is started later belongs to another run."""
    if os.environ.get(FOLDER_VARIABLE, "").startswith(f"{os.getpid()}:"):
        del os.environ[FOLDER_VARIABLE]


def chosen_by_rank_0() -> Path | None:
    """The run's folder, as rank 0 passed it to this process, which it started. None in others, as under torchrun."""
    parent, _, folder = os.environ.get(FOLDER_VARIABLE, "").partition(":")
    return Path(folder) if parent == str(os.getppid()) else None


def not_resumable(parent: Path, settings: Settings, read: Callable[[Path], Settings | None]) -> dict[Path, str | None]:
    """For each run below ``parent``, why it cannot resume (see `why_not_resumable`).

    The newest run is first. The last one is the first that can resume, with None, if there is one.
    """
    if chosen := chosen_by_rank_0():  # not asked again, because rank 0 may have locked it by now
        return {chosen: None} if checkpoint_to_resume(chosen / LAST) else {}
    reasons: dict[Path, str | None] = {}
    for folder in sorted(parent.glob("version_*"), key=_version, reverse=True):
        reasons[folder] = why_not_resumable(folder, settings, read)
        if reasons[folder] is None:
            break
    return reasons


def why_not_resumable(folder: Path, settings: Settings, read: Callable[[Path], Settings | None]) -> str | None:
    """The reason why a run cannot resume with these settings. None: it can.

    Args:
        folder: The run's folder.
        settings: The settings of the command line (see `settings_of`).
        read: Returns the settings in a run's config.yaml. None: it cannot be read, or some of its options are gone.
    """
    if is_finished(read_summary(folder)):
        return FINISHED
    if is_locked(folder):
        return "is still running"
    if not any((folder / LAST).parent.glob("*.ckpt")):
        return "has saved no checkpoint"
    stored = read(folder / CONFIG)
    if stored is not None and (difference := _difference(settings, stored)):
        return f"has another configuration ({difference})"
    saved = checkpoint_to_resume(folder / LAST)
    if saved is None:
        return "has no intact checkpoint"
    if stored is None and hash_in(saved) != hash_of(settings):
        return f"is of another version, or its {CONFIG} is damaged"
    return None


def _difference(current: Settings, stored: Settings) -> str | None:
    names = [name for name in sorted(current | stored) if current.get(name) != stored.get(name)]
    if not names:
        return None
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]} is {stored.get(names[0])} there, {current.get(names[0])} here{more}"


def hash_in(saved: Path) -> str | None:
    """The hash of the settings of a checkpoint's run. None: the checkpoint has none."""
    callbacks = torch.load(saved, map_location="cpu", weights_only=True, mmap=True).get("callbacks", {})
    return callbacks.get("RunFolder", {}).get("settings")  # its state_key


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Empty if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deeply
        raise UserError(f"file {str(path)!r} is damaged ({error}): delete it.") from error
    if not isinstance(value, dict):
        raise UserError(f"file {str(path)!r} is damaged (it holds no object): delete it.")
    return value


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary. Empty if it is missing or damaged: the run can resume without it and writes a new one."""
    try:
        return read_json(folder / SUMMARY)
    except UserError:
        return {}


def is_finished(summary: dict[str, Any]) -> bool:
    """Whether a summary is of a finished run. One that is missing, damaged or edited to another value is not."""
    return summary.get("finished") is True


def folder_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to. None: the file is in no run's folder.

    Below the current folder the path is relative, as short as that of a new run.
    """
    checkpoints = checkpoint.resolve().parent
    folder, here = checkpoints.parent, Path.cwd()
    folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
    return folder if checkpoints.name == LAST.parent.name and _is_run(folder) else None


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, SUMMARY))


class RunFolder(Callback):
    """Locks the run's folder and writes ``config.yaml``.

    In a resumed run it also drops the logged metrics of later steps, which will be logged again.

    Args:
        folder: The run's folder.
        config: The resolved configuration.
        settings: Hash of the settings (see `settings_of`). It is stored in checkpoints, for a resume whose
            ``config.yaml`` is damaged.
        claim: The lock of a new folder (see `new_run_folder`), which gives way to that of the run.
    """

    def __init__(self, folder: Path, config: str, settings: str, claim: RunLock | None = None) -> None:
        self.claim = claim
        self.folder = folder
        self.config = config
        self.settings = settings
        self.began = False
        self._lock: RunLock | None = None

    def state_dict(self) -> dict[str, Any]:
        """The hash of the run's settings."""
        return {"settings": self.settings}

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lock the folder, and remove temporary files of killed runs, here and in the other runs below the parent.

        A run that was killed before its first checkpoint is never resumed, so it would never remove its own.
        """
        self.folder.mkdir(parents=True, exist_ok=True)  # it may have been removed while the data were prepared
        if self.claim:
            self.claim.release()
        self._lock = RunLock(self.folder)
        others = [run for run in self.folder.parent.glob("version_*") if not is_locked(run)]
        for run in (self.folder, *others) if self._lock.is_locked else ():
            remove_leftovers(run)
            remove_leftovers(run / LAST.parent)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the folder."""
        if self._lock and self.began:
            self._report_move(self._lock)
        if self._lock:
            self._lock.release()
            self._lock = None

    def _report_move(self, lock: RunLock) -> None:
        """Write config.yaml again and print where the files are, if the folder was moved or deleted during the run."""
        if not (self.folder / CONFIG).is_file():
            write_text(self.folder / CONFIG, self.config)
        if path := lock.moved_to():
            was = "deleted" if path == "nowhere" else f"moved to {path}, where its files until then are,"
            print(f"{self.folder} was {was} while the run went on: what was written later is in {self.folder}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the folder."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml and rewind the logs. By now a checkpoint to resume from has been accepted."""
        self.began = True  # in every process: each says what to type when it is out of memory
        if trainer.is_global_zero:
            self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        write_text(self.folder / CONFIG, self.config)
        for logger in trainer.loggers if trainer.ckpt_path else ():
            if isinstance(logger, MetricsCSV | RunTensorBoard):
                logger.rewind(trainer.global_step, any(getattr(x, "owed", False) for x in trainer.checkpoint_callbacks))
            elif isinstance(logger, TensorBoardLogger):
                hide_after(logger, trainer.global_step)
