"""A run's folder, ``logs/<name>/version_N``: claimed once, found again to resume."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakSet

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only

from datamodules.errors import UserError

Settings: TypeAlias = dict[str, Any]

SUMMARY, CONFIG = "summary.json", "config.yaml"
LAST = Path("checkpoints") / "last.ckpt"
#: How rank 0 tells the processes that it starts where the run is.
FOLDER_VARIABLE = "LIT_GPT_RUN_FOLDER"
#: Options of the data that change how batches are made, not what they are.
FREE = ("micro_batch_size", "num_workers", "cache_dir", "predict_source")


def settings_of(config: Namespace) -> Settings:
    """The options of model and data and the seed that a run cannot go on without, by their dotted names, with their
    values as JSON.
    """
    deciding = Namespace({key: config[key] for key in ("model", "data", "seed_everything")})
    return {
        name: json.dumps(value, sort_keys=True, default=str)
        for name, value in vars(deciding.as_flat()).items()
        if name.rpartition(".")[-1] not in FREE
    }


def hash_of(settings: Settings) -> str:
    """A few letters that stand for the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def claim(parent: Path) -> Path:
    """A new ``version_N`` below ``parent``; two runs that start together get two folders."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return _claim(parent)
    except OSError as error:
        raise UserError(
            f"a run's folder cannot be made in {str(parent)!r} ({error.strerror}): choose another --logs_dir or --name."
        ) from error


def _claim(parent: Path) -> Path:
    number = max((_version(folder) for folder in parent.glob("version_*")), default=-1) + 1
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


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


def obstacles(parent: Path, settings: Settings, read: Callable[[Path], Settings | None]) -> dict[Path, str | None]:
    """What is in the way of each run below ``parent``, from the newest on, up to the first that can go on: see
    `obstacle`.
    """
    if told := chosen_by_rank_0():  # which may hold it by now
        return {told: None} if (told / LAST).is_file() else {}
    found: dict[Path, str | None] = {}
    for folder in sorted(parent.glob("version_*"), key=_version, reverse=True):
        found[folder] = obstacle(folder, settings, read)
        if found[folder] is None:
            break
    return found


def obstacle(folder: Path, settings: Settings, read: Callable[[Path], Settings | None]) -> str | None:
    """Why a run cannot go on under these settings, None when it can.

    Args:
        folder: The run's.
        settings: The value of every option that decides the weights, by its name.
        read: The same of a run's configuration file; None where options of that file are gone.
    """
    summary = read_json(folder / SUMMARY)
    if summary.get("finished"):
        return "is finished"
    if is_held(folder):
        return "is still running"
    if not summary or not (folder / LAST).is_file():
        return "has saved no checkpoint"
    theirs = read(folder / CONFIG)
    if theirs is None:
        return "is of another version"
    apart = [name for name in sorted(settings | theirs) if settings.get(name) != theirs.get(name)]
    if not apart:
        return None
    more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
    values = f"{theirs.get(apart[0])} there, {settings.get(apart[0])} here"
    return f"has another configuration ({apart[0]} is {values}{more})"


class Hold:
    """A run's folder, held by the process that trains there; the system lets go of it however that process ends.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._file: int | None = os.open(folder, os.O_RDONLY)  # the folder itself, so that no file is left behind
        _HOLDS.add(self)
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

    def release(self) -> None:
        """Let go of it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


_HOLDS: "WeakSet[Hold]" = WeakSet()


def _release_all() -> None:
    for hold in list(_HOLDS):
        hold.release()


os.register_at_fork(after_in_child=_release_all)  # a loader's worker outlives a killed run by seconds


def is_held(folder: Path) -> bool:
    """Whether a process trains in the folder."""
    try:
        Hold(folder).release()
    except UserError:
        return True
    return False


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"file {str(path)!r} is damaged ({error}): delete it.") from error
    return value


def folder_of(checkpoint: Path) -> Path | None:
    """The run's folder of one of its checkpoints, None for a file that lies elsewhere."""
    checkpoints = checkpoint.resolve().parent
    folder = checkpoints.parent
    return folder if checkpoints.name == LAST.parent.name and (folder / CONFIG).is_file() else None
