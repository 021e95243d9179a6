"""A run's folder, ``logs/<name>/version_N``: claimed once, found again to resume.

`RunFolder` is what changes in it when the run begins, and not before: a refused checkpoint leaves its run as it was.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakSet

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.errors import UserError
from datamodules.files import remove_leftovers, write_text
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from lit_gpt.integrity import to_go_on_from

Settings: TypeAlias = dict[str, Any]

#: Why a run cannot go on under the same settings that is no obstacle to one with more steps.
FINISHED = "is finished"
SUMMARY, CONFIG = "summary.json", "config.yaml"
LAST = Path("checkpoints") / "last.ckpt"
#: How rank 0 tells the processes that it starts where the run is.
FOLDER_VARIABLE = "LIT_GPT_RUN_FOLDER"
#: Options of the data that change how batches are made, not what they are.
CHANGEABLE_OPTIONS = ("micro_batch_size", "num_workers", "cache_dir", "predict_source")


def settings_of(config: Namespace) -> Settings:
    """The options of model and data and the seed that a run cannot go on without, by their dotted names, with their
    values as JSON.
    """
    deciding = Namespace({key: config[key] for key in ("model", "data", "seed_everything")})
    return {
        name: json.dumps(value, sort_keys=True, default=str)
        for name, value in vars(deciding.as_flat()).items()
        if name.rpartition(".")[-1] not in CHANGEABLE_OPTIONS
    }


def hash_of(settings: Settings) -> str:
    """A few letters that stand for the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def new_run_folder(parent: Path) -> Path:
    """A new ``version_N`` below ``parent``; two runs that start together get two folders."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return _new_version(parent)
    except OSError as error:
        raise UserError(
            f"a run's folder cannot be made in {str(parent)!r} ({error.strerror}): choose another --logs_dir or --name."
        ) from error


def _new_version(parent: Path) -> Path:
    number = max((_version(folder) for folder in parent.glob("version_*")), default=-1) + 1
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def give_up(folder: Path) -> None:
    """Remove the folder of a run that never began, unless it holds more than loggers write before the first step."""
    files = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    if any("tfevents" not in path.name and path.name != "hparams.yaml" for path in files):
        return
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other runs are there
        folder.parent.rmdir()


def _version(folder: Path) -> int:
    match = re.fullmatch(r"version_(\d+)", folder.name)
    return int(match[1]) if match else -1


def rank() -> int:
    """The number of this process among those of the run."""
    return int(getattr(rank_zero_only, "rank", 0))


def chosen_by_rank_0() -> Path | None:
    """The run's folder, as another process learns it; None in rank 0, and where all start at once (torchrun)."""
    told = os.environ.get(FOLDER_VARIABLE)
    return Path(told) if told and rank() else None


def not_resumable(parent: Path, settings: Settings, read: Callable[[Path], Settings | None]) -> dict[Path, str | None]:
    """What is in the way of each run below ``parent``, from the newest on, up to the first that can go on: see
    `obstacle`.
    """
    if told := chosen_by_rank_0():  # which may hold it by now
        return {told: None} if to_go_on_from(told / LAST) else {}
    found: dict[Path, str | None] = {}
    for folder in sorted(parent.glob("version_*"), key=_version, reverse=True):
        found[folder] = why_not_resumable(folder, settings, read)
        if found[folder] is None:
            break
    return found


def why_not_resumable(folder: Path, settings: Settings, read: Callable[[Path], Settings | None]) -> str | None:
    """Why a run cannot go on under these settings, None when it can.

    Args:
        folder: The run's.
        settings: The value of every option that decides the weights, by its name.
        read: The same of a run's configuration file; None where it cannot be read, or options of it are gone.
    """
    if read_summary(folder).get("finished"):
        return FINISHED
    if is_locked(folder):
        return "is still running"
    if not any((folder / LAST).parent.glob("*.ckpt")):
        return "has saved no checkpoint"
    theirs = read(folder / CONFIG)
    if theirs is not None and (difference := _difference(settings, theirs)):
        return f"has another configuration ({difference})"
    saved = to_go_on_from(folder / LAST)
    if saved is None:
        return "has no whole checkpoint"
    if theirs is None and hash_in(saved) != hash_of(settings):
        return f"is of another version, or its {CONFIG} is damaged"
    return None


def _difference(here: Settings, there: Settings) -> str | None:
    apart = [name for name in sorted(here | there) if here.get(name) != there.get(name)]
    if not apart:
        return None
    more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
    return f"{apart[0]} is {there.get(apart[0])} there, {here.get(apart[0])} here{more}"


def hash_in(saved: Path) -> str | None:
    """The hash of the settings that a checkpoint was saved under, None where it is not known."""
    callbacks = torch.load(saved, map_location="cpu", weights_only=True, mmap=True).get("callbacks", {})
    return callbacks.get("RunFolder", {}).get("settings")  # its state_key


class RunLock:
    """A run's folder, held by the process that trains there; the system lets go of it however that process ends.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = os.open(folder, os.O_RDONLY)  # the folder itself, so that no file is left behind
        _LOCKS.add(self)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise UserError(
                f"the run in {folder} is still running in another process: wait for its end, or start a new one "
                "without --ckpt_path and --resume."
            ) from None
        except OSError:  # a file system without locks
            self.release()

    @property
    def is_locked(self) -> bool:
        """Whether no other process can have it: not on a file system without locks, nor when it was released."""
        return self._file is not None

    def moved_to(self) -> str | None:
        """Where the folder is now, where that is not what its path names any more."""
        if self._file is None or _is_same(self._file, self._folder):
            return None
        place = os.path.realpath(f"/proc/self/fd/{self._file}")  # of Linux alone
        return place if _is_same(self._file, Path(place)) else "nowhere"

    def release(self) -> None:
        """Let go of it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:  # nothing is there
        return False


_LOCKS: "WeakSet[RunLock]" = WeakSet()


def _release_all() -> None:
    for hold in list(_LOCKS):
        hold.release()


os.register_at_fork(after_in_child=_release_all)  # a loader's worker outlives a killed run by seconds


def is_locked(folder: Path) -> bool:
    """Whether a process trains in the folder."""
    try:
        RunLock(folder).release()
    except UserError:
        return True
    return False


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON's, or bytes that are no UTF-8
        raise UserError(f"file {str(path)!r} is damaged ({error}): delete it.") from error
    if not isinstance(value, dict):
        raise UserError(f"file {str(path)!r} is damaged (it holds no object): delete it.")
    return value


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary, an empty one where it is missing or damaged: the run goes on without it, and writes it anew."""
    try:
        return read_json(folder / SUMMARY)
    except UserError:
        return {}


def folder_of(checkpoint: Path) -> Path | None:
    """The run's folder of one of its checkpoints, None for a file that lies elsewhere."""
    checkpoints = checkpoint.resolve().parent
    folder = checkpoints.parent
    return folder if checkpoints.name == LAST.parent.name and _is_run(folder) else None


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, SUMMARY))


class RunFolder(Callback):
    """Holds the folder; writes ``config.yaml``; in a resumed run, drops the logged figures of later steps, which come
    again.

    Args:
        folder: The run's folder.
        config: The resolved configuration.
        settings: Hash of what a run cannot go on without; a resume asks the checkpoint for it where ``config.yaml``
            is damaged.
    """

    def __init__(self, folder: Path, config: str, settings: str) -> None:
        self.folder = folder
        self.config = config
        self.settings = settings
        self.began = False
        self._hold: RunLock | None = None

    def state_dict(self) -> dict[str, Any]:
        """The hash of the settings in force."""
        return {"settings": self.settings}

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to share the folder with another process, and remove temporary files that killed runs have left.

        Also in the folders of its other runs: nobody goes on with one that was killed before its first checkpoint.
        """
        self._hold = RunLock(self.folder)
        others = [run for run in self.folder.parent.glob("version_*") if not is_locked(run)]
        for run in (self.folder, *others) if self._hold.is_locked else ():
            remove_leftovers(run)
            remove_leftovers(run / LAST.parent)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the folder."""
        if self._hold and self.began:
            self._make_whole(self._hold)
        if self._hold:
            self._hold.release()
            self._hold = None

    def _make_whole(self, hold: RunLock) -> None:
        """Say where the files are, where the folder was moved away or emptied while the run went on."""
        if not (self.folder / CONFIG).is_file():
            write_text(self.folder / CONFIG, self.config)
        if place := hold.moved_to():
            was = "deleted" if place == "nowhere" else f"moved to {place}, where its files until then are,"
            print(f"{self.folder} was {was} while the run went on: what was written later is in {self.folder}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the folder."""
        self.teardown(trainer, pl_module, "fit")

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint, if any, has been accepted."""
        self.began = True
        write_text(self.folder / CONFIG, self.config)
        for logger in trainer.loggers if trainer.ckpt_path else ():
            if isinstance(logger, MetricsCSV):
                logger.rewind(trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                _hide_after(logger, trainer.global_step)


def _hide_after(logger: TensorBoardLogger, step: int) -> None:
    """TensorBoard hides later steps of earlier event files when a new file says so at its start."""
    writer = logger.experiment
    writer.purge_step = step + 1
    writer.close()  # the next event opens the new file
