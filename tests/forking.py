"""Two processes of one run, forked from this one, which has imported everything already."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch


def until(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it took too long")


def ended(process: int) -> int:
    """The exit status of a child."""
    found = [(0, 0)]
    until(lambda: bool(found.append(os.waitpid(process, os.WNOHANG)) or found[-1][0]))
    return os.waitstatus_to_exitcode(found[-1][1])


def forked(work: Callable[[int], int], folder: Path, host: Callable[[int], str] | None = None) -> list[tuple[int, str]]:
    """The exit status and the output of each of two processes of one run.

    Args:
        work: What a process does; returns its exit status.
        folder: Each process works in a folder of its own below it, ``rank0`` or ``rank1``.
        host: The name of each process's machine.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        if not (child := os.fork()):
            os.environ.update(place, NODE_RANK=str(rank), LOCAL_RANK="0", GLOO_SOCKET_IFNAME="lo")
            if host:
                socket.gethostname = partial(host, rank)
            own = folder / f"rank{rank}"
            own.mkdir(exist_ok=True)
            os.chdir(own)
            output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1), os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(file, "w", buffering=1, closefd=False) for file in (1, 2))
            try:
                os._exit(work(rank))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)
        children.append(child)
    return [(ended(child), (folder / f"rank{rank}" / "output").read_text()) for rank, child in enumerate(children)]


def assert_equal(one: Any, two: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list | tuple):
        for x, y in zip(one, two, strict=True):
            assert_equal(x, y)
    else:
        assert one == two
