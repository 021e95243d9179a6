"""Whether a token store is still what was written: checksums of its files, compared when it is opened.

``meta.json`` holds the size and the CRC-32 of every other file, and a CRC-32 of its own content. Small files are
compared each time. The files of tokens can be large (0.25 s a GB), so they are compared when they are new, when their
size, time of change or inode are not those of the last comparison, and when it is asked for.
"""

import json
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamodules.errors import UserError
from datamodules.files import crc32_of, write_text
from datamodules.tokens import META, STORE_VERSION, TokenWriter, read_meta

#: What the files of tokens were like when they were last compared. Beside the store's facts, not among them: a copy of
#: a store has other times and inodes, and may lie where nothing can be written.
STAMPS = "stamps.json"
_TOKENS = ".bin"
#: Clocks of file systems tick every 1 to 10 ms: a file that is younger may change again and keep its time.
_TICK = 50_000_000  # ns


def write_meta(folder: Path, writers: dict[str, TokenWriter], **facts: Any) -> None:
    """Closes the splits' files, and writes the one that makes a folder a finished store: it comes last.

    Args:
        folder: the store's; it holds the tokenizer already.
        writers: by split.
        facts: what else is to be known of the store.
    """
    splits = {split: asdict(writer.close()) for split, writer in writers.items()}
    files = {path.name: _record(path.stat().st_size, crc32_of(path)) for path in folder.glob("*.json")}
    for writer in writers.values():  # of what it was given, which the files are then compared with
        files |= {name: _record(file.size, file.crc32) for name, file in writer.files.items()}
    meta = {"version": STORE_VERSION, **facts, "splits": splits, "files": files}
    (folder / META).write_text(json.dumps({**meta, "checksum": _content(meta)}, indent=1), encoding="utf-8")


def is_whole(folder: Path, wholly: bool = False) -> bool:
    """Whether there is a store without `damage` in the folder."""
    return folder.is_dir() and damage(folder, wholly) is None


def damage(folder: Path, wholly: bool = False) -> str | None:
    """What is wrong with a store, such as "train.bin is missing"; None when it is whole.

    Args:
        folder: the store's.
        wholly: whether the files of tokens are read even if they look untouched.
    """
    files = _files_of(folder)
    if isinstance(files, str):
        return files
    known, seen = _known_stamps(folder), {}
    for name, record in files.items():
        path = folder / name
        try:
            stamp = _stamp(path)  # before reading: a later change is then seen the next time
            if stamp[0] != record["size"]:
                return f"{name} has {stamp[0]:,} bytes, not {record['size']:,}"
            untouched = path.suffix == _TOKENS and known.get(name) == stamp and not wholly
            if not untouched and crc32_of(path) != record["crc32"]:
                return f"{name} differs from its checksum"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if path.suffix == _TOKENS and time.time_ns() - stamp[1] > _TICK:
            seen[name] = stamp
    if seen != known:
        with suppress(UserError):  # a cache that only others may write to is compared each time
            write_text(folder / STAMPS, json.dumps(seen))
    return None


def _files_of(folder: Path) -> dict[str, Any] | str:
    """The records of a store's files, or what is wrong with the file that holds them."""
    try:
        meta = read_meta(folder)
        checksum = meta.pop("checksum")
        if checksum != _content(meta):
            return f"{META} differs from its checksum"
        files: dict[str, Any] = meta["files"]
    except FileNotFoundError:
        return f"{META} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{META} cannot be read"
    return files if meta["version"] == STORE_VERSION else "it is of another version"


def _content(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _record(size: int, crc32: int) -> dict[str, int]:
    return {"size": size, "crc32": crc32}


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _known_stamps(folder: Path) -> dict[str, Any]:
    try:
        known = json.loads((folder / STAMPS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
