"""Several documents a row: for training cut anywhere, for evaluation whole."""

import numpy as np

from datamodules.batches import DOCUMENT_ORDER, StreamRows, pieces
from datamodules.permutation import permute, random_words
from datamodules.tokens import TokenStream

_CHUNK = 1 << 18  # documents whose places are worked out at a time: about 20 MB


class Packed(StreamRows):
    """The epoch's shuffled documents end to end, one mark between two, cut into rows; pads only at either end.

    A mark is the target that ends one document and the input that starts the next, so a packed document and the same
    one alone in a padded row see the same inputs.
    """

    def __init__(self, store: TokenStream, block_size: int, seed: int | None = None, mask_first: int = 0) -> None:
        super().__init__(store, block_size, seed, mask_first)
        self.count = self.tiling_rows()
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the k-th document of the epoch lies in the store and in the packed stream; (documents + 1,) each.

        16 bytes a document, kept for one epoch.
        """
        if self._plan is None or self._plan[0] != epoch:
            documents = len(self.store.starts) - 1
            order = np.arange(documents)
            if self.seed is not None:
                order = permute(order, documents, random_words(self.seed, epoch, DOCUMENT_ORDER))
            source = np.append(self.store.starts[order], self.last)
            goal = np.concatenate([[0], np.cumsum(np.diff(self.store.starts)[order])])
            self._plan = epoch, source, goal
        return self._plan[1:]

    def prepare(self, epoch: int) -> None:
        """See `Rows`."""
        self.plan(epoch)

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids, targets, attention_mask and document_ids (B, T): 0, 1, ... within each row, -1 on pads."""
        source, goal = self.plan(epoch)
        low, length = self.slices(epoch, rows)
        position = np.minimum(low[:, None] + np.arange(self.block_size + 1), self.last)
        slot = np.searchsorted(goal, position, side="right") - 1  # the final mark has the slot behind the last document
        inside = position - goal[slot]
        unscored = inside[:, :-1] < self.mask_first if self.mask_first else None
        batch = self.finish(self.gather(source[slot] + inside), length, unscored)
        return {**batch, "document_ids": numbered(slot, batch["attention_mask"])}


class WholePacked(StreamRows):
    """Documents in their order, each whole in one row; one that does not fit begins the next row. For evaluation:
    a document's tokens are then scored with all that comes before them in it, as in a padded row of its own.

    A document of more than T targets begins a row, and goes on in further ones that start ``val_stride`` apart; what
    an earlier row holds too is scored there alone. The next document may follow its end. So every row is one stretch of
    the store, and where it begins (8 bytes a row) is all that is kept.

    With short documents it takes about half a document a row more than `Packed` does.

    Args:
        store: the split.
        block_size: T.
        val_stride: 1 to T; None is T, rows side by side.
    """

    def __init__(self, store: TokenStream, block_size: int, val_stride: int | None = None) -> None:
        super().__init__(store, block_size)
        self.stride = val_stride or block_size
        first, rows = self._leading_documents()
        within = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)  # 0, 1, ... in each long document
        self.low = np.repeat(first, rows) + within * self.stride
        self.count = len(self.low)

    def _leading_documents(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the documents that begin a row start in the store, and how many rows each begins; (n,) both."""
        starts, document = self.store.starts, 0
        firsts, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for chunk in range(0, len(starts) - 1, _CHUNK):
            part = np.asarray(starts[chunk : chunk + _CHUNK + 1])
            count = pieces(np.diff(part), self.block_size, self.stride)
            end = part[:-1] + (count - 1) * self.stride + self.block_size  # of the last row, if it is full
            follower = (np.searchsorted(starts, end, side="right") - 1).tolist()
            leaders = []
            while document < chunk + len(count):  # the one step that depends on the one before: 0.1 microseconds
                leaders.append(document - chunk)
                document = follower[document - chunk]
            firsts.append(part[leaders])
            rows.append(count[leaders])
        return np.concatenate(firsts), np.concatenate(rows)

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """See `Packed.batch`; the same in every epoch."""
        starts, low = self.store.starts, self.low[rows]
        at = np.searchsorted(starts, low, side="right") - 1
        end = starts[np.searchsorted(starts, low + self.block_size, side="right") - 1]  # of the last whole document
        length = np.where(rows < 0, 0, np.where(end > low, end - low, self.block_size))
        position = low[:, None] + np.arange(self.block_size + 1)
        seen = np.where(low > starts[at], self.block_size - self.stride, 0)  # targets of an earlier row
        batch = self.finish(self.gather(position), length, self.columns < seen[:, None])
        slot = np.searchsorted(starts, position, side="right") - 1
        return {**batch, "document_ids": numbered(slot, batch["attention_mask"])}


def numbered(slot: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Documents as 0, 1, ... within each row, -1 on pads; (B, T) int32, from their numbers (B, T + 1)."""
    return np.where(mask, (slot - slot[:, :1])[:, :-1], -1).astype(np.int32)
