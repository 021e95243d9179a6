"""The token store: for each split one flat file of ids, and one with the positions where its documents start.

With an EOS token E, a split is ``[E d1 E d2 E ... dn E]``: one E between two documents, which ends the first and starts
the second, and one at either end. Without an EOS token it is the ids of the text alone. Files are memory-mapped, so a
corpus may be larger than memory: only the pages that batches use are read.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.files import SummedFile

#: Part of the cache's key. It is increased when the format changes or tokenizers are trained in another way.
STORE_VERSION = 5
META = "meta.json"
TOKENIZER = "tokenizer.json"
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
    """One split of a store, read-only. It pickles as its path, so worker processes map the file and copy nothing."""

    def __init__(self, folder: Path, split: str) -> None:
        meta = read_meta(folder)
        self.folder, self.split = folder, split
        self.dtype, self.eos_id = np.dtype(meta["dtype"]), meta["eos_id"]
        self.counts = Counts(**meta["splits"][split])

    def __len__(self) -> int:
        return self.counts.tokens

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder, self.split)

    @cached_property
    def tokens(self) -> np.ndarray:
        """All ids of the split, (n,) uint16 or uint32."""
        return np.memmap(self.folder / f"{self.split}.bin", self.dtype, "r")

    @cached_property
    def starts(self) -> np.ndarray:
        """The position where each document starts, at the EOS token before it if there is one; (documents + 1,) int64.

        The last entry is where the last document ends: at the last EOS token, n - 1, or at n without EOS tokens.
        """
        return np.memmap(self.folder / f"{self.split}.starts", np.int64, "r")

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
    """Writes the documents of one split to its two files.

    Attributes:
        files: the two files, by name.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, eos_id: int | None) -> None:
        self.dtype, self.eos_id = dtype, eos_id
        self.tokens = self.documents = self.chars = self.bytes = 0
        self._inside = False
        self.files = {name: SummedFile(folder / name) for name in (f"{split}.bin", f"{split}.starts")}
        self._ids, self._starts = self.files.values()

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
        self._ids.write(ids.astype(self.dtype, copy=False).tobytes())
        self.tokens += len(ids)
        self.chars += chars
        self.bytes += n_bytes
        self._inside = not end

    def close(self) -> Counts:
        """Writes the end of the last document, closes the files and returns the sizes of the split."""
        self._start()
        self.abandon()
        eos_tokens = 0 if self.eos_id is None else self.documents
        return Counts(self.tokens, self.documents, self.chars, self.bytes, eos_tokens)

    def abandon(self) -> None:
        """Closes the files without writing the end of the last document."""
        try:
            self._ids.close()
        finally:  # on a full disk the first `close` fails, as it writes the buffer
            self._starts.close()

    def _start(self) -> None:
        self._starts.write(self.tokens.to_bytes(8, "little"))
        if self.eos_id is not None:
            self._ids.write(self.dtype.type(self.eos_id).tobytes())
            self.tokens += 1


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of a store's ``meta.json``."""
    return json.loads((folder / META).read_text(encoding="utf-8"))
