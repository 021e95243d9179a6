"""Metrics of a language model: sums over every scored token, so that 1 and N processes report the same values."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_gpt.loss import at_least_float32


class ScoredText(Protocol):
    """The size of the text that one full evaluation pass scores; the end of a document counts as one newline."""

    tokens: int
    chars: int
    bytes: int


class TokenMetrics(Metric):
    """Token-weighted loss, perplexity, top-1 and top-5 accuracy. `per_text` computes bits per byte from its sums.

    States are sums in float32 and counts in int64 (Apple devices have no float64). torchmetrics adds them up over
    processes.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    top1: Tensor
    top5: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nats", torch.zeros(()), dist_reduce_fx="sum")
        for name in ("tokens", "top1", "top5"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, rank: Tensor, scored: Tensor) -> None:
        """Add one batch.

        Args:
            nats: Cross-entropy of each target in nats (natural logarithm), (B, T), zero where unscored.
            rank: Rank of each target among the logits, (B, T); 0 is the model's first choice.
            scored: True where a target counts, (B, T).
        """
        self.nats = (
            at_least_float32(self.nats) + at_least_float32(nats).sum()
        )  # under bf16-true Lightning casts every state to bfloat16
        # not in place: a test resets the states in inference mode, and a later fit could not change them
        self.tokens = self.tokens + scored.sum()
        ranked = scored & ~nats.isnan()  # nothing is greater than NaN, which would make it the first choice
        self.top1 = self.top1 + (ranked & (rank < 1)).sum()
        self.top5 = self.top5 + (ranked & (rank < 5)).sum()

    def compute(self) -> dict[str, Tensor]:
        """``loss`` in nats per token, ``perplexity``, ``top1`` and ``top5`` as fractions, and the raw sums
        ``nats`` and ``tokens``.
        """
        loss = self.nats / self.tokens
        top1, top5 = (hits / self.tokens for hits in (self.top1, self.top5))
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "top1": top1,
            "top5": top5,
            "nats": self.nats,
            "tokens": self.tokens,
        }


def whole_split(nats: float, tokens: float, text: ScoredText) -> float:
    """Nats of the whole split. When only a part of it was scored (``--trainer.limit_val_batches``), the text counts in
    proportion to its tokens.
    """
    return nats * text.tokens / tokens


def per_text(nats: float, text: ScoredText) -> dict[str, float]:
    """The nats of a whole split in units that do not depend on the tokenizer: bits per UTF-8 byte and nats per
    character of the raw text.
    """
    return {"bpb": nats / math.log(2) / text.bytes, "nats_per_char": nats / text.chars}
