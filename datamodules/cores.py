"""How many processes this machine can run side by side."""

import os

from datamodules.errors import UserError

#: Processes that mostly wait for a disk may be more than cores, and 32 start within a second or two on any machine.
_A_CORE, _ALWAYS = 4, 32


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_workers(count: int) -> None:
    """Refuses so many processes for batches that starting them would look like a hang.

    Raises:
        UserError: more than four a core, and more than 32.
    """
    most = max(_A_CORE * cores(), _ALWAYS)
    if count > most:
        raise UserError(
            f"The data's num_workers is {count}, and this machine has {cores()} cores: give at most {most}, or leave "
            "it out, as batches are built faster than networks take them."
        )
