"""Sums and decisions over all processes, parts of sharded tensors, and numbers copied from a GPU, without waiting for
work that is queued on it.

Lightning's `reduce` and `reduce_boolean_decision` are not used: they have a barrier, at which every process waits until
its GPU has finished all queued work.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn


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
    return bool(largest_of_processes(int(value), group))


def largest_of_processes(value: int, group: distributed.ProcessGroup | None) -> int:
    """The largest ``value`` among the processes of a `cpu_group`; the same answer in all."""
    if group is None:
        return value
    largest = torch.tensor(value)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX, group)
    return int(largest)


# ---- tensors that are sharded by rows over the processes (torch's DTensors; see `lit_gpt.strategies`)


def is_sharded(tensor: Any) -> bool:
    """Whether each process has only some rows of ``tensor``."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """The rows of a tensor that this process has, sharing its memory: all, if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full(tensor: Any) -> Tensor:
    """The whole of a tensor. If it is sharded, all processes must call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part_of(whole: Tensor, like: Any) -> Tensor:
    """The rows of ``whole`` that this process has of ``like``, a tensor of the same shape."""
    first = first_row(like)
    return whole[first : first + len(local(like))] if is_sharded(like) else whole


def first_row(tensor: Any) -> int:
    """The number of the first row of a tensor that this process has."""
    if not is_sharded(tensor):
        return 0
    rows = -(-len(tensor) // tensor.device_mesh.size())  # as torch.chunk: the last processes may have fewer, or none
    return int(min(tensor.device_mesh.get_local_rank() * rows, len(tensor)))


def copy_rows(source: Tensor, target: Any) -> None:
    """Copy all rows of ``source`` to the first rows of ``target``, which may be sharded."""
    own, first = local(target), first_row(target)
    rows = max(0, min(len(own), len(source) - first))
    own[:rows] = source[first : first + rows]


def sharded_like(whole: Tensor, like: Any) -> Tensor:
    """A copy of ``whole`` on the device of ``like``, and sharded as it is, if it is."""
    part = part_of(whole, like).to(like.device, copy=True)
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor  # not before it is needed: importing it takes half a second

    return DTensor.from_local(
        part.contiguous(), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def layers_of(net: nn.Module) -> list[nn.Module]:
    """The layers of a network that are gathered one at a time: those in its lists, such as the blocks of a GPT."""
    lists = [child for child in net.children() if isinstance(child, nn.ModuleList)]
    return [layer for layers in lists for layer in layers if any(True for _ in layer.parameters())]


def needs_all(net: Any) -> bool:
    """Whether the weights of ``net`` are sharded: all processes must take part in each forward pass."""
    return hasattr(net, "reshard")


def reshard(net: Any) -> None:
    """Free what a sharded network gathered for a forward pass that no backward pass followed."""
    if needs_all(net):
        net.reshard()


@contextmanager
def outside_inference_mode(net: Any) -> Iterator[None]:
    """For a sharded network, no gradients in place of inference mode: training could not use what is gathered in it."""
    with ExitStack() as stack:
        if needs_all(net):
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield


def agreed(value: Tensor, net: Any) -> Tensor:
    """The value of rank 0, in place, if the network is sharded: the processes must not take different decisions."""
    if needs_all(net):
        distributed.broadcast(value, 0)
    return value
