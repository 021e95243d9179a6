"""Metrics of the next-sentence head: sums over all labelled pairs, so that 1 and N processes report the same values."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from lit_gpt.loss import IGNORE_INDEX, at_least_float32


class PairMetrics(Metric):
    """Mean cross-entropy and accuracy over the pairs with a label."""

    full_state_update = False
    nats: Tensor
    pairs: Tensor
    right: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nats", torch.zeros(()), dist_reduce_fx="sum")
        for name in ("pairs", "right"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch: logits (B, 2) and labels (B,), -100 for a row without one."""
        labelled = labels != IGNORE_INDEX
        # bf16-true casts every state to bfloat16.
        self.nats = self.nats.float() + pair_cross_entropy(logits, labels).float()
        self.pairs += labelled.sum()
        self.right += (labelled & (logits.argmax(1) == labels)).sum()

    def compute(self) -> dict[str, Tensor]:
        """``nsp_loss`` in nats per pair, and ``nsp_accuracy`` as a fraction; nothing if no pair had a label."""
        if not self.pairs:
            return {}
        return {"nsp_loss": self.nats / self.pairs, "nsp_accuracy": self.right / self.pairs}


def pair_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the pairs with a label, in nats. Label 0 is one like any other: only -100 is none."""
    return F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE_INDEX, reduction="sum")
