"""Which steps are validated: those of the interval, and always the last of a run."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loops.evaluation_loop import RestartStage


class Validations:
    """Answers for Lightning whether a validation follows this micro-batch.

    Args:
        trainer: A Trainer that begins to train.
        done: The state that it goes on from was saved after the validation of its step.
        owed: A validation was due at that step and failed, so the run begins with it.
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
        if self._loop.restarting and self._loop.val_loop.restarting:  # nothing trained yet; Lightning skips one done
            return self._resumes_with
        regular = self._by_interval(fetcher)
        last = self.trainer.enable_validation and not self._loop._should_accumulate() and self.is_last_step()
        return regular or last

    def _by_interval(self, fetcher: Any) -> bool:
        asked, self.trainer.should_stop = self.trainer.should_stop, False  # on which Lightning validates too
        try:
            return type(self._loop)._should_check_val_fx(self._loop, fetcher)
        finally:
            self.trainer.should_stop = asked

    def is_last_step(self) -> bool:
        """Whether the run ends after this step: by steps, epochs, or because something asked it to stop."""
        trainer, fit = self.trainer, self.trainer.fit_loop
        epochs = fit.epoch_progress.current.processed + 1  # type: ignore[attr-defined]
        last_batch = self._loop._num_ready_batches_reached() and epochs == trainer.max_epochs
        return trainer.global_step == trainer.max_steps or last_batch or (trainer.should_stop and fit._can_stop_early)

    def _start_over(self) -> None:
        """Let Lightning take the validation for one that was broken off, and begin it from its first batch."""
        self._loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
        self._loop.val_loop.batch_progress.current.reset()
        self._loop._batches_that_stepped -= 1  # counted again after the validation

    # ---- a validation beyond the interval must not change a run that is made longer later

    def before(self) -> None:
        """Keep what early stopping has counted, where the validation is one that only the end brings."""
        regular = self._by_interval(self.trainer.fit_loop._data_fetcher)
        callbacks = [] if regular else self.trainer.callbacks  # type: ignore[attr-defined]
        self._stoppers = [(one, one.state_dict()) for one in callbacks if isinstance(one, EarlyStopping)]

    def after(self) -> None:
        """Let early stopping forget such a validation: its patience counts those of the interval."""
        for stopper, state in self._stoppers:
            stopper.load_state_dict(state)
        self._stoppers = []
