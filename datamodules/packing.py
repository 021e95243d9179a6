"""Rows of several documents: `Packed` cuts documents anywhere, for training; `WholePacked` keeps them whole."""

import numpy as np

from datamodules.permutation import permute, random_words
from datamodules.rows import DOCUMENT_ORDER, WINDOWED_DOCUMENTS, StreamRows, rows_needed
from datamodules.tokens import TokenStream
from datamodules.windowed_order import WindowedOrder, equal_windows

_CHUNK = 1 << 18  # documents whose rows are computed at a time, with about 20 MB of memory


class Packed(StreamRows):
    """The epoch's shuffled documents end to end, with one EOS token between two, cut into rows of T.

    Only the first and the last row of an epoch have padding, so nearly every position trains: headlines of 12 tokens
    in padded rows of 256 would be 95 % padding. The EOS token between two documents is the last target of one and the
    first input of the next. So a packed document sees the same inputs as alone in a padded row, if attention stays
    inside a document (``document_ids``).

    The packed stream is never written anywhere. It is a second numbering of the store's tokens, and ``plan`` says where
    each of its documents lies in the store. A cut in a document separates its second part from its first one, in
    another place in every epoch: the price for rows without padding, which evaluation does not pay (`WholePacked`).
    """

    def __init__(self, store: TokenStream, block_size: int, seed: int | None = None, mask_first: int = 0) -> None:
        super().__init__(store, block_size, seed, mask_first)
        self.count = self.tiling_rows()
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """First position of the epoch's k-th document in the store and in the packed stream, (documents + 1,) each.

        The plan of the last epoch that was asked for is kept: 16 bytes a document.
        """
        if self._plan is None or self._plan[0] != epoch:
            documents = len(self.store.starts) - 1
            order = np.arange(documents)
            if self.seed is not None and self.windows > 1:
                order = self._windowed().items(order, self.seed, epoch)
            elif self.seed is not None:
                order = permute(order, documents, random_words(self.seed, epoch, DOCUMENT_ORDER))
            # A document's length counts one EOS token, the one before it. The last EOS token of the stream ends the
            # last document; it is the extra entry of both arrays.
            in_store = np.append(self.store.starts[order], self.last)
            in_stream = np.concatenate([[0], np.cumsum(np.diff(self.store.starts)[order])])
            self._plan = epoch, in_store, in_stream
        return self._plan[1:]

    def _windowed(self) -> WindowedOrder:
        """The order of documents in windows of about as many tokens each."""
        starts = self.store.starts[:-1]
        bounds = np.searchsorted(starts, equal_windows(self.last, self.windows))
        bounds[-1] = len(starts)
        return WindowedOrder(bounds, WINDOWED_DOCUMENTS)

    def prepare(self, epoch: int) -> None:
        """See `Rows`."""
        self.plan(epoch)

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids, targets, attention_mask and document_ids (B, T): 0, 1, ... in each row, -1 on padding."""
        in_store, in_stream = self.plan(epoch)
        low, length = self.slices(epoch, rows)  # (B,) each, in the packed stream
        position = np.minimum(low[:, None] + np.arange(self.block_size + 1), self.last)  # (B, T + 1)
        # The document of each position, (B, T + 1): a binary search, since documents differ in length. The last EOS
        # token has the extra entry behind the last document.
        document = np.searchsorted(in_stream, position, side="right") - 1
        inside = position - in_stream[document]  # position in the document, 0 at its EOS token
        unscored = inside[:, :-1] < self.mask_first if self.mask_first else None
        batch = self.finish(self.gather(in_store[document] + inside), length, unscored)
        return {**batch, "document_ids": numbered(document, batch["attention_mask"])}


class WholePacked(StreamRows):
    """Rows for evaluation: documents in their order, each whole in one row. One that does not fit begins the next row.

    Each token of a document is scored with all that comes before it in the document, as in a padded row of its own.

    A document of more than T targets begins a row and takes further ones, ``val_stride`` apart. A target that two rows
    hold is scored only in the first. The next document may follow in the last of these rows. So every row is one
    stretch of the store, and its first position, 8 bytes a row, is all that is held in memory.

    Each row has about half a document of padding at its end, so short documents need a few rows more than in `Packed`.

    Args:
        store: the split.
        block_size: T.
        val_stride: 1 to T; None is T, rows side by side.
    """

    def __init__(self, store: TokenStream, block_size: int, val_stride: int | None = None) -> None:
        super().__init__(store, block_size)
        self.stride = val_stride or block_size
        first, rows = self._leading_documents()
        # The row's number in its leading document: 0, and 1, 2, ... in a document longer than T.
        within = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)  # (count,)
        self.low = np.repeat(first, rows) + within * self.stride
        self.count = len(self.low)

    def _leading_documents(self) -> tuple[np.ndarray, np.ndarray]:
        """First position in the store of each document that begins a row, and the number of rows that it begins, (n,).

        Which document begins the next row depends on the row before, so this is a loop over the rows. numpy computes
        for all documents of a chunk which one would come next; the loop only follows these numbers.
        """
        starts, document = self.store.starts, 0
        firsts, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for chunk in range(0, len(starts) - 1, _CHUNK):
            part = np.asarray(starts[chunk : chunk + _CHUNK + 1])  # (n + 1,)
            count = rows_needed(np.diff(part), self.block_size, self.stride)  # (n,)
            end = part[:-1] + (count - 1) * self.stride + self.block_size  # of the last row, if it is full
            following = (np.searchsorted(starts, end, side="right") - 1).tolist()  # the first that does not fit
            leaders = []
            while document < chunk + len(count):  # 0.1 microseconds a row
                leaders.append(document - chunk)
                document = following[document - chunk]
            firsts.append(part[leaders])
            rows.append(count[leaders])
        return np.concatenate(firsts), np.concatenate(rows)

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """See `Packed.batch`; the same in every epoch."""
        starts, low = self.store.starts, self.low[rows]  # low (B,)
        leader = np.searchsorted(starts, low, side="right") - 1  # the document at the row's first position, (B,)
        end = starts[np.searchsorted(starts, low + self.block_size, side="right") - 1]  # of the last whole document
        # No document ends inside the row: it is full of one that goes on in the next row.
        length = np.where(rows < 0, 0, np.where(end > low, end - low, self.block_size))
        position = low[:, None] + np.arange(self.block_size + 1)  # (B, T + 1)
        overlap = np.where(low > starts[leader], self.block_size - self.stride, 0)  # targets of the row before, (B,)
        batch = self.finish(self.gather(position), length, self.columns < overlap[:, None])
        document = np.searchsorted(starts, position, side="right") - 1  # (B, T + 1)
        return {**batch, "document_ids": numbered(document, batch["attention_mask"])}


def numbered(document: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The ``document_ids`` (B, T) int32 of rows: 0, 1, ... in each row, -1 on padding.

    Args:
        document: the number of the document of each position in the whole split, (B, T + 1).
        mask: which positions are no padding, (B, T).
    """
    return np.where(mask, (document - document[:, :1])[:, :-1], -1).astype(np.int32)
