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
from datamodules.reading import Cursor, Piece
from datamodules.sources import Source
from datamodules.tokens import SPLITS

#: Characters that are read at a time. Pieces of a million take 4 times as long: each needs new memory from the system.
PIECE = 1 << 17
#: Most marks that are kept of a source. One of 1 TB then has a mark every 120 to 240 MB.
_MARKS = 8192


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


class Mark(NamedTuple):
    """A place between two pieces of a source, where a reading may begin.

    Attributes:
        chars: characters before it.
        documents: documents that end before it.
        inside: whether it is in the middle of a document.
        file: with ``offset`` and ``skip`` the fields of a `Cursor`.
    """

    chars: int = 0
    documents: int = 0
    inside: bool = False
    file: int = 0
    offset: int = 0
    skip: int = 0


class Stretch(NamedTuple):
    """A part of a source: from a mark on, up to a number of characters of the source, or to its end."""

    start: Mark = Mark()
    stop: int | None = None


WHOLE = Stretch()


@dataclass(frozen=True)
class Scan:
    """Sizes of a source.

    Attributes:
        chars: number of characters.
        documents: number of documents that are kept.
        keep: for each document whether it is kept, (n,); None if all are.
        marks: places where a reading may begin, the first at the source's beginning.
    """

    chars: int
    documents: int
    keep: np.ndarray | None = None
    marks: tuple[Mark, ...] = (Mark(),)


class Scanner:
    """Measures a source while its text is read for something else. Deduplication takes about 100 bytes a document."""

    def __init__(self, source: Source, split: Split) -> None:
        self._cursor = Cursor()
        self._pieces, self._deduplicate = source.read(PIECE, self._cursor), split.deduplicate
        self.chars = self.documents = 0
        self._keep: list[bool] = []
        self._marks, self._next_mark, self._distance = [Mark()], 1, 1  # in characters

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
            if self.chars >= self._next_mark:
                self._mark(inside=not end)
            yield text

    def result(self) -> Scan:
        """The sizes, after all texts have been read."""
        keep = np.array(self._keep) if self._deduplicate else None
        return Scan(self.chars, self.documents if keep is None else int(keep.sum()), keep, tuple(self._marks))

    def _mark(self, inside: bool) -> None:
        at = self._cursor
        self._marks.append(Mark(self.chars, self.documents, inside, at.file, at.offset, at.skip))
        if len(self._marks) == _MARKS:
            self._marks = self._marks[::2]
            self._distance = 2 * self.chars // _MARKS
        self._next_mark = self.chars + self._distance


def scan(source: Source, split: Split) -> Scan:
    """The sizes of a source, which is read once."""
    scanner = Scanner(source, split)
    for _ in scanner.texts():
        pass
    return scanner.result()


def read_stretch(source: Source, stretch: Stretch) -> Iterator[Piece]:
    """The pieces of a part of a source."""
    start, stop = stretch
    position = start.chars
    for piece in source.read(PIECE, Cursor(start.file, start.offset, start.skip)):
        yield piece
        position += len(piece.text)
        if stop is not None and position >= stop:
            return


class Begun(NamedTuple):
    """What of the splits lies before a mark: those with text there, and the one whose document goes on behind it."""

    splits: frozenset[str] = frozenset()
    inside: str | None = None


def split_text(source: Source, split: Split, scanned: Scan, part: Stretch = WHOLE) -> Iterator[SplitPiece]:
    """The pieces of a source or of a part of it, cut where val and test begin."""
    bounds = [0, *split.cuts(scanned.chars), scanned.chars]
    position = part.start.chars  # of the piece in the source
    for text, end in read_stretch(source, part):
        for name, (low, high) in zip(SPLITS, pairwise(bounds), strict=True):
            cut = text[max(low - position, 0) : max(high - position, 0)]
            if cut:
                yield SplitPiece(name, cut, end or position + len(text) >= high)
        position += len(text)


def text_begun(split: Split, scanned: Scan, mark: Mark) -> Begun:
    """What `split_text` gives before a mark."""
    bounds = dict(zip(SPLITS, pairwise([0, *split.cuts(scanned.chars), scanned.chars]), strict=True))
    begun = frozenset(name for name, (low, high) in bounds.items() if low < mark.chars and low < high)
    inside = (name for name, (low, high) in bounds.items() if mark.inside and low < mark.chars < high)
    return Begun(begun, next(inside, None))


def split_documents(source: Source, split: Split, scanned: Scan, part: Stretch = WHOLE) -> Iterator[SplitPiece]:
    """The pieces of a source or of a part of it in their order, each document whole in one split."""
    split_of = _split_of(split, scanned)
    document = part.start.documents
    kept_before = _kept_before(scanned, document)
    for text, end in read_stretch(source, part):
        keep = scanned.keep is None or scanned.keep[document]
        if keep:
            yield SplitPiece(SPLITS[split_of[kept_before]], text, end)
        document += end
        kept_before += end and bool(keep)


def documents_begun(split: Split, scanned: Scan, mark: Mark) -> Begun:
    """What `split_documents` gives before a mark."""
    split_of, kept_before = _split_of(split, scanned), _kept_before(scanned, mark.documents)
    goes_on = mark.inside and (scanned.keep is None or bool(scanned.keep[mark.documents]))
    begun = frozenset(SPLITS[number] for number in np.unique(split_of[: kept_before + goes_on]).tolist())
    return Begun(begun, SPLITS[split_of[kept_before]] if goes_on else None)


def _split_of(split: Split, scanned: Scan) -> np.ndarray:
    """The number of the split of each document that is kept, (n,)."""
    order = np.arange(scanned.documents)
    if split.shuffle is not None:
        order = permute(order, scanned.documents, random_words(split.shuffle))
    return np.searchsorted(split.cuts(scanned.documents), order, side="right")


def _kept_before(scanned: Scan, document: int) -> int:
    return document if scanned.keep is None else int(scanned.keep[:document].sum())
