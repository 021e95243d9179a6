"""The file system: where caches are, locks between processes, files that appear whole."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodules.errors import UserError


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/lit_gpt``, or ``~/.cache/lit_gpt``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_gpt"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``path`` among processes; the system releases it however this one ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, text: str) -> None:
    """Writes beside ``path`` and renames, so that a reader sees the old file or the whole new one.

    Raises:
        UserError: no room, no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, 0o644)  # mkstemp's 0600 would hide it from colleagues
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UserError(f"The file {path} cannot be written ({error.strerror}); choose another place.") from None
