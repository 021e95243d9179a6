"""Decides which steps are validated: those of the interval, and always the last step of a run."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loops.evaluation_loop import RestartStage


class Validations:
    """Replaces Lightning's decision whether a validation follows a micro-batch.

    Args:
        trainer: The Trainer, as training begins.
        done: Whether the checkpoint that is resumed was saved after the validation of its step.
        owed: Whether a validation was due at that step and was not done. The run then begins with it.
    """

    def __init__(self, trainer: Trainer, done: bool, owed: bool) -> None:
        self.trainer = trainer
        self._loop = trainer.fit_loop.epoch_loop
        self._resumes_with = done or owed
        self._stoppers: list[tuple[EarlyStopping, dict[str, Any]]] = []
        self._loop._should_check_val_fx = self._is_due  # type: ignore[method-assign, assignment]
        if owed:
            self._start_over()

    def due(self) -> bool:
        """Whether a validation follows the micro-batch that was just trained on."""
        return self.trainer.enable_validation and self._is_due(self.trainer.fit_loop._data_fetcher)

    def _is_due(self, fetcher: Any) -> bool:
        # before the first batch; Lightning skips a validation that was done
        if self._loop.restarting and self._loop.val_loop.restarting:
            return self._resumes_with
        regular = self._by_interval(fetcher)
        last = self.trainer.enable_validation and not self._loop._should_accumulate() and self.is_last_step()
        return regular or last

    def _by_interval(self, fetcher: Any) -> bool:
        stopping, self.trainer.should_stop = self.trainer.should_stop, False  # if True, Lightning validates as well
        try:
            return type(self._loop)._should_check_val_fx(self._loop, fetcher)
        finally:
            self.trainer.should_stop = stopping

    def is_last_step(self) -> bool:
        """Whether the run ends after this step: by steps, epochs, or because a callback stopped it."""
        trainer, fit = self.trainer, self.trainer.fit_loop
        epochs = fit.epoch_progress.current.processed + 1  # type: ignore[attr-defined]
        last_batch = self._loop._num_ready_batches_reached() and epochs == trainer.max_epochs
        return trainer.global_step == trainer.max_steps or last_batch or (trainer.should_stop and fit._can_stop_early)

    def _start_over(self) -> None:
        """Make Lightning begin the validation again from its first batch, as if it had been interrupted."""
        self._loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
        self._loop.val_loop.batch_progress.current.reset()
        self._loop._batches_that_stepped -= 1  # counted again after the validation

    # ---- the validation of the last step must not change a run that is later made longer

    def before(self) -> None:
        """Save the state of early stopping, if the validation is due only because the run ends."""
        regular = self._by_interval(self.trainer.fit_loop._data_fetcher)
        callbacks = [] if regular else self.trainer.callbacks  # type: ignore[attr-defined]
        self._stoppers = [(x, x.state_dict()) for x in callbacks if isinstance(x, EarlyStopping)]

    def after(self) -> None:
        """Restore that state: the patience of early stopping counts only validations of the interval."""
        for stopper, state in self._stoppers:
            stopper.load_state_dict(state)
        self._stoppers = []
