"""Where a run can be stopped or refused: each rename, link, flush, removal and new folder, and half-written files.

`watch` replaces the functions in a process that is thrown away afterwards, so nothing is put back.
"""

import csv
import errno
import io
import itertools
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Event(NamedTuple):
    """One such moment: the operation, the file's name without its numbers, and before, after or half."""

    operation: str
    target: str
    when: str

    def __str__(self) -> str:
        return f"{self.when} {self.operation} {self.target}"


Heed = Callable[[int, Event], object]


def target_of(path: Any) -> str | None:
    """What a path below the current folder is, temporary names and numbers left out; None for any other path."""
    path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
    if not os.path.abspath(path).startswith(os.getcwd() + os.sep):
        return None
    name = re.sub(r"^\.|\.(link|[a-z0-9_]{8})?\.?tmp$", "", Path(path).name)
    name = re.sub(r"^[0-9a-f]{24}", "STORE", name)
    return re.sub(r"\d+", "N", name)


def watch(heed: Heed) -> None:
    """Call ``heed`` with a running number and the event at each."""
    numbers = itertools.count()

    def at(operation: str, path: Any, when: str) -> None:
        target = target_of(path)
        if target is not None:
            heed(next(numbers), Event(operation, target, when))

    for operation, place in (("replace", 1), ("rename", 1), ("link", 1), ("fsync", 0), ("unlink", 0), ("mkdir", 0)):
        _wrap(operation, place, at)
    _halve_files(at)
    _halve_rows(at)
    _halve_tokens(at)


def _wrap(operation: str, place: int, at: Callable[[str, Any, str], None]) -> None:
    real = getattr(os, operation)

    def call(*args: Any, **kwargs: Any) -> Any:
        path = args[place]
        at(operation, path, "before")
        result = real(*args, **kwargs)
        at(operation, path, "after")
        return result

    setattr(os, operation, call)


class _Halved:
    """A file of which the first write, and one a while later, come in two halves."""

    HALVED = (0, 9)

    def __init__(self, file: Any, at: Callable[[str, Any, str], None]) -> None:
        self._file, self._at, self._writes = file, at, 0

    def __enter__(self) -> "_Halved":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        if self._writes in self.HALVED:
            half = len(data) // 2
            self._file.write(data[:half])
            self._file.flush()
            self._at("write", self._file.fileno(), "half")
            self._file.write(data[half:])
        else:
            self._file.write(data)
        self._writes += 1
        return len(data)


def _halve_files(at: Callable[[str, Any, str], None]) -> None:
    real = os.fdopen

    def fdopen(handle: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real(handle, mode, *args, **kwargs)
        return _Halved(file, at) if mode == "wb" else file

    os.fdopen = fdopen  # type: ignore[assignment]


def _halve_rows(at: Callable[[str, Any, str], None]) -> None:
    real: Any = csv.writer

    class Writer:
        def __init__(self, file: Any) -> None:
            self.file, self.writer = file, real(file)

        def writerows(self, rows: Any) -> None:
            self.writer.writerows(rows)

        def writerow(self, row: Any) -> None:
            text = io.StringIO()
            real(text).writerow(row)
            value = text.getvalue()
            self.file.write(value[: len(value) // 2])
            self.file.flush()
            at("row", self.file.fileno(), "half")
            self.file.write(value[len(value) // 2 :])

    csv.writer = Writer  # type: ignore[assignment]


def _halve_tokens(at: Callable[[str, Any, str], None]) -> None:
    from datamodules.files import SummedFile

    real = SummedFile.write

    def write(self: SummedFile, data: Any) -> None:
        data = bytes(data)
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        at("tokens", self._file.fileno(), "half")
        self._file.seek(-(len(data) // 2), os.SEEK_END)
        real(self, data)

    SummedFile.write = write  # type: ignore[method-assign]


# ---- what to do there


def record(into: Path) -> Callable[[], None]:
    """Write each event as a line."""

    def first() -> None:
        file = into.open("w", buffering=1)
        watch(lambda _, event: file.write("\t".join(event) + "\n"))

    return first


def events_of(path: Path) -> list[Event]:
    """What `record` wrote."""
    return [Event(*line.split("\t")) for line in path.read_text().splitlines()]


def kill_at(number: int) -> Callable[[], None]:
    """Kill the process at an event, as a power cut would end it."""

    def heed(now: int, event: Event) -> None:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: watch(heed)


def refuse_from(number: int, code: int) -> Callable[[], None]:
    """From an event on the system refuses to make or fill a file, as on a full disk; removing goes on to work."""

    def heed(now: int, event: Event) -> None:
        if now >= number and event.when != "after" and event.operation != "unlink":
            raise OSError(code, os.strerror(code))

    return lambda: watch(heed)


def once(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """Something happens at an event."""

    def heed(now: int, event: Event) -> None:
        if now == number:
            act()

    return lambda: watch(heed)


FULL = errno.ENOSPC
