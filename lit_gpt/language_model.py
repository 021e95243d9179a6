"""The base of our LightningModules: loss, metrics, optimizer and checkpoint contract of any network over tokens.

    Trainer(max_steps=500).fit(LitGPT(GPTConfig(n_layer=4)), datamodule=CharDataModule("my.txt"))

The loss of an optimizer step is the sum over its scored targets divided by their number, over all micro-batches and
processes. Each micro-batch's loss is its sum divided by its capacity B*T; Lightning and DDP average those;
``on_before_optimizer_step`` multiplies the gradients by capacity / scored targets. When every target is scored that
factor is exactly 1.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from datamodules.errors import UserError
from lit_gpt import checkpoint
from lit_gpt.checked_module import CheckedModule
from lit_gpt.config import resolve_vocab_size
from lit_gpt.distributed import sent_to_cpu, summed_over_processes
from lit_gpt.integrity import how_to_go_on
from lit_gpt.loop_state import inside_its_epoch
from lit_gpt.loss import IGNORE_INDEX, LossInputs, cross_entropy_sum, score
from lit_gpt.metrics import TokenMetrics, per_text, whole_split
from lit_gpt.muon import has_bfloat16
from lit_gpt.optim import OptimizerConfig, StepSchedule, build_optimizer, describe_groups, learning_rates
from lit_gpt.protocols import Network, TextData, data_of

Batch = dict[str, Tensor]

#: Callbacks of Lightning's that look for an attribute which a module of ours has not, and why it has none.
UNFIT_CALLBACKS: dict[type, str] = {
    LearningRateFinder: "tries one rate for all parameters, and each group here has its own: leave it out, and compare "
    "short runs with several --model.optimizer.lr",
    BatchSizeFinder: "changes the size of an optimizer step, which is part of the recipe here: leave it out, and lower "
    "--data.micro_batch_size until a step fits the memory",
}


class LitLanguageModel(CheckedModule):
    """Base of our modules. A subclass names its configuration class and builds its network; one with another loss
    overrides ``objective_of``.

    Batches are dicts of ``input_ids`` (B, T), ``targets`` (B, T) with -100 where nothing is scored,
    ``attention_mask`` (B, T) and, for packed rows, ``document_ids`` (B, T). B and T stay fixed through a run.
    """

    config_class: type[Any]
    net: Network
    scores: Any  # nn.ModuleDict of TokenMetrics by split

    def __init__(self, config: Any, optimizer: Any, **options: Any) -> None:
        super().__init__()
        self.config = checkpoint.config_of(self.config_class, config)
        self.optimizer_config = checkpoint.config_of(OptimizerConfig, optimizer)
        self.options = options
        self._store_hyper_parameters()
        self.scores = nn.ModuleDict({split: TokenMetrics() for split in ("val", "train_eval", "test")})
        self.step_metrics = {"loss": torch.tensor(math.nan)}
        self.grad_norm: Tensor | None = None
        self._tokenizer: str | None = None  # fingerprint of the one whose ids the network knows
        self._step_sums: Any = 0  # a Tensor after the first micro-batch
        self._step_names: tuple[str, ...] = ()
        self._scored_here: list[Callable[[], int]] = []
        self._step_is_empty = False

    def _store_hyper_parameters(self) -> None:
        plain = {"config": asdict(self.config), "optimizer": asdict(self.optimizer_config), **self.options}
        self.save_hyperparameters(plain, logger=False)

    def build_network(self) -> Network:
        """The network for ``self.config``, whose vocabulary is known by now."""
        raise NotImplementedError

    def configure_callbacks(self) -> list[Callback]:
        """None of its own; asked before any callback begins, this refuses those that cannot work here."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if type(callback) in UNFIT_CALLBACKS:
                raise UserError(f"{type(callback).__name__} {UNFIT_CALLBACKS[type(callback)]}.")
        return []

    # ---- the network, once the data is known

    def configure_model(self) -> None:
        """Take the vocabulary from the data, write it back to the hyper-parameters and build the network once; later
        data must speak of the same tokens.
        """
        data = data_of(self._trainer)
        if not hasattr(self, "net"):
            self.complete_config(data)
            self._store_hyper_parameters()
            self.net = self.build_network()
            _refuse_lazy_layers(self.net)
        self._tokenizer = checkpoint.check_tokens(self._tokenizer, self.config.vocab_size, data)

    def complete_config(self, data: TextData) -> None:
        """Take from the data what ``self.config`` leaves to it."""
        self.config.vocab_size = resolve_vocab_size(self.config.vocab_size, data.vocab_size)

    def on_fit_start(self) -> None:
        """Let the network take from the training text what is not learned, such as n-gram counts."""
        self.net.prepare(data_of(self._trainer))

    # ---- training

    def on_train_start(self) -> None:
        """Begin with nothing added up, and go on in the data where the run stopped.

        Lightning does so when it makes the loader, and under ``max_epochs`` it makes it, to count the schedule's steps,
        before it has read the checkpoint.
        """
        self._step_sums, self._scored_here = 0, []
        self.trainer.fit_loop._load_combined_loader_states()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """What is minimised, summed over a micro-batch, over its capacity B*T."""
        check_batch(batch)
        scored = (batch["targets"] != IGNORE_INDEX).sum()
        self._scored_here.append(sent_to_cpu(scored))
        loss, sums = self.objective(batch)
        self._capacity, self._step_names = batch["targets"].numel(), tuple(sums)
        self._step_sums = self._step_sums + torch.stack((*sums.values(), scored.float()))
        return loss / self._capacity

    def flops_per_token(self, T: int) -> float:
        """Floating-point operations that the last training step took for each token of rows of T; 0 where the network
        does not say.
        """
        return float(self.net.flops_per_token(T) or 0)

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the trained networks' objectives, differentiable, and the means of their metrics."""
        found = [self.objective_of(batch, net) for net in self.net.trained_nets()]
        figures = {name: torch.stack([one[name] for _, one in found]).mean() for name in found[0][1]}
        return torch.stack([loss for loss, _ in found]).sum(), figures

    def objective_of(self, batch: Batch, net: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums over the scored targets of ``batch``: what ``net`` minimises, differentiable, and what is logged as
        train/NAME per scored target.
        """
        nats = self.batch_cross_entropy(batch, net)
        return nats, {"loss": nats.detach()}

    @property
    def step_loss(self) -> Tensor:
        """Cross-entropy of the last optimizer step in nats per scored target."""
        return self.step_metrics["loss"]

    def batch_cross_entropy(self, batch: Batch, net: Any) -> Tensor:
        """Summed nats over the scored targets of ``batch``, differentiable."""
        return cross_entropy_sum(self._hidden(batch, net), *self.loss_inputs(batch["targets"], net))

    def loss_inputs(self, targets: Tensor, net: Any) -> LossInputs:
        """What the loss of a step asks for: the network's head, what it multiplies with (the chunked loss adds up the
        gradients of that itself), the targets among its logits and how many these are.
        """
        return LossInputs(net.head, net.head_weights(), targets, self.config.vocab_size)

    def _hidden(self, batch: Batch, net: Any) -> Tensor:
        # Rows are padded on the right, where causal attention already hides pads from real tokens: no mask is passed,
        # and the fast causal path stays.
        return net.hidden(batch["input_ids"], document_ids=batch.get("document_ids"))  # (B, T, C)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the mean over capacity into the mean over scored targets of the whole step; without any, nothing is to
        change: not by weight decay or momentum either.
        """
        *sums, scored = summed_over_processes(self._step_sums, self.trainer.world_size).unbind()
        self._step_sums = 0
        self._step_is_empty = not sum(read() for read in self._scored_here) and not bool(scored)
        self._scored_here = []
        if self._step_is_empty:
            optimizer.zero_grad(set_to_none=True)
            return
        self.step_metrics = {name: total / scored for name, total in zip(self._step_names, sums, strict=True)}
        capacity = self._capacity * self.trainer.accumulate_grad_batches * self.trainer.world_size
        if scored.is_cuda or scored != capacity:  # on a GPU the comparison would wait for the device
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, capacity / scored.clamp(min=1))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says, each trained network by its own norm, and keep their mean norm before clipping.

        Without clipping (to Lightning, at 0 and below too), measure it at logged steps.
        """
        limit = gradient_clip_val if gradient_clip_val and gradient_clip_val > 0 else math.inf
        if limit < math.inf and gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, limit, gradient_clip_algorithm)
        elif limit < math.inf or self._step_is_logged():
            nets = self.net.trained_nets()
            parts = [list(part.parameters()) for part in (nets if len(nets) > 1 else [self])]
            self.grad_norm = torch.stack([nn.utils.clip_grad_norm_(part, limit) for part in parts]).mean()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then stop on a loss that is no number, before anything could save it, and log when the turn has
        come.
        """
        super().optimizer_step(*args, **kwargs)
        if self._step_is_empty:
            return
        logged = self._step_is_logged()
        if (logged or self.device.type == "cpu") and not math.isfinite(self.step_loss):
            raise self._non_finite(f"the loss became {float(self.step_loss)} at step {self.global_step + 1}")
        if logged:
            figures = {f"train/{name}": value for name, value in self.step_metrics.items()}
            self.log_now(
                {**figures, **learning_rates(self.trainer.optimizers[0]), "grad_norm": self.grad_norm},
                self.global_step + 1,
            )

    def _step_is_logged(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def log_now(self, values: Mapping[str, Any], step: int) -> None:
        """Write to the loggers at once, under the number of optimizer steps done.

        Lightning's own logging comes after checkpoints and counts training steps from 0 and validations from 1.
        """
        present = {k: float(v) for k, v in values.items() if v is not None}
        for logger in self.trainer.loggers:
            logger.log_metrics({**present, "epoch": self.current_epoch}, step=step)
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in present.items()})

    # ---- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of the validation split (loader 0) or of the fixed part of the training split (loader 1)."""
        self._score(("val", "train_eval")[dataloader_idx], batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of the test split."""
        self._score("test", batch)

    def _score(self, split: str, batch: Batch) -> None:
        nats, rank = self.token_scores(batch)
        self.scores[split].update(nats, rank, batch["targets"] != IGNORE_INDEX)

    def token_scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Nats and rank of every target, each (B, T)."""
        check_batch(batch)
        net = self.net
        return score(self._hidden(batch, net), net.head, net.head_weights(), batch["targets"], self.config.vocab_size)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The batch's ``targets`` and, for each, ``nats`` and ``rank``; and ``document``, where the batch has it."""
        nats, rank = self.token_scores(batch)
        document = {name: batch[name] for name in ("document",) if name in batch}
        return {"targets": batch["targets"], **document, "nats": nats, "rank": rank}

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...`` and ``train_eval/...``."""
        self._log_scores("val", "train_eval")

    def on_test_epoch_end(self) -> None:
        """Log ``test/...``."""
        self._log_scores("test")

    def _log_scores(self, *splits: str) -> None:
        figures = {f"{split}/{k}": v for split in splits for k, v in self._split_metrics(split).items()}
        fits = self.trainer.state.fn == "fit"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*have no logger configured")
            self.log_dict(figures, logger=not fits)  # what the Trainer's validate and test return, logger or not
        if fits and not self.trainer.sanity_checking:
            self.log_now(figures, self.global_step)

    def _split_metrics(self, split: str) -> dict[str, float]:
        metric = self.scores[split]
        if not metric.update_called:
            return {}
        figures = {k: float(v) for k, v in metric.compute().items()}
        metric.reset()
        nats, tokens = figures.pop("nats"), figures.pop("tokens")
        data = data_of(self._trainer)
        text = data.scored_text(split)
        if text is not None:
            nats = whole_split(nats, tokens, text)
            figures |= per_text(nats, text)
        return figures | data.extra_metrics(split, nats)

    # ---- optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer over groups that choose their rule and decay, and its schedule per step."""
        if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise UserError(
                "this strategy cuts weights into pieces, which the optimizer's groups and the clipping do not know: "
                "use --trainer.strategy ddp."
            )
        optimizer = build_optimizer(self.net, self.optimizer_config)
        print_rank_zero([*describe_groups(optimizer), *self._slow_precision()])
        schedule = StepSchedule(optimizer, self.optimizer_config, self._total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _slow_precision(self) -> list[str]:
        if not str(self.trainer.precision).startswith("bf16") or has_bfloat16(self.device):
            return []
        what, faster = ("CPU", "32-true") if self.device.type == "cpu" else ("GPU", "16-mixed")
        return [f"this {what} has no bfloat16 instructions: --trainer.precision {faster} is several times faster here"]

    def _total_steps(self) -> int:
        if self.optimizer_config.schedule == "constant" and not 0 < self.optimizer_config.warmup < 1:
            return 1
        other = ", or --model.optimizer.schedule constant"
        return self._steps_for(f"the {self.optimizer_config.schedule} schedule", other)

    def _steps_for(self, what: str, other: str = "") -> int:
        """The optimizer steps of the run, which `what` has to know."""
        steps = self.trainer.estimated_stepping_batches
        if not 0 <= steps < math.inf:  # -1: batches that nobody can count
            raise UserError(f"{what} needs an end: set --trainer.max_steps or --trainer.max_epochs{other}.")
        return int(steps)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Add what a reader needs besides the weights. NaN is not saved: the last file stays one to go on from."""
        if not all(bool(p.isfinite().all()) for p in self.parameters()):
            raise self._non_finite(f"weights are no numbers any more at step {self.global_step}")
        inside_its_epoch(checkpoint_, self.trainer)
        checkpoint_[checkpoint.KEY] = checkpoint.describe(type(self), asdict(self.config), data_of(self._trainer))

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Refuse files that are not ours, of a newer format, or of another tokenizer or network."""
        super().on_load_checkpoint(checkpoint_)
        checkpoint.check(checkpoint_)
        if self._trainer is not None and self._trainer.state.fn == "fit":
            checkpoint.check_resumable(checkpoint_, self.optimizer_config.kind)
            if checkpoint.text_changed(checkpoint_, data_of(self._trainer)):
                print_rank_zero(
                    ["the data's text or its splits are not those of the run so far: it goes on with the new ones"]
                )
        stored = checkpoint_[checkpoint.KEY]["fingerprints"].get("tokenizer")
        self._tokenizer = checkpoint.check_tokens(stored, self.config.vocab_size, data_of(self._trainer))
        if hasattr(self, "net"):
            checkpoint.check_network(checkpoint_, type(self), self.net, self.config)

    def _non_finite(self, what: str) -> UserError:
        return UserError(
            f"{what}: lower --model.optimizer.lr, raise --model.optimizer.warmup or set --trainer.gradient_clip_val "
            f"1.0, and {how_to_go_on(self.trainer.log_dir)}."
        )


def _refuse_lazy_layers(net: Network) -> None:
    """Which group of the optimizer a parameter is in follows from its shape, which a lazy layer has not."""
    lazy = next((name for name, parameter in net.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise UserError(f"{lazy} of {type(net).__name__} has no shape before the first batch: give its layer's sizes.")


def check_batch(batch: Any) -> None:
    """Refuse batches of another form than ours, such as a pair of tensors."""
    missing = [name for name in ("input_ids", "targets") if not isinstance(batch, dict) or name not in batch]
    if missing:
        kind = f"dict of {', '.join(map(str, batch))}" if isinstance(batch, dict) else type(batch).__name__
        raise UserError(
            f"the data's batches are each a {kind}, without {' and '.join(missing)}: let its dataset return dicts of "
            "input_ids (T,) and targets (T,), where targets[i] is the token after input_ids[i]."
        )


@rank_zero_only
def print_rank_zero(lines: list[str]) -> None:
    """Print lines from rank 0 alone."""
    print("\n".join(lines), flush=True)
