"""The short runs of doctor: one that is recorded, its continuation from a checkpoint, and evaluations."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lit_gpt.callbacks.resume import ExactResume
from lit_gpt.diagnostics.result import AT_START, Result
from lit_gpt.diagnostics.subject import ROWS, Batch, Subject

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
        options: Options of the Trainer. ``whole_steps``: the steps of the whole run, where ``build`` makes a small one.
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


class Examination(Callback):
    """Examines a module at the start of its training, and records the run.

    Attributes:
        subject: What is examined, once training has begun.
        results: Of the checks at the start.
    """

    def __init__(self, setup: Setup, folder: Path, checks: list[Any]) -> None:
        self.setup_, self.folder, self.checks = setup, folder, checks
        self.subject: Subject | None = None
        self.results: list[Result] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the checks of a fresh module."""
        self.subject = subject = Subject(trainer, pl_module, self.setup_.options)
        subject.run = self.record = Record(self.setup_, self.folder, subject)
        self.results = [check(subject) for check in AT_START if check in self.checks]
        self.record.begin()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the batch was there."""
        self.record.batch_arrived()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the step was done, and save the middle one."""
        self.record.step_done(trainer, batch)


@dataclass
class Evaluation:
    """What an evaluation gave: metrics, its batches, and the modules that were in train mode."""

    metrics: dict[str, float]
    batches: list[Batch]
    training: set[str]


class Watch(Callback):
    """Notes the batches of an evaluation, and every module that runs in train mode during it."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.training: set[str] = set()
        self.hooks: list[Any] = []

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

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *loader: int
    ) -> None:
        """Keep the batch of the first loader."""
        if not any(loader):
            self.batches.append(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching."""
        for hook in self.hooks:
            hook.remove()


class Record:
    """What a short run did, and what can be asked of it afterwards.

    Attributes:
        initial: All tensors before the run.
        final: All tensors after it.
        saved: The checkpoint of the middle of the run, None if there is none.
    """

    def __init__(self, setup: Setup, folder: Path, subject: Subject) -> None:
        self.setup, self.folder, self.subject = setup, folder, subject
        self.initial, self.final = dict[str, Tensor](), dict[str, Tensor]()
        self.step_seconds, self.wait_seconds = list[float](), list[float]()
        self.saved: Path | None = None
        self.steps = self.saved_step = self.targets_per_batch = 0
        self.first_val = self.last_val = self.loss_at_save = float("nan")
        self._clock = time.perf_counter()

    def begin(self) -> None:
        """The run begins now."""
        self.initial = self._state()
        self.val_batch = self._validation_batch()
        self.first_val = self._loss()
        self._clock = time.perf_counter()

    def batch_arrived(self) -> None:
        """The data of a step is there."""
        now = time.perf_counter()
        self.wait_seconds.append(now - self._clock)
        self._clock = now

    def step_done(self, trainer: Trainer, batch: Batch) -> None:
        """A step, or one micro-batch of it, is done."""
        self.targets_per_batch = batch["targets"].numel()
        self.step_seconds.append(time.perf_counter() - self._clock)
        self.steps = trainer.global_step
        if self.saved is None and self.steps == max(1, int(trainer.max_steps) // 2):
            self.saved, self.saved_step = self.folder / "half.ckpt", self.steps
            trainer.save_checkpoint(self.saved)
            self.loss_at_save = self._loss()
        self._clock = time.perf_counter()

    def end(self) -> None:
        """The run is over."""
        self.final, self.last_val = self._state(), self._loss()

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.subject.module.state_dict().items()}

    def _validation_batch(self) -> Batch:
        """Some rows of validation; of training, where there is no validation."""
        try:
            loader: Any = self.subject.data.val_dataloader()
            loader = loader[0] if isinstance(loader, list | tuple) else loader
            batch = next(islice(loader, 1))
        except Exception:  # Lightning's own, where a datamodule has none
            batch = self.subject.batches[-1]
        return {name: value[: 2 * ROWS].to(self.subject.module.device) for name, value in batch.items()}

    def _loss(self) -> float:
        with self.subject.untouched(), torch.no_grad():
            return float(self.subject.loss(self.val_batch))

    @cached_property
    def evaluation(self) -> Evaluation:
        """An evaluation of the final weights."""
        return self.evaluate()

    def evaluate(self, state: dict[str, Tensor] | None = None) -> Evaluation:
        """An evaluation of the final weights, or of others, by ``Trainer.validate``."""
        module = self.subject.module
        module.load_state_dict(state or self.final)
        watch, trainer = Watch(), self.subject.trainer
        try:
            logged = self.setup.trainer(self.folder, watch).validate(module, self.subject.data, verbose=False)
        finally:
            module.load_state_dict(self.final)
            module.trainer = self.subject.data.trainer = trainer
        metrics = {name: float(value) for metrics in logged for name, value in metrics.items()}
        return Evaluation(metrics, watch.batches, watch.training)

    def resumed(self) -> dict[str, Tensor]:
        """All tensors at the end of another run that resumes from the checkpoint."""
        module, data = self.setup.objects()
        trainer = self.setup.trainer(self.folder, ExactResume())
        trainer.fit(module, data, ckpt_path=self.saved, weights_only=False)
        return module.state_dict()

    def loaded_loss(self) -> float:
        """The loss of the weights in the checkpoint, read into the module as it is at its start."""
        assert self.saved is not None
        stored = torch.load(self.saved, map_location=self.subject.module.device, weights_only=False)["state_dict"]
        module = self.subject.module
        try:
            module.load_state_dict(self.initial)
            module.load_state_dict(stored)
            return self._loss()
        finally:
            module.load_state_dict(self.final)
