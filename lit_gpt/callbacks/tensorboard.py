"""Charts of a run in TensorBoard, drawn at validations: next tokens, token frequencies, loss by position, layers."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from datamodules.errors import check_at_least
from lit_gpt.callbacks import chart_data, layers
from lit_gpt.callbacks.tensorboard_logger import RunTensorBoard, writer_of
from lit_gpt.distributed import needs_all, reshard
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.protocols import data_of

#: Bars of a chart.
NEXT_TOKENS, FREQUENT_TOKENS = 10, 16
#: Length of a context's end in a title, in tokens.
TITLE = 30
#: Metrics of the last validation in the tab HParams, where they exist.
FINAL_METRICS = ("val/loss", "val/bpb", "val/top1", "val/top5", "train_eval/loss")
Charts = Iterator[tuple[str, Any]]


class TensorBoardCharts(Callback):
    """Draws charts at each validation, if TensorBoard is a logger of the run.

    They show the likeliest next tokens of three contexts of the validation split, the frequencies of tokens in the text
    and in the model's predictions, and the loss by the length of the context. With several processes they show the rows
    of the first.

    Args:
        layers: Also draw root mean squares of each layer's weights, gradients and outputs, and the attention weights of
            one head.
        every_n_validations: Draw after every N-th validation; 0 draws nothing. The charts take about 0.3 s together.
    """

    def __init__(self, layers: bool = False, every_n_validations: int = 1) -> None:
        check_at_least(0, "tensorboard.every_n_validations", every_n_validations)
        self.layers = layers
        self.every_n_validations = every_n_validations
        self._validations = 0
        self._contexts: list[list[int]] = []  # token ids; of each context the last is the token to predict
        self._batch: dict[str, Tensor] | None = None  # the first of the validation
        self._by_position = torch.zeros(2, 0)  # sum of the loss, and number of targets, at each position
        self._gradients: dict[Tensor, Tensor] = {}  # of the last step, after clipping

    def state_dict(self) -> dict[str, Any]:
        """The contexts and the validations so far, so that a resumed run draws the same at the same steps."""
        return {"contexts": self._contexts, "validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._contexts, self._validations = state_dict["contexts"], state_dict["validations"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings for the tab HParams."""
        self._log_settings(trainer, ())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the final metrics for the tab HParams."""
        self._log_settings(trainer, FINAL_METRICS)

    def _log_settings(self, trainer: Trainer, names: tuple[str, ...]) -> None:
        logged = trainer.callback_metrics
        for logger in trainer.loggers:
            if isinstance(logger, RunTensorBoard):
                logger.log_settings({x: float(logged[x]) for x in names if x in logged}, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep the gradients, which Lightning releases before a validation."""
        if self.layers and not trainer.fit_loop._should_accumulate():
            self._gradients = {p: p.grad for p in pl_module.parameters() if p.grad is not None}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Release the gradients of the last step."""
        self._gradients = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validations."""
        self._validations += _draws(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first batch, and add up the loss at each position."""
        if dataloader_idx or not isinstance(pl_module, LitLanguageModel) or not _draws(trainer):
            return
        if not self.every_n_validations or self._validations % self.every_n_validations:
            return
        if batch_idx == 0:
            self._batch, self._by_position = batch, torch.zeros(2, 0, device=pl_module.device)
        if isinstance(outputs, dict) and "nats" in outputs:  # another validation_step may return nothing
            self._by_position = chart_data.add_by_position(self._by_position, outputs["nats"], batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, unless the loss is not finite."""
        batch, self._batch = self._batch, None
        net = getattr(pl_module, "net", None)
        if needs_all(net):  # all compute the charts of the same rows, and rank 0 logs them
            batch = _of_rank_0(trainer, batch)
        if batch is None or not math.isfinite(trainer.callback_metrics.get("val/loss", 0.0)):
            return
        with trainer.precision_plugin.forward_context(), torch.no_grad():
            for tag, pixels in self._charts(trainer, pl_module, batch):
                for logger in trainer.loggers if trainer.is_global_zero else ():
                    if isinstance(logger, TensorBoardLogger):
                        writer_of(logger, "val").add_image(tag, pixels, trainer.global_step, dataformats="HWC")
        reshard(net)

    def _charts(self, trainer: Trainer, module: LightningModule, batch: dict[str, Tensor]) -> Charts:
        net: Any = module.net
        labels = chart_data.Labels(data_of(trainer).tokenizer)
        self._contexts = self._contexts or chart_data.contexts_of(batch)
        if self._contexts:  # there are none if nothing is scored
            if net.causal:
                yield from _next_token_charts(net, labels, self._contexts, batch)
            yield _frequency_chart(net, labels, batch)
        if self._by_position.numel() and net.causal:  # an encoder sees all of a row at every position
            yield "tokens/loss_by_position", _loss_by_position(self._by_position)
        if self._contexts and self.layers:
            row = batch["input_ids"].new_tensor([self._contexts[0][:-1]])  # (1, T)
            yield from _layer_charts(net, row, self._gradients)


def _draws(trainer: Trainer) -> bool:
    in_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
    return in_fit and trainer.is_global_zero and any(isinstance(x, TensorBoardLogger) for x in trainer.loggers)


def _of_rank_0(trainer: Trainer, batch: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The batch of rank 0, on the device of this process."""
    sent = trainer.strategy.broadcast(batch and {name: value.cpu() for name, value in batch.items()})
    return sent and {name: value.to(trainer.strategy.root_device) for name, value in sent.items()}


def _next_token_charts(net: Any, labels: Any, contexts: list[list[int]], batch: dict[str, Tensor]) -> Charts:
    from lit_gpt.callbacks import charts  # matplotlib: half a second, so not before it is needed

    for number, p in enumerate(chart_data.next_probabilities(net, contexts, batch)):
        *context, truth = contexts[number]
        top = p.topk(min(NEXT_TOKENS, len(p)))
        bars = [labels(i) for i in top.indices.tolist()], top.values.tolist()
        title = labels.text(context[-TITLE:])
        yield f"next_token/context_{number + 1}", charts.next_tokens(title, *bars, labels(truth), float(p[truth]))


def _frequency_chart(net: Any, labels: Any, batch: dict[str, Tensor]) -> tuple[str, Any]:
    from lit_gpt.callbacks import charts

    data, model, n = chart_data.frequencies(net, batch)
    top = data.topk(min(FREQUENT_TOKENS, len(data)))
    shares = top.values.tolist(), model[top.indices].tolist()
    return "tokens/frequencies", charts.token_frequencies([labels(i) for i in top.indices.tolist()], *shares, n)


def _loss_by_position(sums: Tensor) -> Any:
    from lit_gpt.callbacks import charts

    return charts.loss_by_position(*chart_data.binned(sums))


def _layer_charts(net: Any, input_ids: Tensor, gradients: dict[Tensor, Tensor]) -> Charts:
    from lit_gpt.callbacks import charts

    norms_of = layers.layer_norms(net, input_ids, gradients)
    if not gradients:  # a resumed run that begins with a validation has none yet: zeros would be wrong
        del norms_of["gradients"]
    for kind, norms in norms_of.items():
        pixels = charts.layer_norms([*norms], [*norms.values()], f"{kind}, root mean square")
        yield f"network/{kind}", pixels
    if maps := layers.attention_weights(net, input_ids):
        yield "network/attention", charts.attention_maps(maps)
