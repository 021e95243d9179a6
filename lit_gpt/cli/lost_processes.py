"""The processes of one run end together, in one sentence.

torch notices a lost process in the next collective operation, and then that sentence is printed by ``__main__``. Before
the processes have met, nothing notices: each would wait for the other for half an hour. Here a process that started
others watches them, and they watch it.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

#: Environment variable in which a process passes its id to the processes that it starts.
PARENT_VARIABLE = "LIT_GPT_PARENT"
#: Set by torchrun in the processes that it starts.
TORCHRUN_VARIABLE = "TORCHELASTIC_RUN_ID"
#: Seconds that a process has to end by itself, after it has lost the process that started it.
GRACE = 5.0
LOST = (
    "another process of the run failed or was killed: see its own last lines, if it could write any, and go on "
    "with --resume auto."
)


#: Called before `end` ends this process.
before_end: Callable[[], object] | None = None


def watch_parent() -> None:
    """Let this process end when the process that started it as part of the same run has ended."""
    parent = os.getppid()
    if os.environ.get(PARENT_VARIABLE) == str(parent) or TORCHRUN_VARIABLE in os.environ:
        threading.Thread(target=_end_after, args=(parent,), name="watch-parent", daemon=True).start()
    os.environ[PARENT_VARIABLE] = str(os.getpid())


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(GRACE)
    end()


def end() -> None:
    """Print the sentence and end this process, whatever its main thread waits for."""
    print(f"lit_gpt: {LOST}", file=sys.stderr, flush=True)
    with suppress(Exception):  # the process must end
        if before_end:
            before_end()
    os._exit(2)


def watch_children() -> None:
    """Let this process end with the sentence when one that it started for the same run has failed.

    Lightning's observer kills this process instead, so that no line says why.
    """
    from lightning.fabric.strategies.launchers import subprocess_script  # imported by then in any case

    subprocess_script._ChildProcessObserver._terminate_all = _end_all  # type: ignore  # no public place


def _end_all(observer: Any) -> None:
    for child in observer._child_processes:
        child.send_signal(signal.SIGKILL)  # SIGTERM does not end one that waits in a collective operation
    end()
