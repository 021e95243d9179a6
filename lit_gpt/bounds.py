"""Limits: which numbers an option takes, and how large a network fits into this machine's memory."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch

from datamodules.errors import UserError

#: The largest float32 is 3.403e38: a larger number would be infinite in a tensor.
MAX_FLOAT = 3.4e38
#: More than any dimension of a tensor, or number of steps, that a machine can handle.
MAX_INT = 2**40
FLOAT32_BYTES = 4


def invalid_numbers(config: Any, minimum: Mapping[str, int], maximum: Mapping[str, int]) -> Iterator[str]:
    """Check the numbers in the fields of a dataclass; a sentence for each that is invalid.

    A number is invalid if it has another type than its field, is not finite, or is out of range. Numbers in lists and
    dictionaries are checked too.

    Args:
        config: An instance of the dataclass.
        minimum: The smallest values of fields, by name; others have none.
        maximum: The largest values of fields, by name; others have `MAX_INT` or `MAX_FLOAT`.
    """
    for name, hint in get_type_hints(type(config)).items():
        types = _types_in(hint)
        number_type = float if float in types else int
        if number_type in types and Any not in types:
            low, high = minimum.get(name, -math.inf), maximum.get(name, MAX_INT if number_type is int else MAX_FLOAT)
            value = getattr(config, name)
            numbers = [] if value is None and NoneType in types else _numbers_in(value)
            invalid = [number for number in numbers if not _is_valid(number, number_type, low, high)]
            if invalid:
                yield f"{name} is {invalid[0]!r}: give {_describe_range(number_type, low, high)}."


def _types_in(hint: Any) -> set[Any]:
    """The classes in a type: {int, NoneType} for ``int | None``, {float, list} for ``list[float]``."""
    return {hint}.union(*(_types_in(argument) for argument in get_args(hint)))


def _numbers_in(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_valid(value: Any, number_type: type, low: float, high: float) -> bool:
    allowed = (int, float) if number_type is float else (int,)
    # A bool is an int to Python. NaN fails both comparisons; -high bounds what has no minimum.
    return isinstance(value, allowed) and not isinstance(value, bool) and max(low, -high) <= value <= high


def _describe_range(number_type: type, low: float, high: float) -> str:
    if number_type is float:
        return "a finite number"
    start = "a whole number, at most" if low == -math.inf else f"at least {low} and at most"
    return f"{start} {high:,}"


def check_memory(parameters: int, *, lower: str) -> None:
    """Refuse a network whose weights in float32 do not fit into memory, before torch allocates them.

    Args:
        parameters: Number of its parameters, or a little less.
        lower: The options that decide it, for the error: "lower config.n_embd".

    Raises:
        UserError: The weights need more than the memory of torch's default device.
    """
    device, needed = torch.get_default_device(), parameters * FLOAT32_BYTES
    memory = memory_of(device)
    if memory is not None and needed > memory:
        where = "this machine" if device.type == "cpu" else str(device)
        raise UserError(
            f"the network has {parameters:,} parameters, {needed / 1e9:,.1f} GB, and {where} has {memory / 1e9:,.1f} "
            f"GB of memory: lower {lower}."
        )


def memory_of(device: torch.device) -> int | None:
    """Total bytes of memory, free or not; None where that is unknown, and for meta, which holds no data.

    On a CPU this is the machine's memory or the container's limit, whichever is smaller.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu":
        return None
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)


#: What RuntimeErrors say that mean too little memory: of torch's CPU allocator, the CUDA driver, Triton and cuBLAS.
OUT_OF_MEMORY = r"DefaultCPUAllocator|out of memory|STATUS_ALLOC_FAILED"


def is_out_of_memory(error: Exception) -> bool:
    """Whether numpy, torch's CPU allocator or a GPU is out of memory. Not all of torch's errors have a class for it."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(OUT_OF_MEMORY, str(error)) is not None
    )


def out_of_memory(error: Exception, fix: str | None = None) -> UserError:
    """The error in one sentence, with what to type.

    Args:
        error: What numpy or torch raised.
        fix: The end of the sentence. None: what may be lowered.
    """
    reason = (str(error) or type(error).__name__).splitlines()[0]
    reason = reason.partition(". GPU ")[0].rstrip(".")  # what torch adds on the state of the GPU fills six lines
    lower = "lower --data.micro_batch_size, --data.tokens_per_step or the size of the network"
    return UserError(f"there is not enough memory ({reason}): {fix or lower}.")
