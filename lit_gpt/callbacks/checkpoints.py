"""best.ckpt, last.ckpt and every N steps, each saved where a run can go on exactly; signals that save before they stop.

Lightning's ModelCheckpoint saves before a validation that is due at the same step (its value is then lost by a resume),
and after a resume with accumulation it saves in the middle of a step, over the file it came from. Here every save waits
for the boundary: the optimizer step is done, its validation too.
"""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from datamodules.errors import UserError, check_at_least
from datamodules.files import write_atomically
from lit_gpt.integrity import check_whole, is_whole, set_aside, step_of
from lit_gpt.run import rank
from lit_gpt.sync import any_process, cpu_group


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes and renames: a kill at any moment leaves the previous file whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save ``checkpoint`` to ``path``."""
        write_atomically(path, lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Read a file, once its checksums have been compared; one elsewhere than on this machine's disks as it is."""
        if "://" not in str(path):
            check_whole(Path(path))
        return super().load_checkpoint(path, *args, **options)


class Interrupted(SystemExit):
    """The run was asked to stop, has saved, and leaves with 128 + the signal's number, as shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class RunCheckpoints(Checkpoint):
    """Saves ``best.ckpt``, ``last.ckpt`` and, on request, a file every N steps or epochs.

    Args:
        monitor: Metric that decides which checkpoint, and in summary.json which validation, is the best; null keeps the
            last alone.
        mode: Whether the best is the smallest or the largest.
        every_n_steps: Renew last.ckpt every so many optimizer steps (and at every validation, at the end, and on Ctrl-C
            or SIGTERM).
        keep_every_n_steps: Keep a file of its own, step_N.ckpt, every so many steps; null keeps none.
        keep_every_n_epochs: Keep a file of its own, epoch_N.ckpt, every so many epochs; null keeps none.
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
        self.folder = Path("checkpoints")
        self._signal: int | None = None
        self._stop_is_due = False
        self._saved_step = -1
        self._group: torch.distributed.ProcessGroup | None = None

    def state_dict(self) -> dict[str, Any]:
        """The step and the metrics of the best validation so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best where the run left it."""
        self.best = state_dict["best"]

    @property
    def best_value(self) -> float | None:
        """The monitored metric at the best validation so far, None before the first."""
        return self.best.get(str(self.monitor))

    @property
    def best_model_path(self) -> str:
        """Where the best checkpoint is (Lightning's ``ckpt_path="best"`` asks)."""
        return str(self.folder / "best.ckpt")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for Ctrl-C and SIGTERM, after Lightning has set its own handlers."""
        self._saved_step, self._stop_is_due = trainer.global_step, False
        if trainer.ckpt_path and trainer.is_global_zero:
            self._leave_the_other_branch(Path(trainer.ckpt_path), trainer.global_step)
        if not trainer.strategy.broadcast((self.folder / "best.ckpt").is_file()):
            self.best = {}  # of a run in another folder, or of a branch that was left
        self._group = cpu_group(trainer.world_size)
        self._signal = None
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._handlers:
            signal.signal(number, self._remember)
        if trainer.received_sigterm:  # before this
            self._signal = signal.SIGTERM
        # Lightning asks all processes for SIGTERM at each micro-batch, where each GPU waits for its whole queue.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def _leave_the_other_branch(self, resumed: Path, step: int) -> None:
        """A run that goes on from an earlier file keeps what came after it under its steps' names, so that best.ckpt
        and last.ckpt are this run's.
        """
        for name, ours in (("best.ckpt", self.best.get("step")), ("last.ckpt", step)):
            path = self.folder / name
            theirs = step_of(path)
            if path.exists() and theirs != ours and not is_whole(path):
                set_aside(path)
            elif theirs not in (None, ours):
                os.replace(path, self.folder / f"step_{theirs:06d}.ckpt")
                path.unlink(missing_ok=True)  # to replace a name of the same file does nothing
        if resumed.resolve().parent == self.folder.resolve() and not (self.folder / "last.ckpt").exists():
            _link(resumed, self.folder / "last.ckpt")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        # A handler may interrupt a print, so it writes to the file descriptor itself.
        if rank() == 0:
            os.write(
                2, f"\n{signal.Signals(number).name}: finishing the step and saving; once more stops at once\n".encode()
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A boundary, unless micro-batches or a validation are still due at this step."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() and trainer.should_stop:  # --trainer.max_time may ask between two micro-batches
            trainer.should_stop, self._stop_is_due = False, True
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if not loop._should_accumulate() and not (trainer.enable_validation and loop._should_check_val_fx(fetcher)):
            self._at_boundary(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A boundary with a fresh value of the monitored metric, unless time has made it fall inside a step."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fit_loop._should_accumulate():
            self._at_boundary(trainer, validated=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run, and give the signals back."""
        self._renew_last(trainer)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _at_boundary(self, trainer: Trainer, validated: bool = False) -> None:
        step = trainer.global_step
        if validated and self.monitor not in (None, *trainer.callback_metrics):
            self._renew_last(trainer)
            raise self._unknown_monitor(trainer)
        stop = any_process(self._signal is not None, self._group)
        better = validated and self.remember_best(trainer)
        # Not in on_train_end: by then Lightning counts the epoch as done, and a longer run could not go on in it.
        trainer.should_stop |= self._stop_is_due
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        ends = stop or stops or step == trainer.max_steps
        if validated or ends or step % self.every_n_steps == 0:
            self._renew_last(trainer)
        if better:
            self._copy_last(trainer, "best.ckpt")
        if self.keep_every_n_steps and step % self.keep_every_n_steps == 0:
            self._keep(trainer, f"step_{step:06d}.ckpt")
        epoch, whole = trainer.current_epoch + 1, trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        if self.keep_every_n_epochs and epoch % self.keep_every_n_epochs == 0 and whole:
            self._keep(trainer, f"epoch_{epoch:04d}.ckpt")
        if stop:
            self._leave(trainer)

    def remember_best(self, trainer: Trainer) -> bool:
        """Whether the validation at this step is the run's best so far; if so, keep its metrics.

        It may be asked again at the same step: Lightning calls other callbacks before those that save.
        """
        if self.monitor is None or self.monitor not in trainer.callback_metrics:
            return False
        value = trainer.callback_metrics[self.monitor]
        if not torch.isfinite(value):
            return False
        if self.best_value is None or self.sign * float(value) < self.sign * self.best_value:
            metrics = {name: float(metric) for name, metric in sorted(trainer.callback_metrics.items())}
            self.best = {"step": trainer.global_step, **metrics}
        return bool(self.best["step"] == trainer.global_step)

    def _unknown_monitor(self, trainer: Trainer) -> UserError:
        names = ", ".join(sorted(trainer.callback_metrics))
        return UserError(f"checkpoint.monitor {self.monitor!r} is no metric of this run: use one of {names}.")

    def _renew_last(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer, "last.ckpt")
            self._saved_step = trainer.global_step

    def _save(self, trainer: Trainer, name: str) -> None:
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.folder / name)

    def _keep(self, trainer: Trainer, name: str) -> None:
        self._renew_last(trainer)
        self._copy_last(trainer, name)

    def _copy_last(self, trainer: Trainer, name: str) -> None:
        """The same file under a second name: a hard link costs nothing, and files are replaced, never changed."""
        if trainer.is_global_zero:
            _link(self.folder / "last.ckpt", self.folder / name)
        trainer.strategy.barrier()

    def _leave(self, trainer: Trainer) -> None:
        assert self._signal is not None or trainer.world_size > 1
        if trainer.is_global_zero:
            print(f"saved step {trainer.global_step} to {self.folder / 'last.ckpt'}")
            print("to go on: the same command with --resume auto", flush=True)
        raise Interrupted(self._signal or signal.SIGTERM)


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.link.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:  # a file system without hard links
        write_atomically(target, lambda file: file.write(source.read_bytes()))
