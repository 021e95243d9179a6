"""The file system: cache folders, locks between processes, atomic writes."""

import fcntl
import io
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from datamodules.errors import FULL, UserError
from datamodules.remote import is_url

#: How names of temporary files end, and the whole name: the file's name, eight characters of mkstemp, the end.
TEMPORARY = ".tmp"
LEFTOVER = re.compile(r"\..+\.(link|[a-z0-9_]{8})\.tmp")


def expanded(path: str | Path) -> Path:
    """``path`` with the home folder in place of a ``~`` or ``~NAME`` at its beginning.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(f"{path}: {home} is nobody's home folder on this machine; write the folder out.") from None


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/lit_gpt``, or ``~/.cache/lit_gpt``."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lit_gpt"


def cache_folder(cache_dir: str | Path | None) -> Path:
    """The folder ``cache_dir``. It is the default one for None, and for a URL, where only token stores are kept."""
    return expanded(cache_dir) if cache_dir and not is_url(cache_dir) else default_cache_dir()


#: Bytes that are read at a time.
_CHUNK = 1 << 22


#: Bytes of a block: what is fetched of a remote file at a time, and has a checksum of its own.
BLOCK = 1 << 22


class SummedFile:
    """A new file with the size and the CRC-32 of the bytes that were given to it, not of those on the disk.

    Attributes:
        size: bytes that were written.
        crc32: CRC-32 of all of them.
        blocks: CRC-32 of each `BLOCK` bytes; the last may be shorter.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.name = path.name
        self.size = self.crc32 = 0
        self.blocks: list[int] = []

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        view, done = memoryview(data), 0
        while done < len(data):
            inside = self.size % BLOCK
            if not inside:
                self.blocks.append(0)
            part = view[done : done + BLOCK - inside]
            self.blocks[-1] = zlib.crc32(part, self.blocks[-1])
            self.size += len(part)
            done += len(part)

    def close(self) -> None:
        """Closes the file. May be called again."""
        self._file.close()


def crc32_of(path: Path) -> int:
    """The CRC-32 of a file's bytes, in 0.25 s a GB."""
    value = 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            value = zlib.crc32(data, value)
    return value


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``path`` among processes. The system releases it if this process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file by way of a temporary file beside it, which is flushed to the disk and renamed to ``path``.

    A reader sees the old file or the whole new one, also after a kill at any moment. The temporary file is in the same
    folder because it must be on the same file system: a rename across two is a copy, of which a kill leaves half.

    Args:
        path: the file.
        write: writes the content to the temporary file.

    Raises:
        UserError: the disk is full, or permission is missing.
    """
    path = Path(path)
    with writing(path, lambda: _size(write)):
        in_folder(path.parent, lambda: _write_and_rename(path, write))


def _write_and_rename(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    try:
        _fill(handle, write)
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide it from other users
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):  # the folder may have been moved
            os.unlink(name)
        raise


def append(path: Path, data: bytes, header: bytes = b"") -> None:
    """Appends bytes to a file.

    Args:
        path: the file, which is created if it does not exist.
        data: the bytes.
        header: what an empty or new file gets first.
    """
    in_folder(path.parent, lambda: _append(path, data, header))


def _append(path: Path, data: bytes, header: bytes) -> None:
    with path.open("ab") as file:
        file.write(data if file.tell() else header + data)


def in_folder(folder: Path, act: Callable[[], None], tries: int = 3) -> None:
    """Creates a folder and acts in it, and does both again if the folder is moved or deleted between the two."""
    for _ in range(tries - 1):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return act()
    folder.mkdir(parents=True, exist_ok=True)
    return act()


@contextmanager
def writing(path: Path, size: Callable[[], int] | None = None) -> Iterator[None]:
    """Turns an error of the system while ``path`` is written into a `UserError`.

    Args:
        path: the file.
        size: gives the number of bytes that it needs; called if the disk is full.

    Raises:
        UserError: the disk is full, or permission is missing.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save wraps it
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(cause)
        if size and cause.errno in FULL:
            with suppress(OSError):
                reason += f"; it needs {size():,} bytes, and the disk has {_free(path):,}"
        raise UserError(f"the file {path} cannot be written ({reason}); choose another place.") from None


class _Measure(io.RawIOBase):
    """A file that counts the bytes written to it and drops them."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        n = memoryview(data).nbytes
        self.size += n
        return n


def _size(write: Callable[[IO[bytes]], object]) -> int:
    measure = _Measure()
    write(cast(IO[bytes], measure))
    return measure.size


def _free(path: Path) -> int:
    return shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.is_dir())).free


def _fill(handle: int, write: Callable[[IO[bytes]], object]) -> None:
    with os.fdopen(handle, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that a kill of `write_atomically` left in a folder where no process writes now."""
    for path in folder.glob(f".*{TEMPORARY}"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
