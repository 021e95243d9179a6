"""Tokens per second, step time, model FLOPs utilisation, peak memory and the share of time spent waiting for data."""

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.language_model import LitLanguageModel

#: Peak FLOP/s of dense bfloat16 matmuls (float16 on GPUs without bfloat16), from the makers' data sheets. A key is a
#: part of the device's name.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of a CUDA device at 16 bits, or None for a device that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


class Throughput(Callback):
    """Logs ``train/tokens_per_second``, ``train/step_seconds``, ``train/data_wait``, ``train/mfu`` and
    ``train/peak_memory_gb``.

    Tokens are all positions of the batches of all processes, padding included. The time is that of the training loop
    without validations: steps, fetching, logging and saving. ``train/data_wait`` is the share of fetching in it.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = self.validation_seconds = 0.0
        self.tokens_per_second: float | None = None
        self._runs = False
        self._clear()

    def _clear(self, now: float | None = None) -> None:
        self._mark = time.perf_counter() if now is None else now
        self._paused = self._waited = self._flops = 0.0
        self._steps = self._batch_tokens = 0

    def state_dict(self) -> dict[str, Any]:
        """Tokens and seconds of training so far, so that a resumed run's summary covers all of the run."""
        tokens, seconds = self.so_far()
        return {"tokens": tokens, "seconds": seconds, "validation_seconds": self.validation_seconds}

    def so_far(self) -> tuple[int, float]:
        """Tokens and seconds of training, including those since the last report."""
        return self.tokens + self._batch_tokens, self.seconds + self._since_report()

    def _since_report(self) -> float:
        return max(time.perf_counter() - self._mark - self._paused, 1e-9) if self._runs else 0.0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of the run that is resumed."""
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self.validation_seconds = state_dict["validation_seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clear()
        self._runs = True
        self._peak = peak_flops(pl_module.device)
        self._time_fetches(trainer.fit_loop.epoch_loop)

    def _time_fetches(self, loop: Any) -> None:
        """Measure the time that the loop waits for a batch.

        No hook of Lightning is called right before a fetch, and the time between two steps includes logging and saving.
        So two methods of the loop are wrapped.
        """
        before, after = type(loop)._on_before_fetch, type(loop)._on_after_fetch

        def begin() -> None:
            before(loop)
            self._fetch_start = time.perf_counter()

        def end() -> None:
            self._waited += time.perf_counter() - self._fetch_start
            after(loop)

        loop._on_before_fetch, loop._on_after_fetch = begin, end

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again. The validation is not training time."""
        pause = time.perf_counter() - self._pause_start
        self._paused += pause
        self.validation_seconds += pause

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count tokens, and report at the steps at which the module logs."""
        if isinstance(batch, dict) and "input_ids" in batch:  # another module's batches may be of any kind
            tokens = batch["input_ids"].numel() * trainer.world_size
            self._batch_tokens += tokens
            if self._peak and isinstance(pl_module, LitLanguageModel):
                self._flops += tokens * pl_module.flops_per_token(batch["input_ids"].size(1))
        if trainer.fit_loop._should_accumulate():
            return
        self._steps += 1
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            self._report(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the steps after the last report, and stop the clock."""
        self._add_up()
        self._clear()
        self._runs = False

    def _add_up(self) -> float:
        seconds = self._since_report()
        self.tokens += self._batch_tokens
        self.seconds += seconds
        return seconds

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = self._add_up()
        rate = self._batch_tokens / seconds
        self.tokens_per_second = rate
        values: dict[str, float | None] = {
            "train/tokens_per_second": rate,
            "train/step_seconds": seconds / self._steps,
            "train/data_wait": self._waited / seconds,
            "train/peak_memory_gb": _peak_memory(pl_module.device) / 1e9,
        }
        if self._peak and self._flops:
            values["train/mfu"] = self._flops / seconds / (self._peak * trainer.world_size)
        self._clear(self._mark + self._paused + seconds)  # the next interval begins where this one ended
        if isinstance(pl_module, LitLanguageModel):
            pl_module.log_now(values, trainer.global_step)


def _peak_memory(device: torch.device) -> int:
    """Peak memory in bytes, of the CUDA device or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
