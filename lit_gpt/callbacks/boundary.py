"""Restores the state at the end of the last optimizer step, so that a run that fails in the next one can be saved.

Weights and optimizer keep that state until the next update begins. The rest is small and is copied at the end of each
step: Lightning's counters, the position in the data, and the states of the random number generators.
"""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _BaseProgress

from datamodules.batches import TrainLoader
from lit_gpt.callbacks.resume import random_state, set_random_state


class StepEnd:
    """The state at the end of the last optimizer step.

    A validation is called owed if it is due at a step and has not been done yet.

    Args:
        trainer: The Trainer, as training begins.
        module: Its module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self._loop = trainer.fit_loop.epoch_loop
        self._counters = [vars(counter) for counter in _progress_of(trainer.fit_loop)]
        self._buffers = [(layer._buffers, name) for layer in module.modules() for name in layer._buffers]
        self._noted: tuple[Any, ...] | None = None
        self.owed = False

    def note(self, owed: bool) -> None:
        """Copy the state. Call it when the step and its learning-rate schedules are done.

        Args:
            owed: Whether a validation of this step is still to come.
        """
        self.owed = owed
        counters = [counter.copy() for counter in self._counters]
        loaders = [(vars(x), vars(x).copy()) for x in self._loaders() if isinstance(x, TrainLoader)]
        self._noted = (counters, self._loop._batches_that_stepped, loaders, self._versions(), random_state())

    def forget(self) -> None:
        """Drop the copy: the next update of the weights begins."""
        self._noted = None

    def go_back(self) -> bool:
        """Restore the state of the last `note`. False, without any change, if that is not possible any more."""
        if self._noted is None or self._noted[3] != self._versions() or not self._can_restore_loaders():
            return False
        counters, self._loop._batches_that_stepped, loaders, _, random = self._noted
        for target, values in (*zip(self._counters, counters, strict=True), *loaders):
            target.update(values)
        set_random_state(random)
        return True

    def is_step_end(self) -> bool:
        """Whether the trainer is at the end of a step right now: that step is complete, and the next has not begun."""
        loop: Any = self._loop
        batches, steps = loop.batch_progress.current, loop.automatic_optimization.optim_progress.optimizer.step.total
        schedules = loop.scheduler_progress.total
        is_complete = steps.ready == steps.completed and schedules.ready == schedules.completed
        return is_complete and batches.ready == batches.processed and not loop._should_accumulate()

    def _loaders(self) -> list[Any]:
        loader = self.trainer.fit_loop._combined_loader
        return [] if loader is None else loader.flattened

    def _can_restore_loaders(self) -> bool:
        """Whether each loader's position can be restored. That of another stateful loader cannot: to copy it at each
        step may be slow.
        """
        return all(isinstance(x, TrainLoader) or not hasattr(x, "state_dict") for x in self._loaders())

    def _versions(self) -> list[tuple[int, int]]:
        """Identity and version of each buffer. They differ after any change: a forward pass may change buffers."""
        buffers = [module_buffers[name] for module_buffers, name in self._buffers]
        return [(id(buffer), buffer._version) for buffer in buffers if buffer is not None]


def _progress_of(loop: Any) -> list[Any]:
    """All progress counters of a loop and of the loops in it."""
    inner = [value for value in vars(loop).values() if isinstance(value, _Loop | _BaseProgress)]
    own = [loop] if isinstance(loop, _BaseProgress) else []
    return [*own, *(counter for value in inner for counter in _progress_of(value))]
