"""Trains a language model: the base LightningModule with loss, optimizer and what a checkpoint stores.

A subclass such as `lit_gpt.module.LitGPT` adds the network:

    Trainer(max_steps=500).fit(LitGPT(GPTConfig(n_layer=4)), datamodule=CharDataModule("my.txt"))

The loss of an optimizer step is the mean over its scored targets, in all micro-batches and processes together. These
may have different numbers of scored targets, so a mean of their means would be another value. Instead ``training_step``
divides the sum of a micro-batch by its capacity B*T, the number of its targets, scored or not. Lightning
averages over micro-batches and DDP over processes. ``on_before_optimizer_step`` then multiplies the gradients by
capacity / scored targets, both summed over the step. When every target is scored, that factor is exactly 1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from datamodules.errors import UserError
from lit_gpt import checkpoint, compatibility
from lit_gpt.allocator import keep_freed_memory
from lit_gpt.averaging import begin_averages, widen_averages
from lit_gpt.config import resolve_vocab_size
from lit_gpt.ddp import Votes, spare_copies
from lit_gpt.distributed import full, local, sent_to_cpu, summed_over_processes
from lit_gpt.evaluated_module import EvaluatedModule
from lit_gpt.forked import split_config, with_config
from lit_gpt.integrity import advice_to_continue
from lit_gpt.loop_state import undo_epoch_end
from lit_gpt.loss import IGNORE_INDEX, LossInputs, cross_entropy_sum
from lit_gpt.muon import has_bfloat16
from lit_gpt.optim import OptimizerConfig, StepSchedule, build_optimizer, learning_rates
from lit_gpt.protocols import Batch, Network, TextData, check_batch, check_targets, data_of
from lit_gpt.strategies import FSDP2
from lit_gpt.strategy_names import refuse_strategy

#: Callbacks of Lightning that cannot work with these modules: they look for an attribute `lr` or `batch_size`. With the
#: reason and the fix, as the end of an error message.
REFUSED_CALLBACKS: dict[type, str] = {
    LearningRateFinder: "tries one rate for all parameters, and each group here has its own: leave it out, and compare "
    "short runs with several --model.optimizer.lr",
    BatchSizeFinder: "changes the size of an optimizer step, which is part of the recipe here: leave it out, and set "
    "--data.micro_batch_size auto",
}


class LitLanguageModel(EvaluatedModule):
    """Base LightningModule. A subclass sets ``config_class`` and writes ``build_network``. For another loss it
    overrides ``objective_of``.

    A batch is a dict of

    - ``input_ids`` (B, T) and ``targets`` (B, T), the next tokens, with -100 where nothing is scored;
    - ``document_ids`` (B, T), the id of each token's document, if several documents are packed into a row;
    - ``attention_mask`` (B, T), which a causal network does not need: see `Network.hidden_of_batch`;
    - ``document`` (B,), the number of each row's document, in `predict` alone.

    B and T are the same in every training batch of a run.
    """

    config_class: type[Any]
    passes = 1  # of each training batch through the network
    _capacity: int  # targets of the last micro-batch, scored or not: B*T

    def __init__(self, config: Any, optimizer: Any, **options: Any) -> None:
        super().__init__()
        self.config = checkpoint.config_of(self.config_class, config)
        self.optimizer_config = checkpoint.config_of(OptimizerConfig, optimizer)
        self.options = options
        self._store_hyper_parameters()
        self.step_metrics = {"loss": torch.tensor(math.nan)}  # there is no value before the first step
        self.grad_norm: Tensor | None = None
        self._clipped: list[list[nn.Parameter]] = []  # see `_clipped_groups`
        self._tokenizer: str | None = None  # hash of the tokenizer that the network was trained with
        # Over the micro-batches of a step: the sum of each metric in `_metric_names`, then the number of scored
        # targets.
        self._step_sums: Any = 0  # a Tensor (metrics + 1,) after the first micro-batch
        self._metric_names: tuple[str, ...] = ()
        # For each micro-batch of this process: waits for the copy to the CPU and returns the number of scored targets.
        self._scored_counts: list[Callable[[], int]] = []
        self._step_is_empty = False
        self.votes = Votes()

    def _store_hyper_parameters(self) -> None:
        values = {"config": asdict(self.config), "optimizer": asdict(self.optimizer_config), **self.options}
        self.save_hyperparameters(values, logger=False)

    def build_network(self) -> Network:
        """Build the network of ``self.config``. By then its vocab_size is known."""
        raise NotImplementedError

    def configure_callbacks(self) -> list[Callback]:
        """Refuse a strategy and callbacks that cannot work here, and add none. Lightning calls this before data is
        prepared.
        """
        refuse_strategy(self.trainer.strategy)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if type(callback) in REFUSED_CALLBACKS:
                raise UserError(f"{type(callback).__name__} {REFUSED_CALLBACKS[type(callback)]}.")
        return []

    # ---- the network, once the data is known

    def configure_model(self) -> None:
        """Complete the configuration from the data, store it and build the network, once.

        Data of a later call must have the same tokenizer. ``self._trainer`` is None without a Trainer, where
        ``self.trainer`` would raise an error.
        """
        data = data_of(self._trainer)
        if not hasattr(self, "net"):
            self.complete_config(data)
            self._store_hyper_parameters()
            self._add_network()
            _refuse_lazy_layers(self.net)
        check_targets(self.net, data)
        if self._trainer is not None:
            spare_copies(self.trainer.strategy, self.net)
            widen_averages(self.trainer, self)
        self._tokenizer = compatibility.check_tokens(self._tokenizer, self.config.vocab_size, data)

    def _add_network(self) -> None:
        """Build the network, and apply the options of training to it, in a subclass that has some."""
        self.net = self.build_network()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The weights and buffers, and in the result of a forked process the network's configuration."""
        return with_config(super().state_dict(*args, **kwargs), self.config, self._trainer)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights, into a new network if they come from a forked process."""
        config, weights = split_config(state_dict)
        if config is not None and not hasattr(self, "net"):
            self.config = checkpoint.config_of(self.config_class, config)
            self._store_hyper_parameters()
            self._add_network()
        return super().load_state_dict(weights, *args, **kwargs)

    def complete_config(self, data: TextData) -> None:
        """Set ``config.vocab_size`` to the data's if it is null. A subclass may complete other fields."""
        self.config.vocab_size = resolve_vocab_size(self.config.vocab_size, data.vocab_size)

    def assume_vocabulary(self, size: int) -> list[str]:
        """Complete the configuration for ``fit --plan``, where there is no data. Returns notes on what is assumed."""
        self.config.vocab_size = size
        return []

    def on_fit_start(self) -> None:
        """Let the network compute what gradient descent does not learn, such as n-gram counts."""
        if self.device.type == "cpu":
            keep_freed_memory()
        self.net.prepare(data_of(self._trainer))
        begin_averages(self.trainer, self)

    # ---- training

    def on_train_start(self) -> None:
        """Reset the sums of a step, and restore the loader's position in a resumed run.

        Lightning restores the position when it builds the loader. With ``max_epochs`` that is too early: it needs the
        loader's length for the schedule before it has read the checkpoint. The method is Lightning's private one (2.6).
        """
        self._step_sums, self._scored_counts, self._clipped = 0, [], []
        self.trainer.fit_loop._load_combined_loader_states()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss to minimise: the sum over a micro-batch, divided by its capacity B*T."""
        check_batch(batch)
        scored = (batch["targets"] != IGNORE_INDEX).sum()
        self._scored_counts.append(sent_to_cpu(scored))  # asynchronous: read at the end of the step
        loss, sums = self.objective(batch)
        self._capacity, self._metric_names = batch["targets"].numel(), tuple(sums)
        self._step_sums = self._step_sums + torch.stack((*sums.values(), scored.float()))
        return loss / self._capacity

    def flops_per_token(self, T: int) -> float:
        """Floating-point operations of a training step per token, at sequence length T. 0: unknown.

        A module overrides it if a step takes another number than the network says, as with a sampled softmax.
        """
        return float(self.net.flops_per_token(T) or 0)

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, differentiable, and its metrics, both summed over the scored targets.

        The losses of an ensemble's members are added, so that each has the gradient that it would have alone. Their
        metrics are averaged: the mean compares with the metric of a single network.
        """
        results = [self.objective_of(batch, net) for net in self.net.trained_nets()]
        if len(results) == 1:
            return results[0]
        metrics = {name: torch.stack([sums[name] for _, sums in results]).mean() for name in results[0][1]}
        return torch.stack([loss for loss, _ in results]).sum(), metrics

    def objective_of(self, batch: Batch, net: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of ``net``, differentiable, and its metrics by name, both summed over the scored targets of
        ``batch``.

        A metric is logged as ``train/NAME``, divided by the number of scored targets of the step.
        """
        loss = self.batch_cross_entropy(batch, net)
        return loss, {"loss": loss.detach()}

    def step_totals(self, micro_batches: list[Batch]) -> Batch:
        """What each batch of an optimizer step must hold about the whole step. Data of training computes it ahead.

        Nothing here: the number of scored targets is summed as they come. A loss with a second denominator needs it.
        """
        return {}

    def prepare_trial(self) -> None:
        """Make each step one that needs as much memory as any of a run. A copy of the module then tries batch sizes."""

    @property
    def step_loss(self) -> Tensor:
        """Mean cross-entropy of the last optimizer step, in nats per scored target. NaN before the first step."""
        return self.step_metrics["loss"]

    def batch_cross_entropy(self, batch: Batch, net: Any) -> Tensor:
        """Cross-entropy summed over the scored targets of ``batch``, in nats, differentiable."""
        return cross_entropy_sum(self._hidden(batch, net), *self.loss_inputs(batch["targets"], net))

    def loss_inputs(self, targets: Tensor, net: Any) -> LossInputs:
        """The arguments of a training loss: LM head, its weights, targets and number of logits.

        The weights are listed because the chunked loss sums their gradients itself. A sampled softmax overrides this:
        it has fewer logits, each target is the column of its token among them, and a correction is added to them.
        """
        return LossInputs(net.head, net.head_weights(), targets, self.config.vocab_size, linear=net.linear_head)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale the gradients from a mean over capacity to a mean over the scored targets of the whole step.

        A step without scored targets must change nothing, not even by weight decay or momentum. Optimizers skip
        parameters whose gradient is None.
        """
        *sums, scored = self.votes.summed(self._step_sums, self.trainer.world_size).unbind()
        self._step_sums = 0
        # If this process scored any target, the step is not empty, and that is known without waiting for the device.
        # Only otherwise is the sum over processes read, which waits.
        self._step_is_empty = not sum(read() for read in self._scored_counts) and not bool(scored)
        self._scored_counts = []
        if self._step_is_empty:
            optimizer.zero_grad(set_to_none=True)
            return
        self.step_metrics = {name: total / scored for name, total in zip(self._metric_names, sums, strict=True)}
        capacity = self._capacity * self.trainer.accumulate_grad_batches * self.trainer.world_size
        if scored.is_cuda or scored != capacity:  # a GPU always multiplies: to compare, the CPU would wait for it
            gradients = [local(p.grad) for p in self.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, capacity / scored.clamp(min=1))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as the Trainer's options say, and store the norm before clipping in ``grad_norm``.

        Each member of an ensemble is clipped by its own norm, and ``grad_norm`` is their mean. Without clipping the
        norm is measured at logged steps only. Lightning takes a limit of 0 or less for no clipping. Clipping by value
        needs no norm and leaves ``grad_norm`` as it was.
        """
        limit = gradient_clip_val if gradient_clip_val and gradient_clip_val > 0 else math.inf
        if limit < math.inf and gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, limit, gradient_clip_algorithm)
        elif limit < math.inf or self._step_is_logged():
            # A limit of infinity clips nothing and returns the norm.
            norms = [full(nn.utils.clip_grad_norm_(group, limit)) for group in self._clipped_groups()]
            self.grad_norm = norms[0] if len(norms) == 1 else torch.stack(norms).mean()

    def _clipped_groups(self) -> list[list[nn.Parameter]]:
        """The parameters that have a norm together: of each member of an ensemble, or of a single network all, those
        too that a subclass adds outside of `net`. They are listed once a run: that takes 0.3 ms for four blocks.
        """
        if not self._clipped:
            nets = self.net.trained_nets()
            self._clipped = [list(module.parameters()) for module in (nets if len(nets) > 1 else [self])]
        return self._clipped

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Do the optimizer step, stop if its loss is not finite, and log every ``log_every_n_steps``.

        The check comes before any callback could save a checkpoint. On a GPU it would wait for the device, so there
        it is done at logged steps only.
        """
        super().optimizer_step(*args, **kwargs)
        if self._step_is_empty:
            return
        logged = self._step_is_logged()
        if (logged or self.device.type == "cpu") and not math.isfinite(self.step_loss):
            raise self._non_finite_error(f"the loss became {float(self.step_loss)} at step {self.global_step + 1}")
        if logged:
            metrics = {f"train/{name}": value for name, value in self.step_metrics.items()}
            self.log_now(
                {**metrics, **learning_rates(self.trainer.optimizers[0]), "grad_norm": self.grad_norm},
                self.global_step + 1,
            )

    def _step_is_logged(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    # ---- optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer and its schedule. Each parameter group has its algorithm (AdamW or Muon) and weight decay."""
        optimizer = build_optimizer(self.net, self.optimizer_config)
        self._warn_of_slow_precision()
        schedule = StepSchedule(optimizer, self.optimizer_config, self._total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def not_shardable(self) -> str | None:
        """What in this module ``--trainer.strategy fsdp2`` cannot shard, as the beginning of an error message.

        It is asked before the network is built. A subclass may name more.
        """
        if outside := [name for name, _ in self.named_parameters() if not name.startswith("net.")]:
            return f"{outside[0]} of {type(self).__name__}, a parameter outside of `net`,"
        kind = self.optimizer_config.kind
        return f"the state of optimizer.kind {kind}" if "." in kind else None

    def _warn_of_slow_precision(self) -> None:
        """Print a line about bfloat16 that the device emulates."""
        if str(self.trainer.precision).startswith("bf16") and not has_bfloat16(self.device):
            what, faster = ("CPU", "32-true") if self.device.type == "cpu" else ("GPU", "16-mixed")
            print_rank_zero(
                [f"this {what} has no bfloat16 instructions: --trainer.precision {faster} is several times faster here"]
            )

    def _total_steps(self) -> int:
        if self.optimizer_config.schedule == "constant" and not 0 < self.optimizer_config.warmup < 1:
            return 1  # unused: neither a constant rate nor a warmup in steps depends on it (below 1, warmup is a share)
        alternative = ", or --model.optimizer.schedule constant"
        return self._steps_for(f"the {self.optimizer_config.schedule} schedule", alternative)

    def _steps_for(self, user: str, alternative: str = "") -> int:
        """The number of optimizer steps of the run.

        Args:
            user: What needs the number, for the error message of a run without an end.
            alternative: Another fix, for the end of that message.
        """
        steps = self.trainer.estimated_stepping_batches
        if not 0 <= steps < math.inf:  # -1: the data has no length
            raise UserError(f"{user} needs an end: set --trainer.max_steps or --trainer.max_epochs{alternative}.")
        return int(steps)

    # ---- checkpoints

    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        """Add the entry that loading needs besides the weights (see `checkpoint.describe`).

        Weights that are not finite are not saved, so that the last file stays one to resume from.
        """
        if not self._weights_are_finite():
            raise self._non_finite_error(f"weights are not finite at step {self.global_step}")
        undo_epoch_end(state, self.trainer)
        state[checkpoint.KEY] = checkpoint.describe(type(self), asdict(self.config), data_of(self._trainer))

    def _weights_are_finite(self) -> bool:
        # Stacked: each bool() would wait for the GPU.
        bad = torch.stack([(~local(p).isfinite()).any() for p in self.parameters()]).any().float()
        is_sharded = self._trainer is not None and isinstance(self.trainer.strategy, FSDP2)
        return not summed_over_processes(bad, self.trainer.world_size if is_sharded else 1)

    def on_load_checkpoint(self, state: dict[str, Any]) -> None:
        """Refuse files of other programs, of a newer format, and of another tokenizer or network."""
        super().on_load_checkpoint(state)
        checkpoint.check(state)
        if self._trainer is not None and self._trainer.state.fn == "fit":
            compatibility.check_resumable(state, self.optimizer_config.kind)
            if compatibility.text_changed(state, data_of(self._trainer)):
                print_rank_zero(
                    [
                        "the data's text or its splits are not those of the run so far: "
                        "the run continues with the new ones"
                    ]
                )
        stored = state[checkpoint.KEY]["fingerprints"].get("tokenizer")
        self._tokenizer = compatibility.check_tokens(stored, self.config.vocab_size, data_of(self._trainer))
        if hasattr(self, "net"):
            compatibility.check_network(state, type(self), self.net, self.config)

    def _non_finite_error(self, problem: str) -> UserError:
        return UserError(
            f"{problem}: lower --model.optimizer.lr, raise --model.optimizer.warmup or set --trainer.gradient_clip_val "
            f"1.0, and {advice_to_continue(self.trainer.log_dir)}."
        )


def _refuse_lazy_layers(net: Network) -> None:
    """Refuse lazy layers: a parameter's shape decides its optimizer group, and theirs is unknown before a batch."""
    lazy = next((name for name, parameter in net.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise UserError(f"{lazy} of {type(net).__name__} has no shape before the first batch: give its layer's sizes.")


@rank_zero_only
def print_rank_zero(lines: list[str]) -> None:
    """Print lines, in the process of rank 0 only."""
    print("\n".join(lines), flush=True)
