"""Encodes text on all cores, in worker processes that import this package and numpy only.

The workers are plain child processes on pipes, not of ``multiprocessing``. Spawned children of that import the caller's
main module again, and torch with it, about 350 MB each. Forked ones copy a process that may have threads. A worker ends
when its input ends, so it does not outlive a parent that was killed.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from io import BufferedReader
from queue import SimpleQueue
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np

from datamodules.cores import cores
from datamodules.errors import UserError
from datamodules.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, tokenizer_from_dict

#: The start of a worker takes about 0.3 s. One core encodes about so many characters in that time.
_CHARS_PER_WORKER = 4_000_000


class Encoded(NamedTuple):
    """The ids of a piece of text, (T,), and the piece's size."""

    ids: np.ndarray
    chars: int
    bytes: int


#: Pieces of text, each with whether it begins its document.
Job: TypeAlias = list[tuple[str, bool]]


def encode(tokenizer: Tokenizer, job: Job) -> list[Encoded]:
    """The ids of each piece of a job."""
    # A plain loop was 5 times faster than tiktoken's batch call.
    return [Encoded(tokenizer.encode_array(text, start), len(text), len(text.encode())) for text, start in job]


def useful_workers(tokenizer: Tokenizer, chars: int) -> int:
    """Number of worker processes that encode faster than this one alone, or 0.

    It is 0 for characters and bytes, which numpy looks up faster than a pipe could carry them.
    """
    if isinstance(tokenizer, CharTokenizer | ByteTokenizer):
        return 0
    workers = min(cores(), chars // _CHARS_PER_WORKER)
    return workers if workers > 1 else 0


def encode_all(tokenizer: Tokenizer, jobs: Iterable[Job], workers: int) -> Iterator[list[Encoded]]:
    """Encodes jobs, in their order, in ``workers`` processes; 0 is this process. Two jobs a worker are in memory."""
    if workers == 0:
        yield from (encode(tokenizer, job) for job in jobs)
        return
    with ExitStack() as stack:
        free: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(workers):
            free.put(stack.enter_context(_Worker(tokenizer)))
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        waiting: deque[Future[list[Encoded]]] = deque()
        for job in jobs:
            waiting.append(threads.submit(_encode_on, free, job))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _encode_on(free: "SimpleQueue[_Worker]", job: Job) -> list[Encoded]:
    worker = free.get()
    try:
        return worker.encode(job)
    finally:
        free.put(worker)


class _Worker:
    """One child process and the two pipes to it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from datamodules.encoding import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RAYON_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches only the parent; then this process's input ends
        )
        self.requests, self.replies = cast(BinaryIO, self.process.stdin), cast(BinaryIO, self.process.stdout)
        _send(self.requests, tokenizer.to_dict())

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.replies.close()
        with suppress(BrokenPipeError):  # a job may still be in the buffer
            self.requests.close()

    def encode(self, job: Job) -> list[Encoded]:
        """The ids of a job's pieces, from the worker process."""
        try:
            _send(self.requests, job)
            reply = pickle.load(self.replies)
        except (EOFError, BrokenPipeError):
            raise UserError(
                "a process that encodes text was ended from outside, perhaps for want of memory; start again."
            ) from None
        if isinstance(reply, UserError):
            raise reply
        return reply


def serve() -> None:
    """Runs a worker: reads a tokenizer, then jobs until the input ends."""
    requests, replies = cast(BufferedReader, sys.stdin.buffer), sys.stdout.buffer
    tokenizer = tokenizer_from_dict(pickle.load(requests))
    while requests.peek(1):
        job = pickle.load(requests)
        try:
            _send(replies, encode(tokenizer, job))
        except UserError as error:
            _send(replies, error)


def _send(pipe: Any, value: object) -> None:
    pickle.dump(value, pipe, protocol=5)
    pipe.flush()
