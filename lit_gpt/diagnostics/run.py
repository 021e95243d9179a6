"""The short runs of doctor: one that is recorded, its continuation from a checkpoint, and evaluations."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lit_gpt.callbacks.resume import ExactResume
from lit_gpt.diagnostics.foreign import LogitsFound
from lit_gpt.diagnostics.result import AT_START, NotApplicableError, Result
from lit_gpt.diagnostics.subject import ROWS, Subject
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.protocols import Batch

Build = Callable[[], tuple[LightningModule, LightningDataModule]]
#: Steps of the recorded run, and batches of an evaluation.
STEPS, VAL_BATCHES = 20, 4
#: Options of a Trainer that the short runs take from the configuration.
KEPT = (
    *("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"),
    *("overfit_batches", "deterministic", "use_distributed_sampler"),
)
SEED = 1337


@dataclass
class Setup:
    """A training set-up.

    Attributes:
        build: Makes a new module and its datamodule.
        options: Options of the Trainer for the whole run.
        whole: Makes the module and data of the whole run, if ``build`` makes small ones.
    """

    build: Build
    options: dict[str, Any] = field(default_factory=dict)
    whole: Build | None = None

    def objects(self) -> tuple[LightningModule, LightningDataModule]:
        """A new module and its data; always the same initial weights."""
        torch.manual_seed(SEED)
        return self.build()

    def trainer(self, folder: Path, *callbacks: Callback, **more: Any) -> Trainer:
        """A Trainer for a short run, which writes nothing."""
        kept = {name: self.options[name] for name in KEPT if self.options.get(name) is not None}
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        fixed = {"enable_model_summary": False, "devices": 1, "num_sanity_val_steps": 0, "default_root_dir": folder}
        asked = self.options.get("max_steps") or -1
        steps = min(STEPS, asked) if asked > 0 else STEPS
        run = {"max_steps": steps, "max_epochs": -1, "limit_val_batches": VAL_BATCHES}
        return Trainer(**{**run, **kept, **quiet, **fixed, **more}, callbacks=list(callbacks))


class Evaluation(Callback):
    """An evaluation, watched.

    Attributes:
        metrics: What it logged.
        batches: Its batches, of the first loader.
        nats: Of each batch, from the logits that a module which is none of ours had; None where they were not found.
        training: Names of the layers that ran in train mode.
    """

    def __init__(self) -> None:
        self.metrics = dict[str, float]()
        self.batches, self.nats = list[Batch](), list[float | None]()
        self.training, self.hooks = set[str](), list[Any]()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch every layer."""
        for name, layer in pl_module.named_modules():
            if name.split(".")[0] != "scores":  # metrics are no layers
                self.hooks.append(layer.register_forward_pre_hook(self._note(name)))

    def _note(self, name: str) -> Callable[[Any, Any], None]:
        def note(layer: Any, inputs: Any) -> None:
            if layer.training:
                self.training.add(name or type(layer).__name__)

        return note

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *loader: int
    ) -> None:
        """Look for logits from here on."""
        if not isinstance(pl_module, LitLanguageModel):
            self.mode = LogitsFound(batch["targets"].numel())
            self.mode.__enter__()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *loader: int
    ) -> None:
        """Keep the batch of the first loader."""
        if not isinstance(pl_module, LitLanguageModel):
            self.mode.__exit__(None, None, None)
        if any(loader):
            return
        self.batches.append(batch)
        if not isinstance(pl_module, LitLanguageModel):
            logits, targets = self.mode.logits(), batch["targets"].flatten()
            nats = None if logits is None else float(F.cross_entropy(logits.float(), targets, reduction="sum"))
            self.nats.append(nats)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching."""
        for hook in self.hooks:
            hook.remove()


class Examination(Callback):
    """Examines a module at the start of its training, records the run, and answers questions about it afterwards.

    Attributes:
        subject: What is examined, once training has begun.
        results: Of the checks at the start.
        initial: All tensors before the run.
        final: All tensors after it.
        saved: The checkpoint of the middle of the run, None if there is none.
        trains: Whether the module was in train mode in every step.
    """

    def __init__(self, setup: Setup, folder: Path, checks: list[Any]) -> None:
        self.of, self.folder, self.checks = setup, folder, checks
        self.subject: Subject | None = None
        self.results: list[Result] = []
        self.initial, self.final = dict[str, Tensor](), dict[str, Tensor]()
        self.step_seconds, self.wait_seconds = list[float](), list[float]()
        self.saved: Path | None = None
        self.steps = self.saved_step = self.targets_per_batch = 0
        self.trains = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the checks of a fresh module."""
        self.subject = subject = Subject(trainer, pl_module, self.of.options)
        subject.run = self
        self.results = [check(subject) for check in AT_START if check in self.checks]
        self.initial, self.device = _state(pl_module), pl_module.device.type
        self.val_batch = self._validation_batch(subject)
        self.first_val = self.loss()
        self.clock = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the batch was there."""
        self.wait_seconds.append(time.perf_counter() - self.clock)
        self.clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the step, or a micro-batch of it, was done, and save the middle one."""
        self.step_seconds.append(time.perf_counter() - self.clock)
        self.targets_per_batch, self.steps = batch["targets"].numel(), trainer.global_step
        self.trains = self.trains and pl_module.training
        if self.saved is None and self.steps == max(1, int(trainer.max_steps) // 2):
            self.saved, self.saved_step = self.folder / "half.ckpt", self.steps
            trainer.save_checkpoint(self.saved)
            self.loss_at_save = self.loss()
        self.clock = time.perf_counter()

    def end(self) -> None:
        """The run is over."""
        self.final, self.last_val = _state(self.known.module), self.loss()

    @property
    def known(self) -> Subject:
        """The subject, once training has begun."""
        assert self.subject is not None
        return self.subject

    def _validation_batch(self, subject: Subject) -> Batch:
        """Some rows of validation; of training, where there is no validation."""
        loader = subject.val_loader() if is_overridden("validation_step", subject.module) else []
        batch = next(iter(loader), None)
        self.has_validation = batch is not None
        rows = {n: v[: 2 * ROWS] for n, v in (batch or subject.batches[-1]).items() if isinstance(v, Tensor)}
        return move_data_to_device(rows, subject.module.device)

    def loss(self) -> float:
        """The loss of some rows of validation."""
        with self.known.untouched(), torch.no_grad():
            return float(self.known.loss(self.val_batch))

    @cached_property
    def evaluation(self) -> Evaluation:
        """An evaluation of the final weights."""
        return self.evaluate()

    def evaluate(self, state: dict[str, Tensor] | None = None) -> Evaluation:
        """An evaluation of the final weights, or of others, by ``Trainer.validate``."""
        if not self.has_validation:
            raise NotApplicableError("there is no validation")
        module, data = self.known.module, self.known.data
        module.load_state_dict(state or self.final)
        watch = Evaluation()
        # Inference mode hides the log_softmax inside of a cross_entropy.
        short = self.of.trainer(self.folder, watch, inference_mode=False)
        try:
            logged = short.validate(module, data, verbose=False)
        finally:
            module.load_state_dict(self.final)
            module.trainer = data.trainer = self.known.trainer
        watch.metrics = {name: float(value) for metrics in logged for name, value in metrics.items()}
        return watch

    def resumed(self) -> dict[str, Tensor]:
        """All tensors at the end of another run that resumes from the checkpoint."""
        module, data = self.of.objects()
        self.of.trainer(self.folder, ExactResume()).fit(module, data, ckpt_path=self.saved, weights_only=False)
        return _state(module)

    def loaded_loss(self) -> float:
        """The loss of the weights in the checkpoint, read into the module as it is at its start."""
        assert self.saved is not None
        module = self.known.module
        stored = torch.load(self.saved, map_location=module.device, weights_only=False)["state_dict"]
        try:
            module.load_state_dict(self.initial)
            module.load_state_dict(stored)
            return self.loss()
        finally:
            module.load_state_dict(self.final)


def _state(module: LightningModule) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
