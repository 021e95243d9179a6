"""Muon's orthogonalisation shared among the processes of a run: each matrix has one owner.

Newton-Schulz steps need a whole matrix, and are most of Muon's work. The owners are chosen so that every process has
about the same number of floating-point operations. Two layouts are known:

- replicated (DDP): every process has all gradients and all momenta. An owner orthogonalises its matrices, then every
  process gets all results (one all-gather). The processes of a machine share, and each machine does all of the work:
  between machines the results would take longer to send than to compute (docs/scale.md).
- sharded by rows (FSDP2): every process has some rows of each matrix. The rows are sent to the matrix's owner, and the
  rows of the result are sent back (two all-to-alls).

Nothing here waits for the device: all sizes are known from the shapes.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, distributed

from lit_gpt.muon import newton_schulz_flops, orthogonalize, working_dtype

Shape = tuple[int, int]
#: Gives the matrices of some indices, as they are to be orthogonalised.
Directions = Callable[[Sequence[int]], list[Tensor]]
#: Indices of some matrices of one shape, and the update of each.
Updates = Iterator[tuple[list[int], list[Tensor]]]


@dataclass(frozen=True)
class Plan:
    """Which matrices each process orthogonalises."""

    shapes: tuple[Shape, ...]
    #: For each process, the indices of its matrices, those of one shape together.
    owned: tuple[tuple[int, ...], ...]

    def stacks(self, rank: int) -> list[list[int]]:
        """The matrices of a process in stacks of one shape."""
        return [list(stack) for _, stack in groupby(self.owned[rank], key=lambda i: self.shapes[i])]

    def elements(self, rank: int) -> int:
        """The number of elements of a process's matrices."""
        return sum(rows * columns for rows, columns in (self.shapes[i] for i in self.owned[rank]))


@cache
def plan_of(shapes: tuple[Shape, ...], ranks: int, dtype: torch.dtype = torch.bfloat16) -> Plan:
    """Give each matrix, those with the most FLOPs first, to the process with the fewest so far.

    It is the same in every process, because it depends on the arguments alone.
    """
    owned: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, 0)] * ranks  # FLOPs, then elements, which are what is sent
    flops = {shape: newton_schulz_flops(*shape, dtype) for shape in shapes}
    for i in sorted(range(len(shapes)), key=lambda i: (-flops[shapes[i]], shapes[i])):
        rank = loads.index(min(loads))
        owned[rank].append(i)
        loads[rank] = (loads[rank][0] + flops[shapes[i]], loads[rank][1] + shapes[i][0] * shapes[i][1])
    return Plan(shapes, tuple(tuple(indices) for indices in owned))


def layouts(parameters: list[Tensor]) -> list[list[Tensor]]:
    """The parameters in lists of one layout: plain tensors, and DTensors of one mesh and placement."""
    lists: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        lists.setdefault(_layout(parameter), []).append(parameter)
    return list(lists.values())


def _layout(parameter: Any) -> Any:
    return (parameter.device_mesh, parameter.placements) if hasattr(parameter, "placements") else None


def begin_updates(parameters: list[Tensor], directions: Directions) -> Updates:
    """Start to orthogonalise, together with the other processes. Iterate over the result to wait for the updates.

    Args:
        parameters: Matrices of one layout. Plain tensors are replicated if there are several processes: their gradients
            are then the same in all.
        directions: Of the process's own part of the matrices.
    """
    layout = _layout(parameters[0])
    shapes = tuple((p.size(0), p.size(1)) for p in parameters)
    dtype = working_dtype(parameters[0])
    if layout is not None:
        return _begin_sharded(shapes, directions, dtype, _group_of_rows(*layout))
    if (group := _group_of_machine()) is not None:
        return _begin_replicated(shapes, directions, dtype, parameters[0].device, group)
    return _alone(plan_of(shapes, 1), directions, parameters[0].dtype)


def _group_of_machine() -> distributed.ProcessGroup | None:
    """The processes of this machine, if there are several. All processes of the run must ask for it."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    return _grouped_by_machine(distributed.group.WORLD)


@cache
def _grouped_by_machine(world: distributed.ProcessGroup) -> distributed.ProcessGroup | None:
    """Find out once who is where. The machines' names are the only thing that every launcher has."""
    names: list[str] = [""] * world.size()
    distributed.all_gather_object(names, socket.gethostname())
    if len(set(names)) == 1:
        return world
    members = [[rank for rank, other in enumerate(names) if other == name] for name in dict.fromkeys(names)]
    own, _ = distributed.new_subgroups_by_enumeration(members)
    return own if own.size() > 1 else None


def _group_of_rows(mesh: Any, placements: tuple[Any, ...]) -> distributed.ProcessGroup:
    """The processes among which rows are sharded."""
    sharded = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    if len(sharded) != 1 or not placements[sharded[0]].is_shard(0):
        raise ValueError(f"Muon needs matrices that are sharded along their rows, not as {placements}")
    return mesh.get_group(sharded[0])


def _alone(plan: Plan, directions: Directions, dtype: torch.dtype) -> Updates:
    # One stack after the other, so that the memory of one is free for the next.
    for stack in plan.stacks(0):
        yield stack, list(orthogonalize(torch.stack(directions(stack))).to(dtype).unbind())


# ---- replicated


def _begin_replicated(
    shapes: tuple[Shape, ...],
    directions: Directions,
    dtype: torch.dtype,
    device: torch.device,
    group: distributed.ProcessGroup,
) -> Updates:
    ranks, rank = group.size(), group.rank()
    plan = plan_of(shapes, ranks, dtype)
    # An all-gather takes parts of one size: that of the largest.
    gathered = torch.empty(ranks, max(map(plan.elements, range(ranks))), dtype=dtype, device=device)
    own = torch.empty_like(gathered[0])
    views = _views(own, plan, rank)
    for stack in plan.stacks(rank):
        updates = orthogonalize(torch.stack(directions(stack)))  # (n, rows, columns)
        torch._foreach_copy_([views[i] for i in stack], list(updates.unbind()))
    work = distributed.all_gather(list(gathered.unbind()), own, group, async_op=True)
    return _gathered(gathered, plan, work, own)


def _gathered(gathered: Tensor, plan: Plan, work: Any, own: Tensor) -> Updates:
    """Wait, then give all updates. ``own`` must live until then: it is being sent."""
    work.wait()
    views = {i: view for rank, part in enumerate(gathered) for i, view in _views(part, plan, rank).items()}
    for stack in plan_of(plan.shapes, 1).stacks(0):
        yield stack, [views[i] for i in stack]


def _views(part: Tensor, plan: Plan, rank: int) -> dict[int, Tensor]:
    """The matrices of a process in its part of what is gathered."""
    sizes = [plan.shapes[i][0] * plan.shapes[i][1] for i in plan.owned[rank]]
    pieces = part[: sum(sizes)].split(sizes) if sizes else ()
    return {i: piece.view(plan.shapes[i]) for i, piece in zip(plan.owned[rank], pieces, strict=True)}


# ---- sharded by rows


def rows_of(rank: int, rows: int, ranks: int) -> int:
    """How many of a matrix's rows a process has. As in `torch.chunk`, the last ones may have fewer, or none."""
    size = -(-rows // ranks)
    return max(0, min(size, rows - rank * size))


def _shard_size(shape: Shape, rank: int, ranks: int) -> int:
    return rows_of(rank, shape[0], ranks) * shape[1]


def _begin_sharded(
    shapes: tuple[Shape, ...], directions: Directions, dtype: torch.dtype, group: distributed.ProcessGroup
) -> Updates:
    ranks, rank = group.size(), group.rank()
    plan = plan_of(shapes, ranks, dtype)
    order = [i for indices in plan.owned for i in indices]  # by owner
    to_owners = [sum(_shard_size(shapes[i], rank, ranks) for i in indices) for indices in plan.owned]
    to_me = [sum(_shard_size(shapes[i], r, ranks) for i in plan.owned[rank]) for r in range(ranks)]
    rows = torch.cat([shard.to(dtype).flatten() for shard in directions(order)])
    received = rows.new_empty(sum(to_me))
    distributed.all_to_all_single(received, rows, to_me, to_owners, group)
    updates = _orthogonalized(plan, rank, received.split(to_me))
    back = torch.cat(_by_receiver(updates, ranks)) if updates else received
    returned = torch.empty_like(rows)
    work = distributed.all_to_all_single(returned, back, to_owners, to_me, group, async_op=True)
    return _returned(returned, plan, rank, work, back)


def _orthogonalized(plan: Plan, rank: int, received: Sequence[Tensor]) -> list[Tensor]:
    """The updates of a process's matrices, made whole from the rows of each process."""
    owned, ranks = plan.owned[rank], len(plan.owned)
    sizes = [[_shard_size(plan.shapes[i], r, ranks) for i in owned] for r in range(ranks)]
    pieces = [part.split(size) for part, size in zip(received, sizes, strict=True)]  # for each process, each matrix
    whole = {i: torch.cat(p).view(plan.shapes[i]) for i, p in zip(owned, zip(*pieces, strict=True), strict=True)}
    stacks = (torch.stack([whole[i] for i in stack]) for stack in plan.stacks(rank))
    return [update for stack in stacks for update in orthogonalize(stack)]


def _by_receiver(updates: list[Tensor], ranks: int) -> list[Tensor]:
    """The rows of each update, flat: those that go to the first process, then to the second."""
    rows = [update.split([rows_of(r, len(update), ranks) for r in range(ranks)]) for update in updates]
    return [rows[i][r].flatten() for r in range(ranks) for i in range(len(updates))]


def _returned(returned: Tensor, plan: Plan, rank: int, work: Any, back: Tensor) -> Updates:
    """Wait, then give this process's rows of all updates. ``back`` must live until then: it is being sent."""
    work.wait()
    ranks = len(plan.owned)
    order = [i for indices in plan.owned for i in indices]
    pieces = returned.split([_shard_size(plan.shapes[i], rank, ranks) for i in order])
    rows = {i: piece.view(-1, plan.shapes[i][1]) for i, piece in zip(order, pieces, strict=True)}
    for stack in plan_of(plan.shapes, 1).stacks(0):
        yield stack, [rows[i] for i in stack]


# ---- what it costs


def flops_of_busiest(plan: Plan, dtype: torch.dtype = torch.bfloat16) -> int:
    """The most floating-point operations that any process does for a step."""
    return max(sum(newton_schulz_flops(*plan.shapes[i], dtype) for i in indices) for indices in plan.owned)


def sent_replicated(plan: Plan) -> int:
    """How many elements each process sends for a step: an all-gather passes each part through every other process."""
    ranks = len(plan.owned)
    return (ranks - 1) * max(map(plan.elements, range(ranks)))


def sent_sharded(plan: Plan) -> int:
    """The most elements that any process sends for a step: its rows to the owners, and the owned updates' rows."""
    ranks = len(plan.owned)
    return max(_sent_by(plan, rank) for rank in range(ranks))


def _sent_by(plan: Plan, rank: int) -> int:
    ranks, owned = len(plan.owned), set(plan.owned[rank])
    own_rows = [_shard_size(shape, rank, ranks) for shape in plan.shapes]
    to_owners = sum(size for i, size in enumerate(own_rows) if i not in owned)
    return to_owners + plan.elements(rank) - sum(own_rows[i] for i in owned)
