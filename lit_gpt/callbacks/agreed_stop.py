"""Lets all processes of a run stop at the same step, for a signal or for ``--trainer.max_time``."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.callbacks.timer import Interval

from lit_gpt.callbacks.signals import Signals
from lit_gpt.ddp import Votes
from lit_gpt.distributed import any_process, cpu_group, largest_of_processes
from lit_gpt.language_model import LitLanguageModel


class AgreedStop:
    """What several processes decide together at the end of a step. A single one decides alone.

    A `LitLanguageModel` adds up its sums over processes at each step, and the votes with them. Other modules have no
    such sums: then the processes ask each other at the end of each step.

    Args:
        trainer: The Trainer, as training begins.
        module: Its module.
        signals: Those of this process.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, signals: Signals) -> None:
        self._trainer, self._signals = trainer, signals
        self._group = cpu_group(trainer.world_size)
        self._votes = Votes(lambda: signals.received is not None, self._time_is_up_here)
        self._signalled: bool | None = None
        self._timers: list[Any] = []
        if trainer.world_size > 1 and isinstance(module, LitLanguageModel):
            module.votes = self._votes
            self._timers = [timer for timer in _callbacks(trainer) if _stops_between_steps(timer)]
        for timer in self._timers:  # it would broadcast at each micro-batch, for which a GPU must finish its queue
            timer.on_train_batch_end = lambda *_: None

    def time_is_up(self) -> bool:
        """Whether the run has used its time. Call it at the end of a step, in all processes."""
        if not self._votes.were_cast:
            self._signalled = None
            for timer in self._timers:
                type(timer).on_train_batch_end(timer, self._trainer)
            return False
        self._signalled, time_is_up = self._votes.answers()
        return time_is_up

    def is_signalled(self) -> bool:
        """Whether any process got a signal; the same answer in all. Call it after `time_is_up`, in all processes."""
        if self._signalled is not None:
            return self._signalled
        return any_process(self._signals.received is not None, self._group)

    def signal(self) -> int:
        """The number of the signal, which another process may have got alone. All call it once they are to stop."""
        return largest_of_processes(self._signals.received or 0, self._group)

    def _time_is_up_here(self) -> bool:
        return self._trainer.is_global_zero and any((timer.time_remaining() or 0) <= 0 for timer in self._timers)


def _callbacks(trainer: Any) -> list[Any]:
    return trainer.callbacks


def _stops_between_steps(callback: Any) -> bool:
    return isinstance(callback, Timer) and callback._interval == Interval.step and callback._duration is not None
