"""Tokens per second, step time, model FLOPs utilisation, peak memory and the share of time spent waiting for data."""

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.language_model import LitLanguageModel

#: Dense peak of bfloat16, or of float16 where there is none, in FLOP/s, from the makers' data sheets; a device's name
#: contains the key.
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

    Counted are all places of a batch, padding too, over all processes. The intervals between two reports add up to the
    time of the whole loop but for validations: steps, fetching, logging and saving. The share that is waited is that
    of fetching alone.
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
        """Tokens and seconds of training so far, so that a resumed run's summary covers the whole run."""
        tokens, seconds = self.so_far()
        return {"tokens": tokens, "seconds": seconds, "validation_seconds": self.validation_seconds}

    def so_far(self) -> tuple[int, float]:
        """Tokens and seconds of training, those since the last report too."""
        return self.tokens + self._batch_tokens, self.seconds + self._since_report()

    def _since_report(self) -> float:
        return max(time.perf_counter() - self._mark - self._paused, 1e-9) if self._runs else 0.0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add to what earlier parts of the run counted."""
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self.validation_seconds = state_dict["validation_seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clear()
        self._runs = True
        self._peak = peak_flops(pl_module.device)
        self._time_fetches(trainer.fit_loop.epoch_loop)

    def _time_fetches(self, loop: Any) -> None:
        """Look at the clock before and after the loop asks for a batch; of the hooks none lies right before that, and
        what lies between two steps is logging and saving too.
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
        """Go on; what the pause took is not training."""
        pause = time.perf_counter() - self._pause_start
        self._paused += pause
        self.validation_seconds += pause

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; report when the module logs."""
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
    """Bytes: of the CUDA device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
