"""Fingerprints of files are computed once, so that other processes and later runs need not read the text for them.

A record names each file with its size, times of change and inode. A file that was written to has others, and is read
again. Records are in ``fingerprints`` of the default cache, one small file each.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress

from datamodules.errors import UserError
from datamodules.files import default_cache_dir, write_json
from datamodules.integrity import is_settled, read_checked, with_checksum
from datamodules.reading import TextFile


def remembered(files: Sequence[TextFile], options: object, compute: Callable[[], str]) -> str:
    """What ``compute`` gives for some files: from a record, or computed now and recorded.

    Args:
        files: the files. If one is no file on a disk, nothing is recorded.
        options: what else the value depends on, as JSON.
        compute: reads the files.
    """
    states = [_state(file) for file in files]
    if None in states:
        return compute()
    key = json.dumps([states, options])
    path = default_cache_dir() / "fingerprints" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    record = read_checked(path)
    if record is not None and record.get("key") == key:
        return str(record["value"])
    newest = max(max(state[2:4]) for state in states if state is not None)
    value = compute()
    # A file that has just been written to may change again and keep its time: it is not recorded.
    if is_settled(newest) and [_state(file) for file in files] == states:
        with suppress(OSError, UserError):  # a cache that cannot be written costs another reading
            write_json(path, with_checksum({"key": key, "value": value}))
    return value


def _state(file: TextFile) -> tuple[str, int, int, int, int] | None:
    """Path, size, times of change and inode of a file on a disk."""
    if file.path is None:
        return None
    try:
        stat = file.path.stat()
    except OSError:
        return None
    return str(file.path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
