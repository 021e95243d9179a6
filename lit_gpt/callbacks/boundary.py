"""The end of the last optimizer step, to which a run that fails in the next one can be taken back before it is saved.

Weights and optimizer are still those of that end until the next update begins. What a half-done step has changed beside
them is little and is copied at each end: Lightning's counters, the place in the data, random numbers.
"""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _BaseProgress

from datamodules.batches import TrainLoader
from lit_gpt.callbacks.resume import random_state, set_random_state


class StepEnd:
    """Notes the end of each step.

    Args:
        trainer: A Trainer that begins to train.
        module: Its module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self._loop = trainer.fit_loop.epoch_loop
        self._counters = [vars(part) for part in _progress_of(trainer.fit_loop)]
        self._buffers = [(part._buffers, name) for part in module.modules() for name in part._buffers]
        self._noted: tuple[Any, ...] | None = None
        self.owed = False

    def note(self, owed: bool) -> None:
        """The step is done and its schedules too.

        Args:
            owed: A validation of this step is still to come.
        """
        self.owed = owed
        counters = [part.copy() for part in self._counters]
        loaders = [(vars(one), vars(one).copy()) for one in self._loaders() if isinstance(one, TrainLoader)]
        self._noted = (counters, self._loop._batches_that_stepped, loaders, self._versions(), random_state())

    def forget(self) -> None:
        """The next update of the weights begins."""
        self._noted = None

    def go_back(self) -> bool:
        """Take everything back to the end that was noted. False, and nothing is changed, where a state in between is
        all that is left.
        """
        if self._noted is None or self._noted[3] != self._versions() or not self._knows_the_loaders():
            return False
        counters, self._loop._batches_that_stepped, loaders, _, random = self._noted
        for part, values in (*zip(self._counters, counters, strict=True), *loaders):
            part.update(values)
        set_random_state(random)
        return True

    def is_now(self) -> bool:
        """Whether a step has just been done as a whole and nothing of the next has begun: its end, not noted yet."""
        loop: Any = self._loop
        batches, steps = loop.batch_progress.current, loop.automatic_optimization.optim_progress.optimizer.step.total
        schedules = loop.scheduler_progress.total
        whole = steps.ready == steps.completed and schedules.ready == schedules.completed
        return whole and batches.ready == batches.processed and not loop._should_accumulate()

    def _loaders(self) -> list[Any]:
        loader = self.trainer.fit_loop._combined_loader
        return [] if loader is None else loader.flattened

    def _knows_the_loaders(self) -> bool:
        """Another loader's place in the data cannot be taken back: it may be costly to ask for at each step."""
        return all(isinstance(one, TrainLoader) or not hasattr(one, "state_dict") for one in self._loaders())

    def _versions(self) -> list[tuple[int, int]]:
        """Changes with every change of a buffer: a network may count in its forward pass."""
        buffers = [part[name] for part, name in self._buffers]
        return [(id(buffer), buffer._version) for buffer in buffers if buffer is not None]


def _progress_of(part: Any) -> list[Any]:
    """All counters inside a loop."""
    inner = [one for one in vars(part).values() if isinstance(one, _Loop | _BaseProgress)]
    own = [part] if isinstance(part, _BaseProgress) else []
    return [*own, *(found for one in inner for found in _progress_of(one))]
