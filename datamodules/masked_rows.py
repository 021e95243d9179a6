"""Rows for a masked language model: ``[CLS] text [SEP]``, one document in a row or several packed into it.

The token store of a WordPiece tokenizer is ``[SEP] d1 [SEP] d2 [SEP] ... dn [SEP]``. Rows read stretches of it and put
the special tokens around them. For sentence pairs see `sentence_pairs`.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np

from datamodules.masking import Masker
from datamodules.permutation import permute, random_words
from datamodules.rows import DOCUMENT_ORDER, Rows
from datamodules.tokenizers.wordpiece import WordPieceTokenizer
from datamodules.tokens import TokenStream

_OFFSET = 13  # an independent random stream, beside those of `masking`


class Layout(NamedTuple):
    """Rows before they are masked.

    Attributes:
        ids: token ids, (B, T).
        real: which positions are no padding, (B, T).
        types: 1 for the second sentence of a pair, 0 elsewhere, (B, T).
        extra: further arrays of the batch.
    """

    ids: np.ndarray
    real: np.ndarray
    types: np.ndarray
    extra: dict[str, np.ndarray]


class MaskedRows(Rows):
    """Base class: a subclass lays out the tokens of rows, which are then masked.

    An empty row is ``[CLS] [SEP]`` and has no target, so that attention has something to attend to.

    Args:
        store: the split.
        block_size: T.
        tokenizer: its tokenizer.
        masker: draws the masks.
        seed: as in `Rows`.
    """

    def __init__(
        self,
        store: TokenStream,
        block_size: int,
        tokenizer: WordPieceTokenizer,
        masker: Masker,
        seed: int | None = None,
    ) -> None:
        self.store, self.block_size, self.tokenizer, self.masker, self.seed = store, block_size, tokenizer, masker, seed
        self.columns = np.arange(block_size)

    @abstractmethod
    def layout(self, epoch: int, rows: np.ndarray) -> Layout:
        """The tokens of rows (B,). What it gives for row -1 is not used."""

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids, targets, attention_mask and token_type_ids, (B, T) each, and what the kind of rows adds."""
        ids, real, types, extra = self.layout(epoch, rows)
        empty = (rows < 0)[:, None]
        ids[rows < 0, :2] = self.tokenizer.cls_id, self.tokenizer.sep_id
        real = np.where(empty, self.columns < 2, real)
        ids = np.where(real, ids, self.tokenizer.pad_id)
        inputs, targets = self.masker.masked(ids, real, epoch, rows)
        types = np.where(real & ~empty, types, 0)
        return {"input_ids": inputs, "targets": targets, "attention_mask": real, "token_type_ids": types, **extra}

    def gather(self, position: np.ndarray) -> np.ndarray:
        """Ids at positions of the store, int64. A position outside of it gives any id."""
        return self.store.tokens[np.clip(position, 0, len(self.store.tokens) - 1)].astype(np.int64)

    def surrounded(self, segment_low: np.ndarray, within: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Ids of ``[CLS] segment [SEP]``, (B, T).

        Args:
            segment_low: where each position's segment begins in the store, (B, T).
            within: the position in ``[CLS] segment [SEP]``, from 0 on, (B, T).
            length: tokens of each position's segment, (B, T).
        """
        ids = np.where(within <= 0, self.tokenizer.cls_id, self.gather(segment_low + within - 1))
        return np.where(within > length, self.tokenizer.sep_id, ids)


class WholeSegments(MaskedRows):
    """Rows of whole documents, the same in every epoch: for evaluation, and for training with one document a row.

    A document longer than T - 2 tokens is divided into segments of T - 2 and a rest. Each is ``[CLS] segment [SEP]``.

    Args:
        *args: as for `MaskedRows`.
        packed: whether a row takes the next segments too, as far as they fit. They do not see each other
            (``document_ids``).
        **options: as for `MaskedRows`.
    """

    def __init__(self, *args: Any, packed: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.packed = packed
        self.low, self.length = _segments(self.store.starts, self.block_size - 2)  # (segments,)
        self.start = np.concatenate([[0], np.cumsum(self.length + 2)])  # of each one, if all were one stream
        self.leaders = self._leaders() if packed else np.arange(len(self.low) + 1)  # first segment of each row
        self.count = len(self.leaders) - 1

    def _leaders(self) -> np.ndarray:
        """The first segment of each row, (rows + 1,). numpy computes who would follow, and a loop follows that."""
        following = (np.searchsorted(self.start, self.start[:-1] + self.block_size, side="right") - 1).tolist()
        leaders = [0]
        while leaders[-1] < len(following):
            leaders.append(following[leaders[-1]])
        return np.array(leaders)

    def layout(self, epoch: int, rows: np.ndarray) -> Layout:
        """See `MaskedRows`."""
        first = self.leaders[rows]
        position = self.start[first][:, None] + self.columns  # (B, T), in the stream of all segments
        real = position < self.start[self.leaders[rows + 1]][:, None]
        segment = np.searchsorted(self.start, position, side="right") - 1
        segment = np.minimum(segment, len(self.low) - 1)
        ids = self.surrounded(self.low[segment], position - self.start[segment], self.length[segment])
        extra = {"document_ids": _numbered(segment, real, rows)} if self.packed else {}
        return Layout(ids, real, np.zeros_like(ids), extra)


class PackedStretches(MaskedRows):
    """The epoch's shuffled documents end to end, each ``[CLS] document [SEP]``, cut into rows anywhere.

    Every row begins with [CLS] and ends with [SEP], at a cut too, and has T - 2 tokens between. The cuts lie elsewhere
    in every epoch. Only the first and the last row have padding. A long text in one document gives plain windows.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.total = len(self.store.starts) - 1 + int(self.store.starts[-1])  # n documents: n [SEP] are in the store
        self.content = self.block_size - 2
        # Of the stream of all [CLS] document [SEP], the first [CLS] and the last [SEP] are no content.
        self.count = -(-(self.total - 2) // self.content) + (self.seed is not None)
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None

    def prepare(self, epoch: int) -> None:
        """See `Rows`."""
        self.plan(epoch)

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's documents: where they begin in the store, and in the epoch's stream (one entry more)."""
        if self._plan is None or self._plan[0] != epoch:
            documents = len(self.store.starts) - 1
            order = np.arange(documents)
            if self.seed is not None:
                order = permute(order, documents, random_words(self.seed, epoch, DOCUMENT_ORDER))
            starts = np.asarray(self.store.starts)
            low, length = starts[order] + 1, starts[order + 1] - starts[order] - 1  # without the [SEP] before
            self._plan = epoch, low, np.concatenate([[0], np.cumsum(length + 2)])
        return self._plan[1:]

    def layout(self, epoch: int, rows: np.ndarray) -> Layout:
        """See `MaskedRows`."""
        low, start = self.plan(epoch)
        first, length = self._slices(epoch, rows)
        position = first[:, None] + self.columns  # (B, T): the row's [CLS] is where the token before its content is
        document = np.clip(np.searchsorted(start, position, side="right") - 1, 0, len(low) - 1)
        ids = self.surrounded(low[document], position - start[document], np.diff(start)[document] - 2)
        ids[:, 0] = self.tokenizer.cls_id
        ids = np.where(self.columns == length[:, None] + 1, self.tokenizer.sep_id, ids)
        real = self.columns < length[:, None] + 2
        return Layout(ids, real, np.zeros_like(ids), {"document_ids": _numbered(document, real, rows)})

    def _slices(self, epoch: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The position before each row's content (B,), and the content's length (B,). The first row ends at the
        epoch's offset, which moves all later cuts.
        """
        offset = self.content
        if self.seed is not None:
            offset = 1 + int(random_words(self.seed, epoch, _OFFSET, words=1)[0] % np.uint64(self.content))
        first = offset + (rows - 1) * self.content
        low, high = np.maximum(first, 0), np.minimum(first + self.content, self.total - 2)
        return low, np.maximum(high - low, 0)


def _segments(starts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """First position in the store and length of each segment of at most ``most`` tokens, (segments,) each."""
    low, length = np.asarray(starts[:-1]) + 1, np.diff(starts) - 1  # without the [SEP] before a document
    parts = -(-length // most)
    within = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # 0, 1, ... in each document
    done = within * most
    return np.repeat(low, parts) + done, np.minimum(np.repeat(length, parts) - done, most)


def _numbered(document: np.ndarray, real: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The ``document_ids`` (B, T) int32: 0, 1, ... in each row, -1 on padding. An empty row has one document."""
    ids = np.where(real, document - document[:, :1], -1)
    ids[rows < 0] = -1
    ids[rows < 0, :2] = 0
    return ids.astype(np.int32)
