"""What the checks of `lit_gpt.diagnostics.doctor` look at: a module, its data and its Trainer, and what a run gave."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn

from lit_gpt.callbacks.resume import random_state, set_random_state
from lit_gpt.diagnostics.foreign import LogitsFound, loss_of
from lit_gpt.diagnostics.result import NotApplicableError
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.protocols import Batch, TextData, check_batch, with_defaults

#: The most batches of an epoch that are read, and rows of a batch that pass through the network.
BATCHES, ROWS = 40, 4
#: From so many ids on, two rows pass through the network, as most of the time goes into their logits.
LARGE_VOCABULARY = 10_000
LOGGING = ("log", "log_dict")


class Subject:
    """A module attached to a Trainer, at the start of training, with its data.

    Attributes:
        module: The LightningModule.
        data: The datamodule after ``setup``.
        text: The same, with a default for each optional member.
        trainer: The Trainer whose run has just begun.
        options: The Trainer's options in the configuration.
        run: What the short run recorded (see `lit_gpt.diagnostics.run.Examination`), for the checks that follow it.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, options: dict[str, Any]) -> None:
        self.trainer, self.module, self.options = trainer, module, options
        self.data: LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.text: TextData = with_defaults(self.data)
        self.run: Any = None

    @property
    def own(self) -> LitLanguageModel | None:
        """The module, if it is one of lit_gpt's or a subclass."""
        return self.module if isinstance(self.module, LitLanguageModel) else None

    def need_causal(self) -> None:
        """End a check of what only holds where each position predicts the token after it."""
        if self.own is not None and not self.own.net.causal:
            raise NotApplicableError(f"a {type(self.own.net).__name__} predicts masked tokens, from both sides")

    # ---- data

    @cached_property
    def batches(self) -> list[Batch]:
        """The first batches of an epoch, on the CPU."""
        with self.untouched():
            batches = list(itertools.islice(self.data.train_dataloader(), BATCHES))
        check_batch(batches[0] if batches else None)
        return batches

    def val_loader(self) -> Any:
        """The first loader of validation; empty if there is none."""
        try:
            loader: Any = self.data.val_dataloader()
        except Exception:  # Lightning's own or a UserError, where a datamodule has none
            return []
        return [*loader, []][0] if isinstance(loader, list | tuple) else loader

    @cached_property
    def rows(self) -> Batch:
        """The rows of `batches` that hold a scored target, (N, T) each."""
        same = [batch for batch in self.batches if batch["input_ids"].shape[1] == self.batches[0]["input_ids"].shape[1]]
        rows = {
            name: torch.cat([b[name] for b in same])
            for name, value in same[0].items()
            if isinstance(value, Tensor) and value.shape[:1] == same[0]["input_ids"].shape[:1]
        }
        used = (rows["targets"] != IGNORE_INDEX).any(1)
        return {name: value[used] for name, value in rows.items()}

    @cached_property
    def batch(self) -> Batch:
        """The first rows of training, on the module's device."""
        count = ROWS if self.tokens < LARGE_VOCABULARY else 2
        return move_data_to_device({name: value[:count] for name, value in self.rows.items()}, self.module.device)

    @cached_property
    def tokens(self) -> int:
        """Number of ids that occur in training rows, counted from 0: a lower limit of the vocabulary."""
        targets = self.rows["targets"]
        return 1 + int(max(self.rows["input_ids"].max(), targets.max()))

    def changed(self, ids: Tensor, where: Any) -> Tensor:
        """``ids`` with others in some places. Each is an id that occurs."""
        other = ids.clone()
        other[where] = (ids[where] + 1 + self.tokens // 3) % max(self.tokens, 2)
        return other

    # ---- the module

    @property
    def learns(self) -> bool:
        """Whether gradient descent is to change any weight. It is not in a model of counts, which is one of ours."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return self.own is None or any(max(group["lr"], group.get("initial_lr", 0)) > 0 for group in groups)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of the run."""
        return self.trainer.optimizers

    def need_learning(self) -> None:
        """End a check of a module that does not learn by gradient descent."""
        if not self.learns:
            raise NotApplicableError("gradient descent changes no weight here: every learning rate is 0")

    def need_own(self) -> LitLanguageModel:
        """The module; the end of a check if it is none of lit_gpt's."""
        if self.own is None:
            raise NotApplicableError(
                f"{type(self.module).__name__} is no LitLanguageModel, so this cannot be asked of it"
            )
        return self.own

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Afterwards weights, gradients, modes, counters and random states are as they were."""
        tensors = {name: value.clone() for name, value in _tensors(self.module)}
        modes = {module: module.training for module in self.module.modules()}
        random = random_state()
        attributes = {n: copy.copy(v) for n, v in vars(self.module).items() if n.startswith("_") and _is_plain(v)}
        for name in LOGGING:  # training_step is called outside of a run
            vars(self.module)[name] = lambda *args, **kwargs: None
        try:
            yield
        finally:
            for name in LOGGING:
                vars(self.module).pop(name, None)
            vars(self.module).update(attributes)
            set_random_state(random)
            self.module.zero_grad(set_to_none=True)
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for name, value in _tensors(self.module):
                    value.copy_(tensors[name])

    @contextmanager
    def stirred(self) -> Iterator[None]:
        """As `untouched`; inside, all weights have noise, so that layers that start at 0 have an effect too."""
        with self.untouched():
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for p in self.module.parameters():
                    std = 0.5 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1
                    p.add_((torch.randn(p.shape, generator=generator) * std).to(p))
            yield

    def loss(self, batch: Batch, train: bool = False) -> Tensor:
        """The training loss of a batch, a mean over its scored targets, with the same dropout at every call."""
        if not self.module.automatic_optimization:
            raise NotApplicableError("manual optimization: training_step itself changes the weights")
        batch = move_data_to_device(batch, self.module.device)  # a run that has ended leaves the module on the CPU
        self.module.train(train)
        torch.manual_seed(0)
        with torch.enable_grad():
            loss = loss_of(self.module.training_step(batch, 0))
        if self.own is None:
            return loss
        # training_step divides by all targets, not by the scored ones, and adds up the members of an ensemble.
        scored = (batch["targets"] != IGNORE_INDEX).sum().clamp(min=1)
        return loss * batch["targets"].numel() / scored / len(self.own.net.trained_nets())

    def moved(self, batch: Batch, where: Tensor, train: bool = False) -> float:
        """By how much the loss changes if the ids in some places do."""
        other = {**batch, "input_ids": self.changed(batch["input_ids"], where)}
        with torch.no_grad():
            return abs(float(self.loss(other, train)) - float(self.loss(batch, train)))

    def logits(self, batch: Batch) -> Tensor | None:
        """Logits that the training loss takes, (N, V); None if they were not found."""
        with LogitsFound(batch["targets"].numel()) as mode:
            self.loss(batch)
        return mode.logits()

    def promised_loss(self) -> float | None:
        """Loss of the network before training, as far as it is known."""
        if self.own is not None:
            if getattr(self.own, "options", {}).get("init_from"):
                return None
            losses = [net.expected_initial_loss() for net in self.own.net.trained_nets()]
            return losses[0]
        logits = self.logits(self.batch)
        return None if logits is None else float(torch.tensor(float(logits.size(-1))).log())

    def names(self, parameters: set[int]) -> list[str]:
        """Names of the parameters with these ids."""
        return [name for name, p in self.module.named_parameters() if id(p) in parameters]


def one_target(batch: Batch, row: int, t: int) -> Batch:
    """The batch with a single scored target, and without labels of other kinds."""
    targets = torch.full_like(batch["targets"], IGNORE_INDEX)
    targets[row, t] = batch["targets"][row, t]
    labels = {name: torch.full_like(batch[name], IGNORE_INDEX) for name in batch if name.endswith("_label")}
    return {**batch, **labels, "targets": targets}


def places(batch: Batch, row: int = 0) -> list[int]:
    """Scored positions to look at in a row, which have others after them: an early, a middle and a late one."""
    scored = (batch["targets"][row, :-1] != IGNORE_INDEX).nonzero().flatten().tolist()
    if not scored:
        raise NotApplicableError("no row has a scored target that others follow")
    return sorted({scored[0], scored[len(scored) // 2], scored[-1]})


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | list | tuple | Tensor) or value is None


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
