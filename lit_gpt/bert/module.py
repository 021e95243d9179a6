"""`LitBERT`, the LightningModule of a BERT. Training itself is in `lit_gpt.language_model`.

The loss of an optimizer step is the mean over its masked tokens, plus the mean over its labelled pairs of sentences.
The base class divides every sum by the masked tokens of the step. So the sum over pairs is multiplied by masked tokens
/ pairs, both of the whole step: the datamodule counts them ahead, over all micro-batches and processes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from lit_gpt.bert.config import BertConfig
from lit_gpt.bert.metrics import PairMetrics, pair_cross_entropy
from lit_gpt.bert.model import Bert
from lit_gpt.loss import IGNORE_INDEX, cross_entropy_sum, score
from lit_gpt.module import LitTransformer
from lit_gpt.optim import OptimizerConfig
from lit_gpt.protocols import Batch

#: The key under which a batch holds the numbers of its masked places, counted over all rows: (N,).
PLACES = "places"


class LitBERT(LitTransformer):
    """Trains a BERT: masked tokens, and pairs of sentences.

    A batch is a dict of

    - ``input_ids`` (B, T), some of them masked, and ``targets`` (B, T): the true tokens of these, -100 elsewhere;
    - ``attention_mask`` (B, T), True for real tokens, and ``token_type_ids`` (B, T), the segments of a pair;
    - ``document_ids`` (B, T), if several documents are packed into a row;
    - ``next_sentence_label`` (B,): 0 if B follows A, 1 if B is random, -100 for no pair;
    - ``step_targets`` (1,) and ``step_pairs`` (1,): the numbers of scored targets and of labelled pairs in the whole
      optimizer step, in training. Without them the batch counts as the whole step.

    Args:
        config: Size and options of the network.
        optimizer: Algorithm, learning rates, weight decay and schedule.
        compile: Compile each block with torch.compile, in place. Off by default: it needs a C++ compiler and takes
            about a minute.
        activation_checkpointing: Compute each block again in the backward pass instead of keeping its activations.
        init_from: Weights that a new run starts from: a checkpoint, a folder that `export` wrote, a Hugging Face
            folder, or the name of a model on the hub, such as bert-base-uncased. The configuration must equal that of
            the weights, except for dropout, a smaller block_size and next_sentence. A resumed run ignores it.
    """

    config_class = BertConfig
    net: Bert
    pair_scores: Any  # nn.ModuleDict of PairMetrics, one for each split

    def __init__(
        self,
        config: BertConfig = BertConfig(),  # noqa: B008 (the base class copies it)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        compile: bool = False,
        activation_checkpointing: bool = False,
        init_from: str | None = None,
    ) -> None:
        super().__init__(config, optimizer, compile, activation_checkpointing, init_from)
        self.pair_scores = nn.ModuleDict({split: PairMetrics() for split in self.scores})

    def build_network(self) -> Bert:
        """The encoder of ``self.config``."""
        return Bert(self.config)

    def _apply_batch_transfer_handler(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Find the masked places while the batch is on the CPU.

        Their number decides a shape, so on a GPU the CPU would have to wait for it, once in each micro-batch. The
        method is Lightning's private one (2.6): where there is a datamodule, Lightning warns of the public hook.
        """
        if isinstance(batch, dict) and "targets" in batch:
            batch = {**batch, PLACES: places_of(batch["targets"])}
            self._check_token_types(batch)
        return super()._apply_batch_transfer_handler(batch, *args, **kwargs)

    def _check_token_types(self, batch: Batch) -> None:
        """Refuse segments that have no embedding, while reading them makes no GPU wait."""
        if "token_type_ids" in batch and (last := int(batch["token_type_ids"].max())) >= self.config.token_types:
            raise UserError(
                f"the data has segment {last}, and the network embeds {self.config.token_types} from 0 on: set "
                f"--model.config.token_types {last + 1}."
            )

    # ---- losses

    def objective_of(self, batch: Batch, net: Bert) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of masked tokens and of pairs, both scaled so that a mean over the step's scored targets is the
        sum of two means. ``loss`` is that of masked tokens alone, and compares with ``val/loss``.
        """
        hidden = self._hidden(batch, net)  # (B, T, C)
        states, targets = _masked(hidden, batch)  # (1, N, C), (1, N)
        loss = cross_entropy_sum(states, *self.loss_inputs(targets, net))
        sums = {"loss": loss.detach()}
        if net.config.next_sentence:
            pairs = self._pair_loss(batch, net, hidden)
            loss, sums["nsp_loss"] = loss + pairs, pairs.detach()
        return loss, sums

    def batch_cross_entropy(self, batch: Batch, net: Bert) -> Tensor:
        """Cross-entropy summed over the masked tokens of ``batch``, in nats, differentiable."""
        states, targets = _masked(self._hidden(batch, net), batch)
        return cross_entropy_sum(states, *self.loss_inputs(targets, net))

    def _pair_loss(self, batch: Batch, net: Bert, hidden: Tensor) -> Tensor:
        """Cross-entropy summed over the pairs of ``batch``, times masked tokens / pairs of the step."""
        if "next_sentence_label" not in batch:
            raise UserError(
                "the data has no pairs of sentences for the next-sentence head: give data of pairs, or set "
                "--model.config.next_sentence false."
            )
        labels = batch["next_sentence_label"]  # (B,)
        nats = pair_cross_entropy(net.pair_logits(hidden), labels)
        totals = {**self.step_totals([batch]), **batch}
        return nats * totals["step_targets"][0] / totals["step_pairs"][0].clamp(min=1)

    def step_totals(self, micro_batches: list[Batch]) -> Batch:
        """See `LitLanguageModel`: ``step_targets`` and ``step_pairs``."""
        names = {"step_targets": "targets", "step_pairs": "next_sentence_label"}
        return {
            total: torch.stack([(batch[name] != IGNORE_INDEX).sum() for batch in micro_batches]).sum(0, keepdim=True)
            for total, name in names.items()
            if all(name in batch for batch in micro_batches)
        }

    # ---- evaluation

    def token_scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `LitLanguageModel`; what is not masked has 0 nats and rank V, as what is not scored."""
        return self._scores_of(self._hidden(batch, self.net), batch)

    def _scores_of(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        net, V = self.net, self.config.vocab_size
        states, masked = _masked(hidden, batch)  # (1, N, C), (1, N)
        nats, rank = score(states, net.head, net.head_weights(), masked, V)  # (1, N) each
        targets, places = batch["targets"], _places(batch)
        all_nats = nats.new_zeros(targets.numel()).index_copy(0, places, nats[0])  # (B * T,)
        all_ranks = rank.new_full((targets.numel(),), V).index_copy(0, places, rank[0])
        return all_nats.view_as(targets), all_ranks.view_as(targets)

    def _score(self, split: str, batch: Batch) -> Tensor:
        hidden = self._hidden(batch, self.net)
        nats, rank = self._scores_of(hidden, batch)  # (B, T)
        self.scores[split].update(nats, rank, batch["targets"] != IGNORE_INDEX)
        if self.config.next_sentence and "next_sentence_label" in batch:
            self.pair_scores[split].update(self.net.pair_logits(hidden), batch["next_sentence_label"])
        return nats

    def reset_scores(self) -> None:
        """See `LitLanguageModel`; those of pairs too."""
        super().reset_scores()
        for metrics in self.pair_scores.values():
            metrics.reset()

    def _split_metrics(self, split: str) -> dict[str, float]:
        metrics, pairs = super()._split_metrics(split), self.pair_scores[split]
        if pairs.update_called:
            metrics |= {name: float(value) for name, value in pairs.compute().items()}
        return metrics


def places_of(targets: Tensor) -> Tensor:
    """The numbers of the scored places of a batch, counted over all rows: (B, T) to (N,)."""
    return (targets.flatten() != IGNORE_INDEX).nonzero().flatten()


def _places(batch: Batch) -> Tensor:
    return batch[PLACES] if PLACES in batch else places_of(batch["targets"])


def _masked(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states (1, N, C) and targets (1, N) of the masked places: the MLM head is for these alone.

    At 15 % of the tokens that saves most of the head's work: of a bert-base it would be a fifth of a step's.
    """
    places = _places(batch)
    return hidden.flatten(0, 1).index_select(0, places)[None], batch["targets"].flatten()[places][None]
