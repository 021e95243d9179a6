"""Splits a source into train, val and test: a text at two character positions, or whole documents."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from datamodules.errors import UserError
from datamodules.permutation import permute, random_words
from datamodules.sources import Source
from datamodules.tokens import SPLITS

#: Characters that are read at a time. Pieces of a million take 4 times as long: each needs new memory from the system.
PIECE = 1 << 17


@dataclass(frozen=True)
class Split:
    """How a source is divided; train comes first, then val, then test.

    Args:
        by: ``text`` cuts at character positions. It may cut a document, which then counts as two. ``documents`` keeps
            each document whole.
        val: share of the characters (or documents) to validate on; an int is a number of documents.
        test: the same for the test split.
        shuffle: None takes documents in file order; an int is the seed of a random choice.
        deduplicate: whether only the first of equal documents is kept.
    """

    by: Literal["text", "documents"] = "text"
    val: float | int = 0.0
    test: float | int = 0.0
    shuffle: int | None = None
    deduplicate: bool = False

    def cuts(self, size: int) -> list[int]:
        """The positions at which val and test begin, in ``size`` characters or documents."""
        if self.val is None or self.test is None:
            raise UserError("a validation or test part is null: leave the option out, or give 0 to 1.")
        if not all(0 <= part < math.inf for part in (self.val, self.test)):
            raise UserError(f"a validation part of {self.val} or a test part of {self.test} is no share: give 0 to 1.")
        if isinstance(self.val, float) and isinstance(self.test, float):
            cuts = [int(size * (1 - self.val - self.test)), int(size * (1 - self.test))]
        else:
            test = self.test if isinstance(self.test, int) else math.ceil(size * self.test)
            val = self.val if isinstance(self.val, int) else math.ceil(size * self.val)
            cuts = [size - test - val, size - test]
        if cuts[0] <= 0:
            raise UserError(
                f"a validation part of {self.val} and a test part of {self.test} leave nothing to train on."
            )
        return cuts


class SplitPiece(NamedTuple):
    """A stretch of a document of one split. ``end`` is True for the last one of the document."""

    split: str
    text: str
    end: bool


@dataclass(frozen=True)
class Scan:
    """Sizes of a source.

    Attributes:
        chars: number of characters.
        documents: number of documents that are kept.
        keep: for each document whether it is kept, (n,); None if all are.
    """

    chars: int
    documents: int
    keep: np.ndarray | None = None


class Scanner:
    """Measures a source while its text is read for something else. Deduplication takes about 100 bytes a document."""

    def __init__(self, source: Source, split: Split) -> None:
        self._pieces, self._deduplicate = source.pieces(PIECE), split.deduplicate
        self.chars = self.documents = 0
        self._keep: list[bool] = []

    def texts(self) -> Iterator[str]:
        """The text of each piece. May be read once."""
        seen: set[bytes] = set()
        digest = hashlib.blake2b(digest_size=8)
        for text, end in self._pieces:
            self.chars += len(text)
            self.documents += end
            if self._deduplicate:
                digest.update(text.encode("utf-8", "surrogatepass"))  # the tokenizer refuses it with a UserError
                if end:
                    self._keep.append(digest.digest() not in seen)
                    seen.add(digest.digest())
                    digest = hashlib.blake2b(digest_size=8)
            yield text

    def result(self) -> Scan:
        """The sizes, after all texts have been read."""
        keep = np.array(self._keep) if self._deduplicate else None
        return Scan(self.chars, self.documents if keep is None else int(keep.sum()), keep)


def scan(source: Source, split: Split) -> Scan:
    """The sizes of a source, which is read once."""
    scanner = Scanner(source, split)
    for _ in scanner.texts():
        pass
    return scanner.result()


def split_text(source: Source, split: Split, scanned: Scan) -> Iterator[SplitPiece]:
    """The pieces of a source, cut where val and test begin."""
    bounds = [0, *split.cuts(scanned.chars), scanned.chars]
    position = 0  # of the piece in the source
    for text, end in source.pieces(PIECE):
        for name, (low, high) in zip(SPLITS, pairwise(bounds), strict=True):
            part = text[max(low - position, 0) : max(high - position, 0)]
            if part:
                yield SplitPiece(name, part, end or position + len(text) >= high)
        position += len(text)


def split_documents(source: Source, split: Split, scanned: Scan) -> Iterator[SplitPiece]:
    """The pieces of a source in their order, each document whole in one split."""
    order = np.arange(scanned.documents)
    if split.shuffle is not None:
        order = permute(order, scanned.documents, random_words(split.shuffle))
    split_of = np.searchsorted(split.cuts(scanned.documents), order, side="right")  # of each kept document
    document = kept_before = 0
    for text, end in source.pieces(PIECE):
        keep = scanned.keep is None or scanned.keep[document]
        if keep:
            yield SplitPiece(SPLITS[split_of[kept_before]], text, end)
        document += end
        kept_before += end and bool(keep)
