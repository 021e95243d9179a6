"""The file system: where caches are, locks between processes, files that appear whole."""

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

#: How the names of temporary files end, and what they are wholly: the file's, eight signs of mkstemp's.
TEMPORARY = ".tmp"
LEFTOVER = re.compile(r"\..+\.(link|[a-z0-9_]{8})\.tmp")


def expanded(path: str | Path) -> Path:
    """``path`` with the home folder that a ``~`` or ``~NAME`` at its beginning stands for.

    Raises:
        UserError: there is no such folder.
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
    """The one that was asked for, or the default."""
    return expanded(cache_dir) if cache_dir else default_cache_dir()


#: Bytes that are read at a time.
_CHUNK = 1 << 22


class SummedFile:
    """A file that is written from its beginning on, and knows the size and the CRC-32 of what was given to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.size = self.crc32 = 0

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes."""
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.size += len(data)

    def close(self) -> None:
        """Closes the file; again if need be."""
        self._file.close()


def crc32_of(path: Path) -> int:
    """The CRC-32 of a file's bytes: 0.25 s a GB."""
    value = 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            value = zlib.crc32(data, value)
    return value


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``path`` among processes; the system releases it however this one ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, flushes it to the disk, and renames it to ``path``.

    A reader, or a start after a kill at any moment, sees the old file or the whole new one. The temporary file must be
    on the same file system: a rename across two is a copy, and a kill in the middle of that leaves half a file.

    Raises:
        UserError: no room, no permission.
    """
    path = Path(path)
    with writing(path, lambda: _size(write)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        try:
            _fill(handle, write)
            os.chmod(name, 0o644)  # mkstemp's 0600 would hide it from colleagues
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):  # the folder has been moved away
                os.unlink(name)
            raise


@contextmanager
def writing(path: Path, size: Callable[[], int] | None = None) -> Iterator[None]:
    """Turns what the system refuses while ``path`` is written into one sentence.

    Args:
        path: the file.
        size: how many bytes it needs, asked when there is no room.

    Raises:
        UserError: no room, no permission.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save hides the system's
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(cause)
        if size and cause.errno in FULL:
            with suppress(OSError):
                reason += f"; it needs {size():,} bytes, and the disk has {_free(path):,}"
        raise UserError(f"The file {path} cannot be written ({reason}); choose another place.") from None


class _Measure(io.RawIOBase):
    """Counts what is written to it."""

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
    """Removes the temporary files of `write_atomically` that a kill has left in a folder in which nobody writes now."""
    for path in folder.glob(f".*{TEMPORARY}"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
