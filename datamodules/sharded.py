"""Several arrays read as one: the shards of a token store, or the token files of another tool."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class ShardedArray:
    """One-dimensional arrays end to end, read-only. Nothing is copied but what is asked for.

    Args:
        parts: the arrays, in their order. All have one dtype. Empty ones are left out. A part needs a ``dtype``, a
            length, slices ``[low:high]`` and gathers ``[positions]``.
        lengths: their lengths, if they are known without opening the parts.
    """

    def __init__(self, parts: Sequence[Any], lengths: Sequence[int] | None = None) -> None:
        sizes = [len(part) for part in parts] if lengths is None else lengths
        kept = [(part, size) for part, size in zip(parts, sizes, strict=True) if size]
        self.parts = [part for part, _ in kept]
        self._set(np.dtype(parts[0].dtype), np.cumsum([0, *(size for _, size in kept)], dtype=np.int64))

    def _set(self, dtype: np.dtype, bounds: np.ndarray) -> None:
        self.dtype, self.bounds = dtype, bounds  # where each part begins, and the end, (parts + 1,)
        self.ndim, self.shape = 1, (int(bounds[-1]),)

    def _part(self, number: int) -> Any:
        """A part. A subclass may open it now."""
        return self.parts[number]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """A slice (n,), one element, or the elements at an integer array of any shape. Negative indices count back."""
        if isinstance(index, slice):
            return self._sliced(*index.indices(len(self)))
        positions = np.asarray(index)
        low, high = (int(positions.min()), int(positions.max())) if positions.size else (0, 0)
        if not -len(self) <= low <= high < len(self):
            raise IndexError(f"a position is outside of the {len(self):,} elements")
        if low < 0:
            positions = np.where(positions < 0, positions + len(self), positions)
        first, last = np.searchsorted(self.bounds, (low, high), side="right") - 1
        if low >= 0 and first == last:  # one part has them all, as often where the others are short
            return self._part(int(first))[positions - self.bounds[first]]
        gathered = self._gathered(positions.ravel()).reshape(positions.shape)
        return gathered if positions.ndim else gathered[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All elements in memory."""
        return np.asarray(self[:], dtype)

    def _sliced(self, low: int, high: int, step: int) -> np.ndarray:
        if step != 1:
            return self[np.arange(low, high, step)]
        if low >= high:
            return np.empty(0, self.dtype)
        first, last = (np.searchsorted(self.bounds, (low, high - 1), side="right") - 1).tolist()
        pieces = [
            self._part(part)[max(low - start, 0) : high - start]
            for part, start in enumerate(self.bounds[first : last + 1].tolist(), first)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _gathered(self, positions: np.ndarray) -> np.ndarray:
        """The elements at positions (n,). Each part is asked once."""
        which = (np.searchsorted(self.bounds, positions, side="right") - 1).astype(np.int32)
        order = np.argsort(which, kind="stable")  # the positions of a part side by side
        edges = np.flatnonzero(np.diff(which[order], prepend=-1, append=-1))  # where the next part begins, and n
        result = np.empty(len(positions), self.dtype)
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            chosen = order[low:high]
            part = int(which[chosen[0]])
            result[chosen] = self._part(part)[positions[chosen] - self.bounds[part]]
        return result


def joined(parts: Sequence[Any], lengths: Sequence[int] | None = None) -> Any:
    """The parts read as one array. One part alone is returned as it is, so it costs nothing."""
    return parts[0] if len(parts) == 1 else ShardedArray(parts, lengths)
