"""Handles Ctrl-C, other stop signals and a closed terminal: the first finishes the step and saves, a second stops at
once.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer

from lit_gpt.callbacks.run_folder import rank

#: Signals after which a run saves and exits. Clusters send USR1 or USR2 before the end of a job (see `requeue`).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(SystemExit):
    """Raised when a signalled run has saved. Its exit status is 128 + the signal's number, as shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StoppedAtOnce(KeyboardInterrupt):
    """Raised by a second signal. Lightning ends the other processes too on a KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Signals:
    """Stores a signal in ``received`` until the run reaches the end of a step."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._terminals: list[int] = []

    def listen(self, trainer: Trainer) -> None:
        """Replace the handlers that Lightning has set."""
        self.received = None
        self._terminals = [file for file in (1, 2) if os.isatty(file)]
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in this thread only
            self._handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in self._handlers.items():
            if number != signal.SIGHUP or handler != signal.SIG_IGN:  # nohup ignores SIGHUP: keep it so
                signal.signal(number, self._receive)
        if trainer.received_sigterm:  # it came before this handler was set
            self.received = signal.SIGTERM
        # Lightning gathers SIGTERM from all processes at each micro-batch, for which each GPU must finish its queue.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def restore_handlers(self) -> None:
        """Set the handlers that were there before `listen`."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._redirect_output()
        if self.received is not None:
            raise StoppedAtOnce(number)
        self.received = number
        # A handler may interrupt a print, so it writes to the file descriptor itself.
        if rank() == 0:
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: finishing the step and saving; once more stops at once\n".encode())

    def _redirect_output(self) -> None:
        """Send further output to /dev/null: to write to a closed terminal is an error."""
        devnull = os.open(os.devnull, os.O_WRONLY)
        for file in self._terminals:
            os.dup2(devnull, file)
        os.close(devnull)
