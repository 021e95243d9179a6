"""Metrics of a language model: sums over every scored token, so that 1 and N processes report the same values."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric


class ScoredText(Protocol):
    """The size of the text that one full evaluation pass scores; the end of a document counts as one newline."""

    tokens: int
    chars: int
    bytes: int
    eos_tokens: int


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
        self.nats = self.nats.float() + nats.float().sum()  # under bf16-true Lightning casts every state to bfloat16
        self.tokens += scored.sum()
        self.top1 += (scored & (rank < 1)).sum()
        self.top5 += (scored & (rank < 5)).sum()

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


def per_text(nats: float, tokens: float, text: ScoredText) -> dict[str, float]:
    """Loss in units that do not depend on the tokenizer: bits per UTF-8 byte and nats per character of the raw text.

    When only a part of the split was scored (``--trainer.limit_val_batches``), the text counts in proportion to its
    tokens. A text with a ``coverage`` adds the figures of the headline challenge, see `_challenge`.
    """
    whole_nats = nats * text.tokens / tokens
    figures = {"bpb": whole_nats / math.log(2) / text.bytes, "nats_per_char": whole_nats / text.chars}
    coverage = getattr(text, "coverage", None)
    return figures if coverage is None else figures | _challenge(whole_nats, text, coverage)


def _challenge(nats: float, text: ScoredText, coverage: float) -> dict[str, float]:
    """Nats per character where each end mark, as ``<eos>``, is 5 characters long, over every token; and the share of
    the tokens that the challenge's own figure scores. That figure is not among them: it is a sum over those tokens
    alone, which are not as hard as the others on average.
    """
    loss = nats / (text.chars + 4 * text.eos_tokens)  # text.chars holds one newline for each mark
    return {"challenge_loss": loss, "challenge_coverage": coverage}
