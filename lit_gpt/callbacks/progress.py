"""Shows the progress of a run: a live bar on a terminal, plain lines in a file, a pipe or under nohup."""

import sys
import time
from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lit_gpt.language_model import LitLanguageModel

#: Metrics that the line of an evaluation shows first, if they exist, and their format; * is the split. Other metrics of
#: the split follow, by name.
SHOWN = (
    ("*/loss", "* {:.4f}"),
    ("train_eval/loss", "train {:.4f}"),
    ("*/top1", "top-1 {:.1%}"),
    ("*/top5", "top-5 {:.1%}"),
    ("*/nats_per_char", "{:.4f} nats/char"),
    ("*/bpb", "{:.4f} bits/byte"),
)
#: Not shown: perplexity is exp(loss), and the line is long.
LEFT_OUT = ("*/perplexity",)


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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._total = _total_steps(trainer)
        self._printed_at = time.monotonic()
        # (time, step) of the last two validations, or of the start. The time left is estimated from these alone,
        # because steps may become slower at some point of a run.
        self._time_points = deque([(self._printed_at, trainer.global_step)], maxlen=2)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show the bar on a terminal, below what the other callbacks print when training starts."""
        if self._enabled and self.console.is_terminal and self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=self._total, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar four times a second, or print a line every ``every_seconds``."""
        now = time.monotonic()
        wait = 0.25 if self._bar else self.every_seconds
        if not self._enabled or now - self._printed_at < wait or trainer.fit_loop._should_accumulate():
            return
        self._printed_at = now
        line = self._line(trainer, pl_module, now)
        if self._bar:
            self._bar.update(self._task, completed=trainer.global_step, description=line)
        else:
            self.print(line)

    def _line(self, trainer: Trainer, pl_module: LightningModule, now: float) -> str:
        step, rate = trainer.global_step, trainer.callback_metrics.get("train/tokens_per_second")
        loss = trainer.callback_metrics.get("train/loss")
        if isinstance(pl_module, LitLanguageModel):
            loss = pl_module.step_loss  # of this step, whether it was logged or not
        parts = [
            f"step {step}" + (f"/{self._total}" if self._total else ""),
            "" if loss is None else f"loss {float(loss):.4f}",
            "" if rate is None else f"{float(rate):,.0f} tokens/s",
            f"{_clock(self._step_seconds(step, now) * (self._total - step))} left" if self._total else "",
        ]
        return "  ".join(part for part in parts if part)

    def _step_seconds(self, step: int, now: float) -> float:
        since, first = self._time_points[0]
        return (now - since) / (step - first)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line with the metrics of the validation."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            self._time_points.append((time.monotonic(), trainer.global_step))
        self._show_metrics(trainer)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the same line before the first step, with ``--val_at_start``."""
        self._show_metrics(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the same metrics of the test split."""
        self._show_metrics(trainer, "test")

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


def _total_steps(trainer: Trainer) -> int | None:
    steps = trainer.estimated_stepping_batches
    return int(steps) if steps != float("inf") else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
