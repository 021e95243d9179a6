"""The lock of a run's folder: one process at a time trains there."""

import fcntl
import os
from pathlib import Path
from weakref import WeakSet

from datamodules.errors import UserError


class RunLock:
    """Locks a run's folder for the process that trains there. The system releases it when that process ends.

    Raises:
        UserError: Another process has the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        """Whether this object has the lock. False after a release, and on a file system without locks."""
        return self._file is not None

    def moved_to(self) -> str | None:
        """The new path of a folder that was moved, or "nowhere" if it was deleted. None: it is where it was."""
        if self._file is None or _is_same(self._file, self.folder):
            return None
        path = os.path.realpath(f"/proc/self/fd/{self._file}")  # Linux only
        return path if _is_same(self._file, Path(path)) else "nowhere"

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:  # the path does not exist
        return False


_LOCKS: "WeakSet[RunLock]" = WeakSet()


def _release_all() -> None:
    for lock in list(_LOCKS):
        lock.release()


# else a loader's worker, which outlives a killed run by seconds, keeps the lock
os.register_at_fork(after_in_child=_release_all)


def is_locked(folder: Path) -> bool:
    """Whether another process trains in the folder."""
    try:
        RunLock(folder).release()
    except UserError:
        return True
    return False
