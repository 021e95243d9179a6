"""The token store: for each split the ids in one or several flat files, and the positions where its documents start.

With an EOS token E, a split is ``[E d1 E d2 E ... dn E]``: one E between two documents, which ends the first and starts
the second, and one at either end. Without an EOS token it is the ids of the text alone. A large split is cut into
shards, which are files of about equal size; what reads it sees one array. Files are memory-mapped, so a corpus may be
larger than memory: only the pages that batches use are read.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np

from datamodules.files import SummedFile
from datamodules.sharded import joined

#: Part of the cache's key. It is increased when the format changes or tokenizers are trained in another way.
STORE_VERSION = 6
META = "meta.json"
TOKENIZER = "tokenizer.json"
#: In a folder that stands for a store in object storage: where that is.
ORIGIN = "origin.json"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Counts:
    """The sizes of a split.

    Attributes:
        tokens: number of tokens, EOS tokens included.
        documents: number of documents.
        chars: characters of the text.
        bytes: bytes of the text in UTF-8.
        eos_tokens: number of documents that an EOS token ends: all or none. The EOS token at the start is not counted.
    """

    tokens: int
    documents: int
    chars: int
    bytes: int
    eos_tokens: int

    @property
    def text_tokens(self) -> int:
        """Number of tokens that are no EOS tokens. There is one more of those than documents, if there are any."""
        return self.tokens - self.eos_tokens - (self.eos_tokens > 0)


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned dtype that can hold every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TokenStore:
    """One split of a store, read-only. It pickles as its path, so worker processes map the file and copy nothing.

    Args:
        folder: the folder of the store, or one that stands for a store in object storage.
        split: the name of the split.
        cache_bytes: largest size of the local cache of a store in object storage, in bytes.
    """

    def __init__(self, folder: Path, split: str, cache_bytes: int = 0) -> None:
        meta = read_meta(folder)
        self.folder, self.split, self.cache_bytes = folder, split, cache_bytes
        self.is_remote = (folder / ORIGIN).exists()
        self.dtype, self.eos_id = np.dtype(meta["dtype"]), meta["eos_id"]
        self.counts = Counts(**meta["splits"][split])
        #: Name or absolute path of each file of ids, the number of ids, and the byte at which they begin.
        self.shards: list[tuple[str, int, int]] = [
            (name, tokens, offset[0] if offset else 0) for name, tokens, *offset in meta["shards"][split]
        ]

    def __len__(self) -> int:
        return self.counts.tokens

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder, self.split, self.cache_bytes)

    @cached_property
    def tokens(self) -> np.ndarray:
        """All ids of the split, (n,) uint16 or uint32. Of several shards it is a `sharded.ShardedArray`."""
        if self.is_remote:
            from datamodules.remote_store import RemoteTokens  # it imports this module

            shards = [(name, tokens) for name, tokens, _ in self.shards]
            return cast(np.ndarray, RemoteTokens(self.folder, shards, self.dtype, self.cache_bytes))
        kept = [shard for shard in self.shards if shard[1]]
        return joined([np.memmap(self.folder / name, self.dtype, "r", at, (n,)) for name, n, at in kept])

    @cached_property
    def starts(self) -> np.ndarray:
        """The position where each document starts, at the EOS token before it if there is one; (documents + 1,) int64.

        The last entry is where the last document ends: at the last EOS token, n - 1, or at n without EOS tokens.
        """
        name = f"{self.split}.starts"
        if self.is_remote:
            from datamodules.remote_store import remote_starts

            return remote_starts(self.folder, name)
        return np.memmap(self.folder / name, np.int64, "r")

    def documents(self) -> Iterator[np.ndarray]:
        """The ids of each document, without EOS tokens."""
        has_eos = int(self.eos_id is not None)
        for low, high in pairwise(self.starts.tolist()):
            yield self.tokens[low + has_eos : high]


@dataclass(frozen=True)
class TokenArrays:
    """Documents in memory, in the layout of a split of a store."""

    tokens: np.ndarray
    starts: np.ndarray
    eos_id: int | None


TokenStream = TokenStore | TokenArrays


class TokenWriter:
    """Writes the documents of one split, or of a part of it.

    Attributes:
        files: the files, by name.
        shards: name and number of tokens of each file of ids.

    Args:
        folder: where the files are.
        name: how their names begin: ``train`` gives ``train.bin`` and ``train.starts``.
        dtype: of the ids.
        eos_id: the EOS token.
        begun: whether the split has text before this part.
        inside: whether the first piece goes on with a document of the part before.
        max_bytes: a file of ids that would become larger is closed, and another begins. At least the bytes of an id.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        dtype: np.dtype,
        eos_id: int | None,
        begun: bool = False,
        inside: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        self._folder, self._name, self._max_bytes = folder, name, max_bytes
        self.dtype, self._inside = dtype, inside
        self.tokens = self.documents = self.chars = self.bytes = 0
        self._eos = b"" if eos_id is None else dtype.type(eos_id).tobytes()
        self.files: dict[str, SummedFile] = {}
        self._ids, self._starts = self._new_file(f"{name}.bin"), self._new_file(f"{name}.starts")
        self._id_files = [self._ids]
        if not begun:
            self._write(self._eos)

    def add(self, ids: np.ndarray, chars: int, n_bytes: int, end: bool) -> None:
        """Appends a piece of a document.

        Args:
            ids: its ids, (n,).
            chars: its characters.
            n_bytes: its bytes in UTF-8.
            end: whether it is the last piece of its document.
        """
        if not self._inside:
            self._start()
            self.documents += 1
        self._write(ids.astype(self.dtype, copy=False).tobytes())
        self.chars += chars
        self.bytes += n_bytes
        self._inside = not end
        if end:
            self._write(self._eos)

    def close(self, last: bool = True) -> Counts:
        """Closes the files and returns the sizes of what was written.

        Args:
            last: whether the split ends here. If not, positions count from the beginning of this part.
        """
        if last and self._inside:
            self._write(self._eos)
        if last:
            self._start()
        self.abandon()
        eos_tokens = self.documents if self._eos else 0
        return Counts(self.tokens, self.documents, self.chars, self.bytes, eos_tokens)

    @property
    def shards(self) -> list[tuple[str, int]]:
        """Name and number of tokens of each file of ids."""
        return [(file.name, file.size // self.dtype.itemsize) for file in self._id_files]

    def abandon(self) -> None:
        """Closes the files without writing the end of the last document."""
        try:
            self._ids.close()
        finally:  # on a full disk the first `close` fails, as it writes the buffer
            self._starts.close()

    def _start(self) -> None:
        """Writes the position of the EOS token before a document, -1 if that is in the part before."""
        position = self.tokens - (len(self._eos) > 0)
        self._starts.write(position.to_bytes(8, "little", signed=True))

    def _write(self, data: bytes) -> None:
        most = self._max_bytes and self._max_bytes // self.dtype.itemsize * self.dtype.itemsize
        self.tokens += len(data) // self.dtype.itemsize
        while most and self._ids.size + len(data) > most:
            room = most - self._ids.size
            self._ids.write(data[:room])
            data = data[room:]
            self._ids.close()
            self._ids = self._new_file(f"{self._name}-{len(self._id_files)}.bin")
            self._id_files.append(self._ids)
        self._ids.write(data)

    def _new_file(self, name: str) -> SummedFile:
        self.files[name] = SummedFile(self._folder / name)
        return self.files[name]


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of a store's ``meta.json``."""
    return json.loads((folder / META).read_text(encoding="utf-8"))
