"""Blocks of remote files on the local disk: fetched when they are needed, and removed when there are too many."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import numpy as np

from datamodules.errors import UserError
from datamodules.files import BLOCK, TEMPORARY, write_atomically

#: Blocks that a process keeps mapped, so that neighbouring rows open no file: at most 128 MB of the disk's cache.
_MAPPED = 32


class BlockCache:
    """A folder of blocks that processes of a machine share. Each is one file; the least recently used is removed first.

    Args:
        folder: where the blocks are.
        limit: bytes that they take at most, but for the blocks that processes fetch at the same moment.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._mapped: OrderedDict[str, np.ndarray] = OrderedDict()
        self._pending: dict[str, Future[np.ndarray]] = {}
        self._lock = threading.Lock()
        self._until_removal = 0

    def block(self, name: str, size: int, fetch: Callable[[], bytes]) -> np.ndarray:
        """The bytes of a block, (size,) uint8. Of several threads that want the same block one fetches it.

        Args:
            name: the name of its file.
            size: its bytes.
            fetch: reads it from the storage.
        """
        with self._lock:
            if name in self._mapped:
                self._mapped.move_to_end(name)
                return self._mapped[name]
            waiting = self._pending.get(name)
            mine = self._pending.setdefault(name, Future())
        if waiting is not None:
            return waiting.result()
        try:
            data = self._opened(name, size, fetch)
            mine.set_result(data)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._pending[name]
        with self._lock:
            self._mapped[name] = data
            while len(self._mapped) > _MAPPED:
                self._mapped.popitem(last=False)
        return data

    def _opened(self, name: str, size: int, fetch: Callable[[], bytes]) -> np.ndarray:
        path = self.folder / name
        if (data := _mapped(path, size)) is None:
            content = fetch()
            self._make_room(size)
            with suppress(OSError, UserError):  # a full disk costs the cache, not the run
                write_atomically(path, lambda file: file.write(content))
            data = _mapped(path, size)
            return np.frombuffer(content, np.uint8) if data is None else data
        with suppress(OSError):
            os.utime(path)  # it is the most recently used
        return data

    def _make_room(self, size: int) -> None:
        """Removes the blocks that were not used for longest. The folder is looked through now and then only."""
        self._until_removal -= 1
        if self._until_removal > 0:
            return
        files = sorted((stat.st_mtime_ns, stat.st_size, path) for path, stat in _files(self.folder))
        held, interval = sum(held for _, held, _ in files), max(1, min(64, self.limit // BLOCK // 16))
        for _, held_by_it, path in files:
            if held + interval * size <= self.limit:
                break
            with suppress(OSError):
                path.unlink()
            held -= held_by_it
        self._until_removal = interval


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):  # another process has removed it
            if not path.name.endswith(TEMPORARY):
                found.append((path, path.stat()))
    return found


def _mapped(path: Path, size: int) -> np.ndarray | None:
    """A block's file. None: it is not there, or not whole."""
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError):
        return None
    return data if len(data) == size else None
