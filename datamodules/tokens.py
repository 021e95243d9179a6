"""The token store: one flat file of ids for each split, and the places where its documents start.

A split of a tokenizer with an end mark E is laid out as ``[E d1 E d2 E ... dn E]``: one mark between documents, which
ends the one before it and starts the one after it, and one at either end. Without an end mark it is the bare stream
of text. Files are memory-mapped, so a corpus larger than memory costs no more than the pages that batches touch.
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

#: Raised by one when the files of older code can no longer be read, or tokenizers are trained otherwise than by it.
#: Part of the cache's key.
STORE_VERSION = 4
META = "meta.json"
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Counts:
    """What one split holds: ``tokens`` counts end marks; ``chars`` and ``bytes`` (UTF-8) are of the text alone."""

    tokens: int
    documents: int
    chars: int
    bytes: int
    eos_tokens: int

    @property
    def text_tokens(self) -> int:
        """Those that are no marks: where documents have marks, there is one more than documents."""
        return self.tokens - self.eos_tokens - (self.eos_tokens > 0)


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TokenStore:
    """One split, opened read-only. Pickles as its path: worker processes map the file again instead of copying it."""

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
        """Where each document starts, at its end mark if there are any; (documents + 1,) int64.

        The last entry is where the last document ends: at the final mark, n - 1, or at n without end marks.
        """
        return np.memmap(self.folder / f"{self.split}.starts", np.int64, "r")

    def documents(self) -> Iterator[np.ndarray]:
        """Ids of each document, without end marks."""
        mark = int(self.eos_id is not None)
        for low, high in pairwise(self.starts.tolist()):
            yield self.tokens[low + mark : high]


@dataclass(frozen=True)
class TokenArrays:
    """Documents in memory, laid out like a split of a store."""

    tokens: np.ndarray
    starts: np.ndarray
    eos_id: int | None


TokenStream = TokenStore | TokenArrays


class TokenWriter:
    """Appends the documents of one split to its two files.

    Attributes:
        files: the two, by name.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, eos_id: int | None) -> None:
        self.dtype, self.eos_id = dtype, eos_id
        self.tokens = self.documents = self.chars = self.bytes = 0
        self._inside = False
        self.files = {name: SummedFile(folder / name) for name in (f"{split}.bin", f"{split}.starts")}
        self._ids, self._starts = self.files.values()

    def add(self, ids: np.ndarray, chars: int, n_bytes: int, end: bool) -> None:
        """Appends a piece of a document; ``end`` says that it is the last one."""
        if not self._inside:
            self._start()
            self.documents += 1
        self._ids.write(ids.astype(self.dtype, copy=False).tobytes())
        self.tokens += len(ids)
        self.chars += chars
        self.bytes += n_bytes
        self._inside = not end

    def close(self) -> Counts:
        """Writes the last boundary and says what the split holds."""
        self._start()
        self.abandon()
        marks = 0 if self.eos_id is None else self.documents
        return Counts(self.tokens, self.documents, self.chars, self.bytes, marks)

    def abandon(self) -> None:
        """Closes the files as they are."""
        try:
            self._ids.close()
        finally:  # a full disk refuses what the buffer still holds
            self._starts.close()

    def _start(self) -> None:
        self._starts.write(self.tokens.to_bytes(8, "little"))
        if self.eos_id is not None:
            self._ids.write(self.dtype.type(self.eos_id).tobytes())
            self.tokens += 1


def read_meta(folder: Path) -> dict[str, Any]:
    """What the writer said about the store."""
    return json.loads((folder / META).read_text(encoding="utf-8"))
