"""What a step must learn from its device and from the other processes, with no GPU waiting for the work that is queued.

Lightning's `reduce` and `reduce_boolean_decision` have a barrier, at which each process of several GPUs waits for all
of its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor, distributed


def sent_to_cpu(count: Tensor) -> Callable[[], int]:
    """Reads ``count`` later; that waits for a GPU to reach it, not for the work that has been queued since."""
    if not count.is_cuda:
        return lambda: int(count)
    host = torch.empty_like(count, device="cpu", pin_memory=True).copy_(count, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> int:
        """The count, once it has been copied."""
        copied.synchronize()
        return int(host)

    return read


def summed_over_processes(sums: Tensor, world_size: int) -> Tensor:
    """The sum of every process's ``sums``, in place."""
    if world_size > 1:
        distributed.all_reduce(sums)
    return sums


def cpu_group(world_size: int) -> distributed.ProcessGroup | None:
    """All processes of a run, joined for tensors of the CPU; None for one alone. All of them must call it."""
    if world_size == 1:
        return None
    world = distributed.group.WORLD
    assert world is not None, "a trainer of several processes has joined them"
    return world if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def any_process(asked: bool, group: distributed.ProcessGroup | None) -> bool:
    """Whether one of the processes of a `cpu_group` has been asked."""
    if group is None:
        return asked
    flag = torch.tensor(asked, dtype=torch.uint8)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX, group)
    return bool(flag)
