"""What numbers an option takes, and how large a network this machine holds."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch

from datamodules.errors import UserError

#: Where float32 ends: a larger number is infinite to torch.
MOST_FLOAT = 3.4e38
#: More than any side of a tensor or count of steps that a machine gets through.
MOST_INT = 2**40
FLOAT32 = 4  # bytes


def wrong_numbers(config: Any, least: Mapping[str, int], most: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each number in the fields of a dataclass that is of another type, not finite or too large or
    small, those in lists and dictionaries too.

    Args:
        config: An instance.
        least: The smallest value of some fields.
        most: The largest of some; `MOST_INT` and `MOST_FLOAT` for others.
    """
    for name, hint in get_type_hints(type(config)).items():
        kinds = _kinds(hint)
        kind = float if float in kinds else int
        if kind in kinds and Any not in kinds:
            limits = least.get(name, -math.inf), most.get(name, MOST_INT if kind is int else MOST_FLOAT)
            given = getattr(config, name)
            values = [] if given is None and NoneType in kinds else _values(given)
            wrong = [value for value in values if not _is_one(value, kind, *limits)]
            if wrong:
                yield f"{name} is {wrong[0]!r}: give {_range(kind, *limits)}."


def _kinds(hint: Any) -> set[Any]:
    """The classes in a type: {int, NoneType} for ``int | None``, {float, list} for ``list[float]``."""
    return {hint}.union(*(_kinds(part) for part in get_args(hint)))


def _values(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_one(value: Any, kind: type, low: float, high: float) -> bool:
    allowed = (int, float) if kind is float else (int,)
    return isinstance(value, allowed) and not isinstance(value, bool) and max(low, -high) <= value <= high


def _range(kind: type, low: float, high: float) -> str:
    if kind is float:
        return "a finite number"
    whole = "a whole number, at most" if low == -math.inf else f"at least {low} and at most"
    return f"{whole} {high:,}"


def check_fits(parameters: int, what: str) -> None:
    """Refuse a network that cannot be held, before its tensors are asked for.

    Args:
        parameters: Its size, at least.
        what: The options that decide it.

    Raises:
        UserError: In float32 it needs more than the memory of the device where torch makes tensors now.
    """
    device, needed = torch.get_default_device(), parameters * FLOAT32
    memory = memory_of(device)
    if memory is not None and needed > memory:
        where = "this machine" if device.type == "cpu" else str(device)
        raise UserError(
            f"the network has {parameters:,} parameters, {needed / 1e9:,.1f} GB, and {where} has {memory / 1e9:,.1f} "
            f"GB of memory: lower {what}."
        )


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory, used ones too; None where nobody knows or nothing is kept (meta)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu":
        return None
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)


def is_out_of_memory(error: Exception) -> bool:
    """Whether numpy, CUDA or torch's CPU allocator, which has no exception of its own, asked for too much."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def out_of_memory(error: Exception) -> UserError:
    """One sentence for it."""
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return UserError(
        f"there is not enough memory ({reason}): lower --data.micro_batch_size, --data.tokens_per_step or the size of "
        "the network."
    )
