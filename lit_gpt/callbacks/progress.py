"""Shows the progress of a run: a live bar on a terminal, plain lines in a file, a pipe or under nohup."""

import math
import sys
import time
from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from lit_gpt.language_model import LitLanguageModel

#: Metrics that the line of an evaluation shows first, if they exist, and their format; * is the split. Other metrics of
#: the split follow, by name.
SHOWN = (
    ("*/loss", "* {:.4f}"),
    ("train_eval/loss", "train {:.4f}"),
    ("*/top1", "top-1 {:.1%}"),
    ("*/top5", "top-5 {:.1%}"),
    ("*/bpb", "{:.4f} bits/byte"),
)
#: Not shown, so that the line fits 80 columns: perplexity is exp(loss), and nats per character
#: say what bits per byte say.
LEFT_OUT = ("*/perplexity", "*/nats_per_char")


class RunProgress(ProgressBar):
    """Step, loss, tokens per second and time left; a line with the metrics after each validation.

    Args:
        every_seconds: Least time between two lines, if stdout is no terminal.
    """

    def __init__(self, every_seconds: float = 10.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self.console = Console(soft_wrap=True)
        self._enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._printed_at = 0.0
        self._time = TimeLeft()

    def disable(self) -> None:
        """Show nothing. Lightning calls it on all ranks but 0."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self.console.print(*args, markup=False, highlight=False, **kwargs)
            sys.stdout.flush()

    # ---- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._printed_at = time.monotonic()
        self._time = TimeLeft(_total_steps(trainer), trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show the bar on a terminal, below what the other callbacks print when training starts."""
        self._start("starting", self._time.total, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar four times a second, or print a line every ``every_seconds``."""
        if not trainer.fit_loop._should_accumulate() and self._is_due():
            rate, loss = (trainer.callback_metrics.get(f"train/{name}") for name in ("tokens_per_second", "loss"))
            if isinstance(pl_module, LitLanguageModel):
                loss = pl_module.step_loss  # of this step, whether it was logged or not
            parts = [
                self._step(trainer),
                "" if loss is None else f"loss {float(loss):.4f}",
                "" if rate is None else f"{float(rate):,.0f} tokens/s",
            ]
            self._show(parts, self._time.left(trainer), trainer.global_step)

    def _step(self, trainer: Trainer) -> str:
        return f"step {trainer.global_step}" + (f"/{self._time.total}" if self._time.total else "")

    # ---- evaluation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the validation."""
        self._begin_evaluation(trainer, "validating")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the test."""
        self._begin_evaluation(trainer, "testing")

    def _begin_evaluation(self, trainer: Trainer, verb: str) -> None:
        self._time.begin_validation()
        if not _is_training(trainer):
            self._printed_at = time.monotonic()
            self._start(verb, 1.0, 0)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *loader: int
    ) -> None:
        """Show the share of the batches that are done, as `on_train_batch_end` shows steps."""
        counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._show_evaluation(trainer, "validating", counts, batch_idx, *loader)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *loader: int
    ) -> None:
        """As in a validation."""
        self._show_evaluation(trainer, "testing", trainer.num_test_batches, batch_idx, *loader)

    def _show_evaluation(self, trainer: Trainer, verb: str, counts: Any, batch_idx: int, loader: int = 0) -> None:
        self._time.share = (sum(counts[:loader]) + batch_idx + 1) / max(1, sum(counts))  # 0 if a length is not known
        if self._is_due():
            in_training = _is_training(trainer)
            share = f" {100 * self._time.share:.0f} %" if self._time.share else ""
            left = self._time.left(trainer) if in_training else self._time.validation_left()
            step = self._step(trainer) if in_training else ""
            self._show([step, verb + share], left, trainer.global_step if in_training else self._time.share)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line with the metrics of the validation."""
        if _is_training(trainer):
            self._time.end_validation(trainer.global_step)
        else:
            self._stop()
        if not trainer.sanity_checking:
            self._show_metrics(trainer)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the same line before the first step, with ``--val_at_start``."""
        self._show_metrics(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the same metrics of the test split."""
        self._stop()
        self._show_metrics(trainer, "test")

    # ---- what is shown

    def _is_due(self) -> bool:
        now = time.monotonic()
        due = self._enabled and now - self._printed_at >= (0.25 if self._bar else self.every_seconds)
        if due:
            self._printed_at = now
        return due

    def _show(self, parts: list[str], left: float | None, completed: float) -> None:
        line = "  ".join(part for part in (*parts, "" if left is None else f"{_clock(left)} left") if part)
        if self._bar:
            self._bar.update(self._task, completed=completed, description=line)
        else:
            self.print(line)

    def _start(self, text: str, total: float | None, completed: int) -> None:
        """Show the bar, on a terminal. The text has the space that it needs, and the bar what is left of a line."""
        if self._enabled and self.console.is_terminal and self._bar is None:
            description = TextColumn("{task.description}", table_column=Column(no_wrap=True))
            bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
            percentage = TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True))
            columns = description, bar, percentage
            self._bar = Progress(*columns, console=self.console, transient=True, expand=True, refresh_per_second=4)
            self._task = self._bar.add_task(text, total=total, completed=completed)
            self._bar.start()

    def _show_metrics(self, trainer: Trainer, split: str = "val") -> None:
        metrics = trainer.callback_metrics
        forms = {name.replace("*", split): form.replace("*", split) for name, form in SHOWN}
        known = [*forms, *(name.replace("*", split) for name in LEFT_OUT)]
        others = [name for name in metrics if name.startswith(f"{split}/") and name not in known]
        forms |= {name: f"{name.partition('/')[2]} {{:.4f}}" for name in others}
        shown = [form.format(float(metrics[name])) for name, form in forms.items() if name in metrics]
        if trainer.state.fn == "fit":
            shown.insert(0, f"step {trainer.global_step}")
        self.print("  ".join(shown))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar, so that the terminal is clean for the error message."""
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


class TimeLeft:
    """Estimates the time that is left of a run: its steps, the current validation and those to come.

    Args:
        total: Number of steps of the run. None: it has no end.
        step: The step at which training starts.
    """

    def __init__(self, total: int | None = None, step: int = 0) -> None:
        self.total = total
        self.share = 0.0  # of the current validation
        self._validation: float | None = None  # when it began; None in training
        self._validation_seconds: float | None = None  # of the last one
        # (time, step) at the end of the last two validations, or at the start, and the seconds of the validations
        # since the first of them. Steps may become slower at some point of a run.
        self._points = deque([(time.monotonic(), step, 0.0)], maxlen=2)

    def begin_validation(self) -> None:
        """Note that a validation begins."""
        self._validation, self.share = time.monotonic(), 0.0

    def end_validation(self, step: int) -> None:
        """Note that it ends."""
        if self._validation is not None:
            now = time.monotonic()
            self._validation_seconds = now - self._validation
            self._validation = None
            self._points.append((now, step, self._validation_seconds))

    def validation_left(self) -> float | None:
        """Seconds of the current validation that are left. None: not known."""
        if self._validation is None or not self.share:
            return None
        return (time.monotonic() - self._validation) * (1 / self.share - 1)

    def left(self, trainer: Trainer) -> float | None:
        """Seconds of the run that are left. None: not known."""
        if not self.total:
            return None
        step = trainer.global_step
        seconds = self._step_seconds(step)
        validation = self._validation_seconds or _assumed_validation_seconds(trainer, seconds)
        if (current := self.validation_left()) is not None:
            validation = current / (1 - self.share) if self.share < 1 else validation
        validations = _validations_left(trainer, self.total) - (self._validation is not None)
        return seconds * (self.total - step) + validation * validations + (current or 0.0)

    def _step_seconds(self, step: int) -> float:
        since, first, _ = self._points[0]
        now = time.monotonic() if self._validation is None else self._validation
        paused = self._points[1][2] if len(self._points) > 1 else 0.0
        return (now - since - paused) / max(1, step - first)


def _assumed_validation_seconds(trainer: Trainer, step_seconds: float) -> float:
    """Seconds of a validation before there was one: a batch takes a third of the time of a batch of training, which
    has a backward pass as well.
    """
    batches = sum(trainer.num_val_batches) if trainer.enable_validation else 0
    return 0.0 if batches == math.inf else batches * step_seconds / trainer.accumulate_grad_batches / 3


def _validations_left(trainer: Trainer, total: int) -> int:
    """Number of validations that begin after the update of this step: those of the interval, and of the last step."""
    if not trainer.enable_validation:
        return 0
    batches = trainer.val_check_batch or math.inf  # None: by the clock
    every = batches / trainer.accumulate_grad_batches * (trainer.check_val_every_n_epoch or 1)
    return max(1, math.ceil(total / every)) - int(max(0, trainer.global_step - 1) // every)


def _is_training(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _total_steps(trainer: Trainer) -> int | None:
    steps = trainer.estimated_stepping_batches
    return int(steps) if steps != math.inf else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
