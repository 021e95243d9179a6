"""Batches that are built ahead in threads, for rows in object storage: threads wait for the network side by side."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Index = TypeVar("Index")
T = TypeVar("T")

#: Threads that build batches, and batches that are ready or in work. Threads wait most of the time.
THREADS, AHEAD = 8, 16


def ahead(
    build: Callable[[Index], T], indices: Iterable[Index], threads: int = THREADS, most: int = AHEAD
) -> Iterator[T]:
    """What ``build`` gives for each index, in their order; up to ``most`` are built before they are asked for.

    An error comes where its item is due.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    waiting: deque[Future[T]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(build, index))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # of a loop that was left early too
        pool.shutdown(wait=True, cancel_futures=True)
