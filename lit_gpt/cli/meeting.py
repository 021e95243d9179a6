"""What the processes of a run do when they have met and before any of them prepares data.

They compare code, options and the checkpoint to resume from. Processes without that checkpoint get it from process 0.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from datamodules.agreement import Fact, are_several, check_agreement, gathered
from lit_gpt.callbacks.resume import CHECKPOINT_FIXES, facts_of_checkpoint
from lit_gpt.callbacks.run_folder import rank
from lit_gpt.cli.run_facts import FIXES
from lit_gpt.sending import Sent, remove_sent, sent_from_first

#: Seconds after which a process says that it waits for the others.
PATIENCE = 30.0


class Meeting:
    """The agreement of the processes of one run.

    Args:
        facts: Returns what must be equal in all processes. It is called if there are several.
        checkpoint: The checkpoint that this process has chosen to resume from. None: it has found none.
        adopt: Called with the file that this process got from process 0.
    """

    def __init__(
        self, facts: Callable[[], Mapping[str, Fact]], checkpoint: Path | None, adopt: Callable[[Path], None]
    ) -> None:
        self._facts = facts
        self._checkpoint = checkpoint
        self._adopt = adopt
        self._sent: Sent | None = None

    def attach(self, trainer: Trainer) -> None:
        """Let the Trainer call `agree` when the processes have met, and resume from the file that was sent.

        Lightning has no hook there: `setup` is called after the data has been prepared, which may take hours.
        """
        strategy, connector = trainer.strategy, trainer._checkpoint_connector
        # After this one, FSDP2 makes groups of processes, for which a process of another strategy would wait.
        hook = "_setup_distributed" if hasattr(strategy, "_setup_distributed") else "setup_environment"
        meet, resume, end = getattr(strategy, hook), connector.resume_start, connector.resume_end

        def meet_and_agree() -> None:
            with _said_if_long():
                meet()
            self.agree()

        def resume_start(path: Any = None, **options: Any) -> None:
            resume(self._sent.path if self._sent else path, **options)

        def resume_end() -> None:
            end()  # waits for all processes, so that none reads the file any more
            self.close()

        setattr(strategy, hook, meet_and_agree)
        connector.resume_start = resume_start  # type: ignore[method-assign, assignment]
        connector.resume_end = resume_end  # type: ignore[method-assign]

    def agree(self) -> None:
        """Compare the facts of all processes, and get the checkpoint from process 0 if this process has none.

        Raises:
            DisagreementError: In every process.
        """
        if not are_several():
            return
        check_agreement(self._facts(), FIXES)
        own = facts_of_checkpoint(self._checkpoint)
        first = gathered(own)[0]
        check_agreement(own if self._checkpoint else first, CHECKPOINT_FIXES)
        if first == facts_of_checkpoint(None):
            return
        self._sent = sent_from_first(self._checkpoint, self._checkpoint is None)
        if self._sent:
            self._adopt(self._sent.path)

    def close(self) -> None:
        """Remove the file that was sent to this process, if there is one."""
        if self._sent and self._sent.is_own:
            remove_sent(self._sent.path)


@contextmanager
def _said_if_long() -> Iterator[None]:
    """Print a line if the others are not there soon. A process waits half an hour for them."""
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    line = f"process {rank()} waits for the other processes of the run (process 0 is expected at {place})"
    timer = threading.Timer(PATIENCE, print, (line,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
