"""What callbacks and loggers of `fit` cost, in shares of a step of configs/char.yaml, on and off in turn in one run.

    python -m benchmarks.callbacks [--pairs 20] [--steps 10] [--threads 1] [--record]

`steps` steps are done with all callbacks and loggers, the next ones without, and so on: the share is the median over
pairs of neighbours. What callbacks do after a validation (samples, charts, checkpoints) is timed apart, as a share of
the 200 steps between two validations. Seconds are of this process's CPU, which other processes disturb least. The last
line is JSON.
"""

import contextlib
import importlib
import statistics
import sys
import tempfile
import time
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks import report
from lit_gpt.cli.lightning_cli import run

LIMIT = 0.03
#: Steps between two validations in configs/char.yaml.
INTERVAL = 200


class OnAndOff(Callback):
    """Removes callbacks and loggers for every second span of steps, and notes the seconds of a step in each span."""

    steps: ClassVar[int] = 10
    spans: ClassVar[list[float]] = []
    after_validation: ClassVar[list[float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what there is to remove. The network's own hook comes after those of all callbacks."""
        self.all = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
        self.start = 0.0
        pl_module.on_validation_end = self._after_validation  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a span."""
        if trainer.global_step % self.steps:
            return
        now = time.process_time()
        if trainer.global_step > 2 * self.steps:  # the first two spans warm up
            OnAndOff.spans.append((now - self.start) / self.steps)
        self.is_on = on = trainer.global_step // self.steps % 2 == 1
        trainer.callbacks, trainer.loggers = self.all if on else ([self], [])  # type: ignore[attr-defined]
        self.start = time.process_time()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the span."""
        self.paused = time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of what follows a validation. This callback is the first."""
        self.validated = time.process_time()

    def _after_validation(self) -> None:
        now = time.process_time()
        self.start += now - self.paused
        if self.is_on:
            OnAndOff.after_validation.append(now - self.validated)


def measure(pairs: int, steps: int) -> dict[str, Any]:
    """Seconds of each span, on and off, and after each validation that was on."""
    timer = importlib.import_module("benchmarks.callbacks").OnAndOff  # which fit imports; this file may be __main__
    timer.steps, timer.spans, timer.after_validation = steps, [], []
    flags = [
        "--config=configs/char.yaml",
        "--trainer.accelerator=cpu",
        f"--trainer.max_steps={2 * steps * (pairs + 1) + 1}",
        f"--trainer.val_check_interval={6 * steps}",
    ]
    flags += ["--trainer.limit_val_batches=4"]
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        run("fit", [*flags, "--trainer.callbacks=[benchmarks.callbacks.OnAndOff]", f"--logs_dir={folder}"])
    return {"off": timer.spans[::2], "on": timer.spans[1::2], "after_validation": timer.after_validation}


def main() -> None:
    """Measure and print."""
    parser = report.parser(__doc__, threads=1)
    parser.add_argument("--pairs", type=report.at_least_1, default=20, help="turns with and without each callback")
    parser.add_argument("--steps", type=report.at_least_1, default=10, help="training steps of a turn")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = measure(options.pairs, options.steps)
    off = statistics.median(seconds["off"])
    steps = statistics.median(on / off - 1 for on, off in zip(seconds["on"], seconds["off"], strict=True))
    validation = statistics.median(seconds["after_validation"]) / (INTERVAL * off)
    line = f"- a step of {1000 * off:.1f} ms without callbacks and loggers: {steps:+.1%} in each step with them, "
    line += f"and {validation:.1%} after validations (mark {LIMIT:.0%} together)"
    print(line)
    report.finish("callbacks", {"steps": steps, "validation": validation, "seconds": seconds}, [line], options)


if __name__ == "__main__":
    main()
