"""Ctrl-C, SIGTERM and a closed terminal: the first lets the step be finished and saved, a second stops at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer

from lit_gpt.callbacks.run_folder import rank

#: Signals after which a run saves and leaves.
HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(SystemExit):
    """The run was asked to stop, has saved, and leaves with 128 + the signal's number, as shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal came before the run could save. On a KeyboardInterrupt Lightning ends the other processes too."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Signals:
    """Remembers a signal until the run has come to the end of a step."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._terminals: list[int] = []

    def listen(self, trainer: Trainer) -> None:
        """Replace the handlers that Lightning has set."""
        self.received = None
        self._terminals = [file for file in (1, 2) if os.isatty(file)]
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other
            self._handlers = {number: signal.getsignal(number) for number in HEEDED}
        for number, handler in self._handlers.items():
            if number != signal.SIGHUP or handler != signal.SIG_IGN:  # nohup's wish
                signal.signal(number, self._remember)
        if trainer.received_sigterm:  # before this
            self.received = signal.SIGTERM
        # Lightning asks all processes for SIGTERM at each micro-batch, where each GPU waits for its whole queue.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def give_back(self) -> None:
        """Set the handlers that were there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._leave_the_terminal()
        if self.received is not None:
            raise StoppedAtOnce(number)
        self.received = number
        # A handler may interrupt a print, so it writes to the file descriptor itself.
        if rank() == 0:
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: finishing the step and saving; once more stops at once\n".encode())

    def _leave_the_terminal(self) -> None:
        """Whoever writes to a terminal that was closed gets an error: nothing more goes there."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for file in self._terminals:
            os.dup2(nowhere, file)
        os.close(nowhere)
