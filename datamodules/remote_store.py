"""Token stores in object storage: made on this machine and copied there, and read from there block by block.

A folder of this machine stands for the store. It has ``meta.json``, the tokenizer and ``origin.json``, which says where
the tokens are. The positions of documents, 8 bytes each, are copied as a whole when they are needed; windows never need
them. Tokens are read in blocks of 4 MiB through a `BlockCache`, and each block is compared with its checksum.
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.block_cache import BlockCache
from datamodules.errors import UserError
from datamodules.files import BLOCK, crc32_of, default_cache_dir, locked, write_atomically, write_json
from datamodules.integrity import read_checked
from datamodules.remote import DamageError, RemoteFolder
from datamodules.sharded import ShardedArray
from datamodules.tokens import META, ORIGIN, STORE_VERSION, TOKENIZER, TokenStore, read_meta

#: Bytes of the local disk for blocks of remote stores.
CACHE_BYTES = 10 * 10**9


def local_folder(url: str) -> Path:
    """The folder of this machine that stands for a remote store."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return default_cache_dir() / "remote" / f"{name}-{url.rpartition('/')[2]}"


def find_remote(url: str) -> Path | None:
    """The folder that stands for a remote store, whose small files are fetched now; None if there is no such store.

    Raises:
        UserError: names the file that is missing or cut, or the storage that cannot be read.
    """
    remote, folder = RemoteFolder(url), local_folder(url)
    sizes = remote.sizes()
    if META not in sizes:
        return None
    with locked(folder.with_suffix(".lock")):
        folder.mkdir(parents=True, exist_ok=True)
        meta = _fetched_meta(remote, folder)
        _check_sizes(remote, meta["files"], sizes)
        if not _is_copy(folder / TOKENIZER, meta["files"][TOKENIZER]):
            _copy(remote, folder, TOKENIZER, meta["files"][TOKENIZER])
        write_json(folder / ORIGIN, {"url": url})
    return folder


def upload(folder: Path, url: str) -> None:
    """Copies a store of this machine into the storage, ``meta.json`` last: with that file it is complete."""
    remote = RemoteFolder(url)
    there = remote.sizes()
    for name, record in read_meta(folder)["files"].items():
        if there.get(name) != record["size"]:  # an upload that was ended goes on
            remote.write(name, folder / name)
    remote.write(META, folder / META)


def verify_remote(folder: Path) -> None:
    """Reads all tokens of a remote store and compares them with their checksums.

    Raises:
        UserError: names the file that differs.
    """
    meta = read_meta(folder)
    remote = RemoteFolder(read_origin(folder))
    for name, record in meta["files"].items():
        for number, checksum in enumerate(record.get("blocks", ())):
            _read_block(remote, name, number, record["size"], checksum)


def hint_of_window(store: TokenStore, cache_bytes: int) -> str | None:
    """What to say where rows are shuffled over more tokens than the cache of this machine holds."""
    size = len(store) * store.dtype.itemsize
    if size <= cache_bytes:
        return None
    return (
        f"The tokens take {size / 1e9:.3g} GB and the cache of this machine {cache_bytes / 1e9:.3g} GB, so nearly "
        "every row is a request to the storage: set --data.shuffle_window to half of the cache, or raise "
        "--data.max_cache_size."
    )


def read_origin(folder: Path) -> str:
    """The URL of the store that the folder stands for."""
    return json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["url"]


def remote_starts(folder: Path, name: str) -> np.ndarray:
    """The positions of a split's documents, (documents + 1,) int64, which are copied to this machine now."""
    record = read_meta(folder)["files"][name]
    with locked(folder / f"{name}.lock"):
        path = folder / name
        if not (path.exists() and path.stat().st_size == record["size"]):
            _copy(RemoteFolder(read_origin(folder)), folder, name, record)
    return np.memmap(path, np.int64, "r")


class RemoteTokens(ShardedArray):
    """All ids of a remote split, read block by block.

    Args:
        folder: the folder that stands for the store.
        shards: name and number of tokens of each file.
        dtype: of the ids.
        cache_bytes: bytes of the local disk for blocks of all remote stores.
    """

    def __init__(self, folder: Path, shards: Sequence[tuple[str, int]], dtype: np.dtype, cache_bytes: int) -> None:
        files = read_meta(folder)["files"]
        self._remote = RemoteFolder(read_origin(folder))
        self._key = hashlib.sha256(f"{self._remote.url} {files}".encode()).hexdigest()[:16]  # of this very content
        self._cache = BlockCache(default_cache_dir() / "blocks", cache_bytes)
        self._names = [name for name, tokens in shards if tokens]
        self._sizes = [files[name]["size"] for name in self._names]
        self._checksums = np.array([crc for name in self._names for crc in files[name]["blocks"]], np.uint32)
        blocks = [len(files[name]["blocks"]) for name in self._names]
        self._first = np.concatenate([[0], np.cumsum(blocks)])  # the first block of each file, (files + 1,)
        sizes = np.full(len(self._checksums), BLOCK // dtype.itemsize, np.int64)
        sizes[self._first[1:] - 1] = [(size - 1) % BLOCK // dtype.itemsize + 1 for size in self._sizes]
        self._set(dtype, np.concatenate([[0], np.cumsum(sizes)]))

    def _part(self, number: int) -> np.ndarray:
        file = int(np.searchsorted(self._first, number, side="right")) - 1
        within, name, size = number - int(self._first[file]), self._names[file], self._sizes[file]
        length, checksum = min(BLOCK, size - within * BLOCK), int(self._checksums[number])
        fetch = partial(_read_block, self._remote, name, within, size, checksum)
        return self._cache.block(f"{self._key}-{name}-{within}", length, checksum, fetch).view(self.dtype)


def _read_block(remote: RemoteFolder, name: str, number: int, size: int, checksum: int) -> bytes:
    """A block of a file of ``size`` bytes. One that differs from its checksum is read again."""

    def read(fs: Any, path: str) -> bytes:
        data = bytes(fs.cat_file(path, start=number * BLOCK, end=min((number + 1) * BLOCK, size)))
        if zlib.crc32(data) != checksum:
            raise DamageError(f"block {number} differs from its checksum")
        return data

    return remote.tried(name, read)


def _fetched_meta(remote: RemoteFolder, folder: Path) -> dict[str, Any]:
    def read(fs: Any, path: str) -> dict[str, Any]:
        data = bytes(fs.cat_file(path))
        write_atomically(folder / META, lambda file: file.write(data))
        if (meta := read_checked(folder / META)) is None:
            raise DamageError("it differs from its checksum")
        return meta

    meta = remote.tried(META, read)
    if meta.get("version") != STORE_VERSION:
        raise UserError(
            f"{remote.url}/{META} was written by another version: remove that folder to have it made again."
        )
    return meta


def _check_sizes(remote: RemoteFolder, files: dict[str, Any], sizes: dict[str, int | None]) -> None:
    for name, record in files.items():
        size = sizes.get(name)
        if name in sizes and size in (None, record["size"]):
            continue
        found = "is missing" if size is None else f"has {size:,} bytes, not {record['size']:,}"
        raise UserError(
            f"{remote.url}/{name} {found}: copy it there again, or remove that folder to have it made again."
        )


def _is_copy(path: Path, record: dict[str, Any]) -> bool:
    with suppress(OSError):
        return path.stat().st_size == record["size"] and crc32_of(path) == record["crc32"]
    return False


def _copy(remote: RemoteFolder, folder: Path, name: str, record: dict[str, Any]) -> None:
    """Copies a file to this machine, a block at a time. One that differs from its checksum is copied again."""

    def fill(file: Any) -> None:
        for start in range(0, record["size"], BLOCK):
            file.write(remote.read(name, start, min(start + BLOCK, record["size"])))

    def copy(fs: Any, path: str) -> None:
        write_atomically(folder / name, fill)
        if not _is_copy(folder / name, record):
            (folder / name).unlink(missing_ok=True)
            raise DamageError("it differs from its checksum")

    remote.tried(name, copy)
