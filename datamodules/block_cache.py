"""Blocks of remote files on the local disk: fetched when they are needed, and removed when there are too many."""

import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import numpy as np

from datamodules.files import BLOCK, TEMPORARY

#: Blocks that a process keeps mapped, so that neighbouring rows open no file: at most 128 MB of the disk's cache.
_MAPPED = 32
#: Seconds after which a temporary file is one of a process that was killed. A block is written in less than one.
_ABANDONED = 600


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
        self._compared: set[str] = set()

    def block(self, name: str, size: int, checksum: int, fetch: Callable[[], bytes]) -> np.ndarray:
        """The bytes of a block, (size,) uint8. Of several threads that want the same block one fetches it.

        Args:
            name: the name of its file.
            size: its bytes.
            checksum: their CRC-32. A file that is there already is compared with it once in a process, 1 ms.
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
            data = self._opened(name, size, checksum, fetch)
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

    def _opened(self, name: str, size: int, checksum: int, fetch: Callable[[], bytes]) -> np.ndarray:
        path = self.folder / name
        data = _mapped(path, size)
        if data is None or (name not in self._compared and zlib.crc32(data.data) != checksum):
            content = fetch()
            self._make_room(size)
            _write(path, content)
            data = np.frombuffer(content, np.uint8) if (there := _mapped(path, size)) is None else there
        else:
            with suppress(OSError):
                os.utime(path)  # it is the most recently used
        self._compared.add(name)
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


def _write(path: Path, content: bytes) -> None:
    """Writes a block by way of a temporary file. A full disk costs the cache, not the run.

    It is not flushed: after a loss of power the block's checksum tells that it is not whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The blocks. Temporary files of processes that were killed are removed."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):  # another process has removed it
            if not path.name.endswith(TEMPORARY):
                found.append((path, path.stat()))
            elif time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
    return found


def _mapped(path: Path, size: int) -> np.ndarray | None:
    """A block's file. None: it is not there, or not whole."""
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError):
        return None
    return data if len(data) == size else None
