"""The number of processes that this machine can run side by side."""

import os

from datamodules.errors import UserError

#: Four processes a core are allowed, as they may wait for a disk. 32 are always allowed: they start in about 2 s.
_WORKERS_PER_CORE, _ALWAYS_ALLOWED = 4, 32


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_workers(count: int) -> None:
    """Checks the number of processes that build batches: starting too many looks like a hang.

    Raises:
        UserError: more than four a core, and more than 32.
    """
    most = max(_WORKERS_PER_CORE * cores(), _ALWAYS_ALLOWED)
    if count > most:
        raise UserError(
            f"the data's num_workers is {count}, and this machine has {cores()} cores: give at most {most}, or leave "
            "it out, as batches are built faster than networks take them."
        )
