"""Sums and decisions over all processes, and numbers copied from a GPU, without waiting for work that is queued on it.

Lightning's `reduce` and `reduce_boolean_decision` are not used: they have a barrier, at which every process waits until
its GPU has finished all queued work.
"""

from collections.abc import Callable

import torch
from torch import Tensor, distributed


def sent_to_cpu(count: Tensor) -> Callable[[], int]:
    """Start copying ``count`` to the CPU, and return a function that gives it.

    The function waits until the GPU has computed and copied the count, not for work that was queued after it.
    """
    if not count.is_cuda:
        return lambda: int(count)
    # Only pinned memory can be copied to without making the CPU wait.
    host = torch.empty_like(count, device="cpu", pin_memory=True).copy_(count, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> int:
        """The count, once it has been copied."""
        copied.synchronize()
        return int(host)

    return read


def summed_over_processes(sums: Tensor, world_size: int) -> Tensor:
    """Add up the ``sums`` of all processes, in place; every process gets the result."""
    if world_size > 1:
        distributed.all_reduce(sums)
    return sums


def cpu_group(world_size: int) -> distributed.ProcessGroup | None:
    """A process group of all processes for tensors on the CPU; None for a single one. All must call it."""
    if world_size == 1:
        return None
    world = distributed.group.WORLD
    assert world is not None, "a Trainer with several processes has initialised torch.distributed"
    # NCCL, the backend of GPUs, takes no tensors on the CPU; gloo does.
    return world if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def any_process(value: bool, group: distributed.ProcessGroup | None) -> bool:
    """Whether ``value`` is true in at least one process of a `cpu_group`; the same answer in all."""
    if group is None:
        return value
    flag = torch.tensor(value, dtype=torch.uint8)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX, group)
    return bool(flag)
