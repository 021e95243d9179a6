"""Evaluates a language model: scores every target, and logs the metrics of whole splits. Training is in
`lit_gpt.language_model`.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.checked_module import CheckedModule
from lit_gpt.loss import IGNORE_INDEX, places_to_score, put_back, score
from lit_gpt.metrics import TokenMetrics, per_text, whole_split
from lit_gpt.packed_layers import PackedLayers
from lit_gpt.protocols import Batch, Network, check_batch, data_of

#: The entries of a batch that have one row for each of its texts.
ROW_ENTRIES = {"input_ids", "targets", "document_ids", "attention_mask", "document"}


class EvaluatedModule(CheckedModule):
    """The part of a `LitLanguageModel` that validates, tests and predicts.

    Its linear layers use `packed_layers` from the start of an evaluation to its end.
    """

    config: Any
    net: Network
    scores: Any  # nn.ModuleDict of TokenMetrics, one for each split

    def __init__(self) -> None:
        super().__init__()
        self.packed_layers = PackedLayers()
        self.scores = nn.ModuleDict({split: TokenMetrics() for split in ("val", "train_eval", "test")})

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score a batch of the validation split (loader 0), or of ``train_eval`` (loader 1). Callbacks get ``nats``.

        ``train_eval`` is a fixed part of the training split, scored without dropout: the difference to validation is
        overfitting.
        """
        return {"nats": self._score(("val", "train_eval")[dataloader_idx], batch)}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of the test split."""
        self._score("test", batch)

    def _score(self, split: str, batch: Batch) -> Tensor:
        nats, rank = self.token_scores(batch)  # (B, T)
        self.scores[split].update(nats, rank, batch["targets"] != IGNORE_INDEX)
        return nats

    def token_scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats and rank of every target, each (B, T). Rank 0 is the model's first choice."""
        check_batch(batch)
        targets, net, V = batch["targets"], self.net, self.config.vocab_size
        # The last batch of a split is filled up with rows of padding. They are not computed, unless the batch has
        # entries of one's own, which may have no rows.
        rows = places_to_score((targets != IGNORE_INDEX).any(1)) if batch.keys() <= ROW_ENTRIES else None
        part = batch if rows is None else {name: value[rows] for name, value in batch.items()}
        heads = net.linear_head, net.probability_head
        scores = score(self._hidden(part, net), net.head, net.head_weights(), part["targets"], V, *heads)
        return put_back(*scores, rows, len(targets), V)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``targets`` and the ``nats`` and ``rank`` of each, (B, T), and the batch's ``document`` (B,) if any."""
        nats, rank = self.token_scores(batch)
        document = {name: batch[name] for name in ("document",) if name in batch}
        return {"targets": batch["targets"], **document, "nats": nats, "rank": rank}

    def on_validation_epoch_start(self) -> None:
        """Begin the sums anew, of which an interrupted evaluation has left some, and begin to pack weights. Averaged
        weights have been put in place by then.
        """
        self.packed_layers.begin()
        self.reset_scores()

    on_test_epoch_start = on_validation_epoch_start

    def on_predict_epoch_start(self) -> None:
        """Begin to pack weights. Nothing is summed."""
        self.packed_layers.begin()

    def reset_scores(self) -> None:
        """Forget what has been summed of every split. A subclass with other metrics forgets those too."""
        for metrics in self.scores.values():
            metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...`` and ``train_eval/...``, and forget the packed weights: training needs the memory."""
        self.packed_layers.end()
        self._log_scores("val", "train_eval")

    def on_test_epoch_end(self) -> None:
        """Log ``test/...``, and forget the packed weights."""
        self.packed_layers.end()
        self._log_scores("test")

    def on_predict_epoch_end(self) -> None:
        """Forget the packed weights."""
        self.packed_layers.end()

    def _log_scores(self, *splits: str) -> None:
        metrics = {f"{split}/{k}": v for split in splits for k, v in self._split_metrics(split).items()}
        is_fitting = self.trainer.state.fn == "fit"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*have no logger configured")
            # Trainer.validate and Trainer.test return what log_dict was given. During fit, log_now writes instead.
            self.log_dict(metrics, logger=not is_fitting)
        if is_fitting and not self.trainer.sanity_checking:
            self.log_now(metrics, self.global_step)

    def _split_metrics(self, split: str) -> dict[str, float]:
        token_metrics = self.scores[split]
        if not token_metrics.update_called:
            return {}
        metrics = {k: float(v) for k, v in token_metrics.compute().items()}
        nats, tokens = metrics.pop("nats"), metrics.pop("tokens")  # sums over the scored targets
        data = data_of(self._trainer)
        # Numbers of characters and bytes. An encoder predicts parts of the text from the rest, which codes no text.
        text_size = data.scored_text(split) if self.net.causal else None
        if text_size is not None:
            nats = whole_split(nats, tokens, text_size)
            metrics |= per_text(nats, text_size)  # bits per byte and nats per character
        return metrics | data.extra_metrics(split, nats)

    def log_now(self, values: Mapping[str, Any], step: int) -> None:
        """Write metrics to the loggers at once, with the number of finished optimizer steps as their step.

        Lightning's own logging writes after checkpoints are saved, and counts training steps from 0 and validations
        from 1. Values of None are left out.
        """
        metrics = {k: float(v) for k, v in values.items() if v is not None}
        for logger in self.trainer.loggers:
            logger.log_metrics({**metrics, "epoch": self.current_epoch}, step=step)
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})

    def _hidden(self, batch: Batch, net: Any) -> Tensor:
        """Hidden states of a batch, in an evaluation with packed weights."""
        with self.packed_layers.used_by(net):
            return net.hidden_of_batch(batch)  # (B, T, C)
