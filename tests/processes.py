"""Several processes of torch.distributed that are forked from a test, so that torch is imported once."""

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def on_processes(ranks: int, work: Callable[[int], T], folder: Path) -> list[T]:
    """What ``work(rank)`` returns in each of ``ranks`` processes that meet on gloo. A failure is an AssertionError."""
    children = [_fork(rank, ranks, work, folder) for rank in range(ranks)]
    failed = [rank for rank, child in enumerate(children) if os.waitpid(child, 0)[1]]
    assert not failed, "\n".join((folder / f"error{rank}").read_text() for rank in failed)
    return [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(ranks)]


def _fork(rank: int, ranks: int, work: Callable[[int], object], folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        where = f"file://{folder / 'meeting'}"
        distributed.init_process_group("gloo", where, timedelta(seconds=60), ranks, rank)
        torch.save(work(rank), folder / f"result{rank}")
        distributed.destroy_process_group()
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
