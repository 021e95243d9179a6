"""What tests of several losses share: a problem, and its head."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt import loss

Problem = tuple[Tensor, list[Tensor], Tensor]


@pytest.fixture
def problem() -> Problem:
    """Hidden states (B, T, C), weight and bias of a head, and targets (B, T), two of them unscored."""
    torch.manual_seed(0)
    hidden, linear = torch.randn(3, 5, 8, requires_grad=True), nn.Linear(8, 11)
    targets = torch.randint(11, (3, 5))
    targets[0, :2] = loss.IGNORE_INDEX
    return hidden, list(linear.parameters()), targets


def head(hidden: Tensor, weights: list[Tensor]) -> Tensor:
    return F.linear(hidden, *weights)


def no_head(hidden: Tensor, weights: list[Tensor]) -> Tensor:
    """For hidden states that are the logits."""
    return hidden
