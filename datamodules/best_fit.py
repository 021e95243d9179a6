"""Rows packed by best fit: no document that fits into a row is cut, and rows have nearly no padding.

A document longer than a row gives full rows of its own, and the rest of it is a piece like a short document. Pieces are
placed in order of decreasing length, each into the row with the least room that is enough ("best-fit decreasing",
Johnson 1973; for language models Ding et al., "Fewer Truncations Improve Language Modeling", 2024).

How pieces fit depends on their lengths alone, and equal lengths are exchangeable. So it is the histogram of lengths
that is packed (as in Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021): in time and memory
that depend on the length of a row and not on the number of documents.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from datamodules.permutation import random_words
from datamodules.rows import IGNORE_INDEX, StreamRows
from datamodules.tokens import TokenStream

_CHUNK = 1 << 20  # documents that are sorted at a time
_PIECE_ORDER, _REST = 8, 9  # independent random streams of one epoch, beside those of `batches`


@dataclass
class Group:
    """Rows that are filled alike.

    Attributes:
        rows: number of them.
        room: positions that are free in each.
        pieces: length and number of the pieces in each, by decreasing length.
    """

    rows: int
    room: int
    pieces: list[tuple[int, int]] = field(default_factory=list)

    def filled(self, rows: int, length: int, number: int) -> "Group":
        """The first ``rows`` rows of the group with ``number`` more pieces in each."""
        return Group(rows, self.room - number * length, [*self.pieces, (length, number)])


class _OpenGroups:
    """The groups with room, by their room."""

    def __init__(self) -> None:
        self._groups: dict[int, list[Group]] = {}
        self._rooms: list[int] = []  # those that groups have, increasing

    def add(self, group: Group) -> None:
        """Put a group in."""
        if group.room not in self._groups:
            insort(self._rooms, group.room)
        self._groups.setdefault(group.room, []).append(group)

    def pop(self, length: int) -> Group | None:
        """The group with the least room that is enough for a length, taken out. None: there is none."""
        index = bisect_left(self._rooms, length)
        if index == len(self._rooms):
            return None
        room = self._rooms[index]
        group = self._groups[room].pop()
        if not self._groups[room]:
            del self._groups[room], self._rooms[index]
        return group

    def all(self) -> list[Group]:
        """The groups, those with the least room first."""
        return [group for room in self._rooms for group in self._groups[room]]


def best_fit_decreasing(counts: np.ndarray) -> list[Group]:
    """The rows of a best-fit-decreasing packing, alike rows together.

    Args:
        counts: the number of pieces of each length 0 to T, (T + 1,); those of length 0 are not placed.
    """
    block_size, groups = len(counts) - 1, _OpenGroups()
    for length in range(block_size, 0, -1):
        left = int(counts[length])
        while left:
            group = groups.pop(length) or Group(left, block_size)
            # A row that has just taken a piece has less room than before. So it takes the next one too, if it can.
            number = min(group.room // length, left)
            rows = min(group.rows, left // number)
            groups.add(group.filled(rows, length, number))
            if rows < group.rows:
                groups.add(Group(group.rows - rows, group.room, group.pieces))
            left -= rows * number
    return [group for group in groups.all() if group.pieces]


class BestFit(StreamRows):
    """Rows for training: documents that fit into a row are whole, and rows are nearly full.

    The number of rows is the same in every epoch, and so is how they are filled: with pieces of which lengths. Which of
    the equally long documents are in which row changes with the epoch, and where a document longer than a row is cut:
    before or after its short piece. Neighbours in a row do not see each other (``document_ids``).

    It keeps 4 bytes a document in memory (8 beyond 4 billion), and 16 for each document longer than a row. They are
    sorted once: 100 million documents took 35 s.

    Args:
        store: the split.
        block_size: T.
        seed: as in `Rows`.
        mask_first: as in `StreamRows`, of each document.
    """

    def __init__(self, store: TokenStream, block_size: int, seed: int | None = None, mask_first: int = 0) -> None:
        super().__init__(store, block_size, seed, mask_first)
        self._maps: tuple[int, np.ndarray, np.ndarray] | None = None  # of the last epoch: factor and shift, (T + 1,)
        self._sort_documents()
        groups = best_fit_decreasing(self.number)
        self._first_row = np.cumsum([0, *(group.rows for group in groups)])  # of each group, (groups + 1,)
        self.count = int(self._first_row[-1])
        self._list_slots(groups)

    def _sort_documents(self) -> None:
        """Sorts the documents by the length of their short piece, and counts the pieces of each length."""
        T, documents = self.block_size, len(self.store.starts) - 1
        self.number = np.zeros(T + 1, np.int64)  # pieces of each length, (T + 1,)
        long, full = [np.empty(0, np.int64)], [np.zeros(1, np.int64)]
        for low, targets in self._target_counts():
            self.number += np.bincount(targets % T, minlength=T + 1)
            longer = np.flatnonzero(targets >= T)
            long.append(low + longer)
            full.append(targets[longer] // T)
        self._long = np.concatenate(long)  # documents of T targets and more
        self._full_before = np.cumsum(np.concatenate(full))  # full pieces of those before each of them, and of all
        self._first_short = np.cumsum(np.append(0, self.number[:T]))  # of each length in `_by_length`, (T + 1,)
        self._by_length = np.empty(documents, np.uint32 if documents < 1 << 32 else np.int64)
        free = self._first_short[:T].copy()
        for low, targets in self._target_counts():
            length = targets % T
            order = np.argsort(length.astype(np.uint16) if T <= 1 << 16 else length, kind="stable")
            counts = np.bincount(length, minlength=T)
            within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
            self._by_length[np.repeat(free, counts) + within] = low + order
            free += counts
        self.number[0], self.number[T] = 0, self._full_before[-1]

    def _target_counts(self) -> Iterator[tuple[int, np.ndarray]]:
        """The number of a first document and the targets of those from it on, (n,), in chunks."""
        starts = self.store.starts
        for low in range(0, len(starts) - 1, _CHUNK):
            yield low, np.diff(starts[low : low + _CHUNK + 1])

    def _list_slots(self, groups: list[Group]) -> None:
        """Lists the places for pieces in a row of each group: slot s of row i takes the piece ``base + step * i``.

        The pieces of one length are numbered, and each group takes the next of these numbers.
        """
        taken = np.zeros(self.block_size + 1, np.int64)  # pieces of each length that the groups before have
        lengths, bases, steps, slots = [], [], [], [0]
        for group in groups:
            for length, number in group.pieces:
                lengths.append(np.full(number, length))
                bases.append(taken[length] + np.arange(number))
                steps.append(np.full(number, number))
                taken[length] += number * group.rows
            slots.append(slots[-1] + sum(number for _, number in group.pieces))
        self._slot_length, self._slot_base = np.concatenate(lengths), np.concatenate(bases)
        self._slot_step, self._first_slot = np.concatenate(steps), np.array(slots)

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids, targets, attention_mask and document_ids (B, T): 0, 1, ... in each row, -1 on padding."""
        real = np.flatnonzero(rows >= 0)
        group = np.searchsorted(self._first_row, rows[real], side="right") - 1  # (R,)
        pieces = self._first_slot[group + 1] - self._first_slot[group]  # of each row, (R,)
        within = _counted(pieces)  # the piece's number in its row, (P,)
        slot = np.repeat(self._first_slot[group], pieces) + within
        length = self._slot_length[slot]  # (P,)
        number = self._slot_base[slot] + self._slot_step[slot] * np.repeat(rows[real] - self._first_row[group], pieces)
        start, done = self._pieces(epoch, length, number)
        filled = np.zeros(len(rows), np.int64)
        np.add.at(filled, np.repeat(real, pieces), length)
        return self._laid_out(filled, start, done, length, within)

    def _laid_out(
        self, filled: np.ndarray, start: np.ndarray, done: np.ndarray, length: np.ndarray, within: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch, from the pieces of all its rows one after the other.

        Args:
            filled: positions of each row that are no padding, (B,).
            start: where each piece begins in the store, (P,).
            done: where it begins in its document, (P,).
            length: its targets, (P,).
            within: its number in its row, (P,).
        """
        offset = _counted(length)  # in the piece, (N,)
        position = np.repeat(start, length) + offset  # (N,)
        ids = self.gather(position)
        targets = np.append(ids[1:], 0)
        last = np.cumsum(length) - 1  # of each piece: what follows it is not in the row
        targets[last] = self.gather(position[last] + 1)
        if self.mask_first:
            targets[np.repeat(done, length) + offset < self.mask_first] = IGNORE_INDEX
        mask = self.columns < filled[:, None]  # (B, T)
        batch = {"input_ids": np.full(mask.shape, self.pad_id), "targets": np.full(mask.shape, IGNORE_INDEX)}
        batch |= {"attention_mask": mask, "document_ids": np.full(mask.shape, -1, np.int32)}
        for name, values in (("input_ids", ids), ("targets", targets), ("document_ids", np.repeat(within, length))):
            batch[name][mask] = values
        return batch

    def _pieces(self, epoch: int, length: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where pieces begin in the store and in their documents, (P,) each.

        Args:
            epoch: the epoch.
            length: the length of each piece, (P,).
            number: its number among the pieces of that length, (P,).
        """
        T, number = self.block_size, self._exchanged(epoch, length, number)
        full = length == T
        document, done = np.empty(len(length), np.int64), np.zeros(len(length), np.int64)
        document[~full] = self._by_length[self._first_short[length[~full]] + number[~full]]
        index = np.searchsorted(self._full_before, number[full], side="right") - 1
        document[full] = self._long[index]
        targets = self.store.starts[document + 1] - self.store.starts[document]
        before = self._pieces_before_rest(epoch, document, targets // T)
        nth = number[full] - self._full_before[index]
        done[full] = nth * T + (nth >= before[full]) * (targets[full] % T)
        done[~full] = before[~full] * T
        return self.store.starts[document] + done, done

    def _exchanged(self, epoch: int, length: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The epoch's numbers of pieces: for each length a one-to-one map of its numbers, ``factor * n + shift``."""
        if self.seed is None:
            return number
        self.prepare(epoch)
        assert self._maps is not None
        _, factor, shift = self._maps
        return (factor[length] * number + shift[length]) % self.number[length]  # int64: up to 3 billion of one length

    def prepare(self, epoch: int) -> None:
        """See `Rows`."""
        if self.seed is None or (self._maps is not None and self._maps[0] == epoch):
            return
        n = np.maximum(self.number, 1)  # (T + 1,)
        words = random_words(self.seed, epoch, _PIECE_ORDER, words=2 * len(n)) >> np.uint64(1)
        factor, shift = words.astype(np.int64).reshape(2, -1) % n
        while (common := np.gcd(factor, n) > 1).any():  # until no map gives a number twice; 2 tries on average
            factor[common] = (factor[common] + 1) % n[common]
        self._maps = epoch, factor, shift

    def _pieces_before_rest(self, epoch: int, document: np.ndarray, full: np.ndarray) -> np.ndarray:
        """Full pieces of each document that come before its short one, (P,): 0 to ``full``, and without a seed all."""
        if self.seed is None:
            return full
        key = random_words(self.seed, epoch, _REST, words=1)[0]
        mixed = (document.astype(np.uint64) + key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        return ((mixed >> np.uint64(33)) % (full + 1).astype(np.uint64)).astype(np.int64)


def _counted(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... up to each count, one after the other, (sum of counts,)."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
