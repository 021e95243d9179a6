"""Saves best.ckpt, last.ckpt and a file every N steps, each so that the run can be resumed exactly.

Lightning's ModelCheckpoint saves before a validation that is due at the same step, and a resume loses that validation.
After a resume with accumulation it saves in the middle of a step and replaces the file that it resumed from. Here every
save waits for a boundary: the optimizer step is done, and its validation too.
"""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from datamodules.errors import UserError, check_at_least
from datamodules.files import write_atomically
from lit_gpt.averaging import may_be_swapped
from lit_gpt.bounds import is_out_of_memory
from lit_gpt.callbacks.agreed_stop import AgreedStop
from lit_gpt.callbacks.boundary import StepEnd
from lit_gpt.callbacks.requeue import requeue_if_asked
from lit_gpt.callbacks.signals import Interrupted, Signals
from lit_gpt.callbacks.validations import Validations
from lit_gpt.integrity import check_intact, is_intact, set_aside, step_of


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file beside the target, flushes and renames it, so that a kill leaves the previous file
    intact.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save ``checkpoint`` to ``path``."""
        write_atomically(path, lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Read a file after a check of its checksums. A file at a URL is not checked."""
        if "://" not in str(path):
            check_intact(Path(path))
        return super().load_checkpoint(path, *args, **options)


class RunCheckpoints(Checkpoint):
    """Saves ``best.ckpt``, ``last.ckpt`` and, on request, a file every N steps or epochs.

    Args:
        monitor: Metric that decides which checkpoint (and in summary.json which validation) is the best. null saves
            last.ckpt only.
        mode: Whether the smallest or the largest value is the best.
        every_n_steps: Save last.ckpt every N optimizer steps (and at every validation, at the end, and on Ctrl-C or
            SIGTERM).
        keep_every_n_steps: Also keep step_N.ckpt every N steps; null keeps none.
        keep_every_n_epochs: Also keep epoch_N.ckpt every N epochs; null keeps none.
    """

    def __init__(
        self,
        monitor: str | None = "val/loss",
        mode: Literal["min", "max"] = "min",
        every_n_steps: int = 500,
        keep_every_n_steps: int | None = None,
        keep_every_n_epochs: int | None = None,
    ) -> None:
        for name, every in (
            ("every_n_steps", every_n_steps),
            ("keep_every_n_steps", keep_every_n_steps),
            ("keep_every_n_epochs", keep_every_n_epochs),
        ):
            check_at_least(1, f"checkpoint.{name}", every)
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.every_n_steps = every_n_steps
        self.keep_every_n_steps = keep_every_n_steps
        self.keep_every_n_epochs = keep_every_n_epochs
        self.best: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.after_save: list[Callable[[], None]] = []
        self.folder = Path("checkpoints")
        self._replaced: float | None = None  # step of the best checkpoint before this one
        self._names: list[str] = []  # the other names of the file that is saved at this step
        self._validated = self._owed = self._stop_is_due = False
        self._saved_step = -1
        self._signals = Signals()
        self._end: StepEnd | None = None

    def state_dict(self) -> dict[str, Any]:
        """Step and metrics of the best and of the latest validation, and the other names of the file."""
        metrics = {"best": self.best, "replaced": self._replaced, "latest": self.latest}
        return metrics | {"names": self._names, "validated": self._validated, "owed": self._owed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best, self._replaced, self.latest = (state_dict[key] for key in ("best", "replaced", "latest"))
        self._names, self._validated, self._owed = (state_dict[key] for key in ("names", "validated", "owed"))

    @property
    def best_value(self) -> float | None:
        """The monitored metric at the best validation so far, None before the first."""
        return self.best.get(str(self.monitor))

    @property
    def owed(self) -> bool:
        """Whether the run begins with a validation that was due at the step that is resumed."""
        return self._owed

    @property
    def best_model_path(self) -> str:
        """The path of the best checkpoint, for Lightning's ``ckpt_path="best"``."""
        return str(self.folder / "best.ckpt")

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """Set by Lightning in the process that forked the others."""
        self.folder = Path(path).parent

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        self._saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tidy the folder of a resumed run, and listen for Ctrl-C, SIGTERM and SIGHUP."""
        self._saved_step, self._stop_is_due = trainer.global_step, False
        self._tidy_folder(trainer)
        if not trainer.strategy.broadcast((self.folder / "best.ckpt").is_file()):
            self.best = {}  # the best is a file of another folder, or of steps that this run does not have
        self._signals.listen(trainer)
        self._stop = AgreedStop(trainer, pl_module, self._signals)
        self._validations = Validations(trainer, self._validated, self._owed)
        self._end = StepEnd(trainer, pl_module) if trainer.world_size == 1 else None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tidy the folder of a run that was killed at its end and has nothing left to train."""
        if self._saved_step < 0:
            self._tidy_folder(trainer)

    def _tidy_folder(self, trainer: Trainer) -> None:
        if trainer.ckpt_path and trainer.is_global_zero:
            self._rename_other_branch(Path(trainer.ckpt_path), trainer.global_step)

    def _rename_other_branch(self, resumed: Path, step: int) -> None:
        """Rename best.ckpt and last.ckpt to step_N.ckpt if they hold steps after the one that is resumed.

        A run that resumes from an earlier file begins another branch, and best.ckpt and last.ckpt must be of that one.
        If the run was killed after it saved a file and before it linked the other names, they are linked now.
        """
        for name, run_step in (("best.ckpt", self.best.get("step")), ("last.ckpt", step)):
            path = self.folder / name
            file_step = step_of(path)
            replaced = name == "best.ckpt" and run_step == step and file_step == self._replaced
            if path.exists() and file_step != run_step and not is_intact(path):
                set_aside(path)
            elif file_step not in (None, run_step) and not replaced:
                os.replace(path, self.folder / f"step_{file_step:06d}.ckpt")
                path.unlink(missing_ok=True)  # os.replace does nothing if both are names of one file
        if resumed.resolve().parent == self.folder.resolve():
            for name in ("last.ckpt", *self._names):
                if not (self.folder / name).exists() or (name == "best.ckpt" and step_of(self.folder / name) != step):
                    _link(resumed, self.folder / name)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Forget the end of the last step: the update begins to change the weights."""
        if self._end:
            self._end.forget()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Handle a boundary, unless micro-batches or a validation of this step are still to come."""
        if trainer.fit_loop._should_accumulate():
            if trainer.should_stop:  # --trainer.max_time may stop between two micro-batches: finish the step first
                trainer.should_stop, self._stop_is_due = False, True
            return
        if self._stop.time_is_up() or self._stop_is_due:
            trainer.should_stop = True
        self._validated, self._names = False, []
        if not self._validations.due():
            self._at_boundary(trainer)
            return
        self._validations.before()
        if self._end:
            self._end.note(owed=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle a boundary with a new value of the monitored metric.

        A validation by the clock may fall inside a step. Then there is no boundary.
        """
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fit_loop._should_accumulate():
            self._validations.after()
            # a file that was saved at this step lacks the validation: save it again
            self._validated, self._saved_step = True, -1
            self._at_boundary(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the last step of a run that was stopped at the end of an epoch."""
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        if stops and trainer.enable_validation and self.latest.get("step") != trainer.global_step:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run, and restore the signal handlers."""
        self._renew_last(trainer)
        self._signals.restore_handlers()
        self._end = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the end of the last step, if it can still be restored, and restore the signal handlers.

        An error on the way is ignored, so that the user sees the first exception.
        """
        if self._end and isinstance(exception, Exception) and not may_be_swapped(trainer):
            with suppress(Exception):
                # With too little memory the same command would fail again; the error says what to add to it.
                self._save_last_step(trainer, self._end, advise=not is_out_of_memory(exception))
        self._signals.restore_handlers()
        self._end = None

    def _save_last_step(self, trainer: Trainer, end: StepEnd, advise: bool) -> None:
        if not end.go_back():
            if not end.is_step_end():
                return
            # another callback failed before this one was called
            self._validated, end.owed = False, self._validations.due()
        self._owed = end.owed and self.latest.get("step") != trainer.global_step
        if trainer.global_step != self._saved_step:
            self._names = self._due_names(trainer)
            self._renew_last(trainer)
            self._link_names(trainer)
            self._print_saved(trainer, advise)

    def _at_boundary(self, trainer: Trainer) -> None:
        if self._validated and self.monitor not in (None, *trainer.callback_metrics):
            self._renew_last(trainer)
            raise self._unknown_monitor(trainer)
        stop = self._stop.is_signalled()
        if self._validated:
            self.record_validation(trainer)
        self._owed, self._names = False, self._due_names(trainer)
        due = trainer.global_step % self.every_n_steps == 0 or self._validations.is_last_step()
        if self._validated or stop or due or self._names:
            # Not in on_train_end. By then Lightning counts the epoch as done, and a longer run could not continue it.
            self._renew_last(trainer)
            self._link_names(trainer)
        if self._end:
            self._end.note(owed=False)
        if stop:
            self._exit(trainer)

    def _due_names(self, trainer: Trainer) -> list[str]:
        """The other names of the file that is saved at this step."""
        step, epoch = trainer.global_step, trainer.current_epoch + 1
        is_epoch_end = trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        steps, epochs = self.keep_every_n_steps, self.keep_every_n_epochs
        names = {
            "best.ckpt": self.best.get("step") == step,
            f"step_{step:06d}.ckpt": steps and step % steps == 0,
            f"epoch_{epoch:04d}.ckpt": epochs and epoch % epochs == 0 and is_epoch_end,
        }
        return [name for name, due in names.items() if due]

    def record_validation(self, trainer: Trainer) -> None:
        """Store the metrics of the validation at this step as the latest, and as the best if they are.

        It may be called twice at a step: by RunSummary, which Lightning calls first, and by this callback.
        """
        metrics = {name: float(metric) for name, metric in sorted(trainer.callback_metrics.items())}
        self.latest = {"step": trainer.global_step, **metrics}
        value = metrics.get(str(self.monitor), math.nan)
        if math.isfinite(value) and (self.best_value is None or self.sign * value < self.sign * self.best_value):
            self._replaced, self.best = self.best.get("step"), self.latest

    def _unknown_monitor(self, trainer: Trainer) -> UserError:
        names = ", ".join(sorted(trainer.callback_metrics))
        advice = f"use one of {names}, or null" if names else "set it to null"
        return UserError(f"checkpoint.monitor {self.monitor!r} is no metric of this run: {advice}.")

    def _renew_last(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved_step:
            for logger in trainer.loggers:
                logger.save()
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self._saved_step = trainer.global_step
            for callback in self.after_save:
                callback()

    def _link_names(self, trainer: Trainer) -> None:
        """Give last.ckpt its other names, as hard links. That is safe, because files are replaced and never changed."""
        linked = self._link_all(self._names) if trainer.is_global_zero else None
        if trainer.strategy.broadcast(linked) is False:  # all ranks save, as they gather their random states
            self._saved_step = -1
            self._renew_last(trainer)
            if trainer.is_global_zero:
                self._link_all(self._names)

    def _link_all(self, names: list[str]) -> bool:
        """Whether that was done. It is not if the folder was moved or deleted since the file was saved."""
        try:
            for name in names:
                _link(self.folder / "last.ckpt", self.folder / name)
        except FileNotFoundError:
            return False
        return True

    def _exit(self, trainer: Trainer) -> None:
        number = self._stop.signal()
        self._print_saved(trainer)
        requeue_if_asked(trainer, number)
        raise Interrupted(number)

    def _print_saved(self, trainer: Trainer, advise: bool = True) -> None:
        if trainer.is_global_zero:
            print(f"saved step {trainer.global_step} to {self.folder / 'last.ckpt'}", flush=True)
            if advise:
                print("to resume: the same command with --resume auto", flush=True)


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.link.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        write_atomically(target, lambda file: file.write(source.read_bytes()))
