"""Checks that a token store still holds what was written: checksums of its files are compared when it is opened.

``meta.json`` holds the size and the CRC-32 of every other file, and a CRC-32 of its own content. Small files are
compared each time. The files of tokens can be large, and a comparison takes 0.25 s a GB. They are compared when they
are new, when their size, time of change or inode differ from those of the last comparison, and on request.
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
from datamodules.files import SummedFile, crc32_of, write_text
from datamodules.tokens import META, STORE_VERSION, TOKENIZER, TokenWriter, read_meta

#: Size, time of change and inode of the files of tokens at the last comparison. They are not in ``meta.json``: a copy
#: of a store has other times and inodes, and may be in a folder that is read-only.
STAMPS = "stamps.json"
_TOKENS = ".bin"
_CHECKSUM = "checksum"  # of the other entries of meta.json
#: A file system's clock ticks every 1 to 10 ms, and some have whole seconds only, or every other one (FAT, some shares
#: of a network). A file that is younger than that may change and keep its time.
_TICK, _COARSE_TICK = 50_000_000, 2_000_000_000  # ns


def write_meta(folder: Path, written: dict[str, Any], **facts: Any) -> None:
    """Writes ``meta.json``, which makes the folder a complete store.

    Args:
        folder: the folder of the store; it has the tokenizer already.
        written: the entries ``splits``, ``shards`` and ``files``, as from `written_by`.
        facts: further entries of ``meta.json``.
    """
    small = {path.name: {"size": path.stat().st_size, "crc32": crc32_of(path)} for path in folder.glob(TOKENIZER)}
    _write_meta(folder, {"version": STORE_VERSION, **facts, **written, "files": {**small, **written["files"]}})


def written_by(writers: dict[str, TokenWriter], last: bool = True) -> dict[str, Any]:
    """Closes the writer of each split, and returns the sizes, shards and checksums of what it has written.

    Args:
        writers: the writers, by split.
        last: see `TokenWriter.close`.
    """
    splits = {split: asdict(writer.close(last)) for split, writer in writers.items()}
    shards = {split: writer.shards for split, writer in writers.items()}
    files = {name: file_record(file) for writer in writers.values() for name, file in writer.files.items()}
    return {"splits": splits, "shards": shards, "files": files}


def file_record(file: SummedFile) -> dict[str, Any]:
    """Size and checksums of the bytes to be written, not of what the disk holds."""
    blocks = {"blocks": file.blocks} if file.name.endswith(_TOKENS) else {}
    return {"size": file.size, "crc32": file.crc32, **blocks}


def add_to_meta(folder: Path, key: str, value: Any) -> None:
    """Adds an entry to the ``meta.json`` of a store that is being made."""
    meta = {k: v for k, v in read_meta(folder).items() if k != _CHECKSUM}
    _write_meta(folder, {**meta, key: value})


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    (folder / META).write_text(json.dumps(with_checksum(meta), indent=1), encoding="utf-8")


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a JSON file and their checksum."""
    return {**content, _CHECKSUM: _content(content)}


def read_checked(path: Path) -> dict[str, Any] | None:
    """The entries of a JSON file with a checksum. None: it is missing, or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop(_CHECKSUM)
        return content if checksum == _content(content) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def is_whole(folder: Path, verify: bool = False) -> bool:
    """Whether the folder is a complete store without `damage`."""
    return folder.is_dir() and damage(folder, verify) is None


def damage(folder: Path, verify: bool = False) -> str | None:
    """The damage of a store in words, such as "train.bin is missing"; None when there is none.

    Args:
        folder: the folder of the store.
        verify: whether the files of tokens are read even if size, time of change and inode have not changed.
    """
    files = _files_of(folder)
    if isinstance(files, str):
        return files
    last_stamps, stamps = _last_stamps(folder), {}
    for name, record in files.items():
        path = folder / name
        try:
            stamp = _stamp(path)  # before reading: a change during it is then noticed the next time
            if stamp[0] != record["size"]:
                return f"{name} has {stamp[0]:,} bytes, not {record['size']:,}"
            untouched = path.suffix == _TOKENS and last_stamps.get(name) == stamp and not verify
            if not untouched and crc32_of(path) != record["crc32"]:
                return f"{name} differs from its checksum"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if path.suffix == _TOKENS and is_settled(stamp[1]):
            stamps[name] = stamp
    if stamps != last_stamps:
        with suppress(UserError):  # a folder that this user may not write to is compared each time
            write_text(folder / STAMPS, json.dumps(stamps))
    return None


def is_settled(changed: int) -> bool:
    """Whether a file is so old that the next change gives it another time.

    Args:
        changed: the time of its last change, in ns.
    """
    tick = _TICK if changed % 10**9 else _COARSE_TICK  # whole seconds: perhaps the clock has no others
    return time.time_ns() - changed > tick


def _files_of(folder: Path) -> dict[str, Any] | str:
    """The size and checksum of each file of a store, or the damage of ``meta.json``, which holds them."""
    try:
        meta = read_meta(folder)
        checksum = meta.pop(_CHECKSUM)
        if checksum != _content(meta):
            return f"{META} differs from its checksum"
        files: dict[str, Any] = meta["files"]
    except FileNotFoundError:
        return f"{META} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{META} cannot be read"
    return files if meta["version"] == STORE_VERSION else "it was written by another version"


def _content(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _last_stamps(folder: Path) -> dict[str, Any]:
    try:
        stamps = json.loads((folder / STAMPS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stamps if isinstance(stamps, dict) else {}
