"""A random order that stays inside one window of a text at a time, so that its shards are read one after the other."""

import numpy as np

from datamodules.permutation import permute, random_words


class WindowedOrder:
    """Items in windows: the windows in a random order, and in each its items in a random order.

    It is a pure function of the seed and the epoch, like `permutation.permute`, and has every item once. It takes 16
    bytes a window.

    Args:
        bounds: the first item of each window, and the number of all, (windows + 1,).
        streams: two numbers that tell this order's random streams from others of the same seed.
    """

    def __init__(self, bounds: np.ndarray, streams: tuple[int, int]) -> None:
        self.bounds, self.streams = bounds, streams
        self._visits: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None

    def items(self, position: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The items (n,) at positions (n,) of the order of an epoch."""
        order, first = self._visited(seed, epoch)
        visit = np.searchsorted(first, position, side="right") - 1  # (n,)
        items = np.empty(len(position), np.int64)
        for number in np.unique(visit).tolist():
            inside, window = visit == number, int(order[number])
            low, high = self.bounds[window : window + 2].tolist()
            key = random_words(seed, epoch, self.streams[1], window)
            items[inside] = low + permute(position[inside] - first[number], high - low, key)
        return items

    def _visited(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows in the order of their visits, and the position at which each visit begins, (windows,) each."""
        visits = self._visits
        if visits is None or visits[0] != (seed, epoch):
            windows = len(self.bounds) - 1
            order = permute(np.arange(windows), windows, random_words(seed, epoch, self.streams[0]))
            sizes = np.diff(self.bounds)[order]
            visits = self._visits = (seed, epoch), order, np.cumsum(sizes) - sizes
        return visits[1:]


def equal_windows(count: int, windows: int) -> np.ndarray:
    """The bounds of windows of as equal sizes as can be, (windows + 1,)."""
    return np.array([count * i // windows for i in range(windows + 1)], np.int64)
