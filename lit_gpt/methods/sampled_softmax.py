"""Sampled softmax: in training, the softmax is over a sample of the vocabulary. For models whose LM head is most of the
work.

The sample is the distinct targets of the batch, and random other tokens that are drawn anew in each step. If K of the M
other tokens are drawn, each of them counts M / K times in the sum of exponentials. This makes the sum right on average
(Bengio and Senecal 2008; Jean et al. 2015). Frequent tokens are among the targets of nearly every batch, so that only
the part of rare tokens is estimated.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.loss import IGNORE_INDEX

#: The size of a sample is a multiple of this, because oneDNN compiles a matmul anew for every shape. In bfloat16 that
#: takes 10 to 30 ms, and the matmul of 1,911 targets with 4,352 tokens takes 3 (two threads with AMX).
MULTIPLE = 256


class Sample(NamedTuple):
    """A sample of the vocabulary.

    Args:
        ids: The token ids, (K,).
        shift: The logarithm of how many tokens each of them stands for, (K,) in float32; to be added to their logits.
        targets: The batch's targets as indices into ``ids``; -100 where nothing is scored.
    """

    ids: Tensor
    shift: Tensor
    targets: Tensor


def sample(targets: Tensor, vocab_size: int, n_others: int, multiple: int = 1) -> Sample:
    """Draw a sample: the distinct tokens among ``targets``, and ``n_others`` others or all that there are.

    A few more are drawn, so that the size of the sample is a ``multiple``. On a GPU, a sample is as large as if all
    targets were different, because the CPU would have to wait for the number of different ones.
    """
    if targets.is_cuda:
        return _of_fixed_size(targets, vocab_size, targets.numel() + n_others, multiple)
    is_target = torch.zeros(vocab_size, dtype=torch.bool, device=targets.device)
    is_target[targets[targets != IGNORE_INDEX]] = True
    distinct, others = is_target.nonzero()[:, 0], (~is_target).nonzero()[:, 0]
    n_others += -(len(distinct) + n_others) % multiple
    drawn = others[torch.randperm(len(others), device=others.device)[:n_others]]
    ids = torch.cat((distinct, drawn))  # (K,)
    shift = torch.zeros(len(ids), device=ids.device, dtype=torch.float32)  # whatever the weights are: see `Sample`
    if len(drawn):
        shift[len(distinct) :] = math.log(len(others) / len(drawn))
    return Sample(ids, shift, _as_indices(targets, ids, vocab_size))


def _of_fixed_size(targets: Tensor, vocab_size: int, size: int, multiple: int) -> Sample:
    """A sample of about ``size`` tokens, or the vocabulary: the targets, and as many others as there is room for."""
    size = min(-(-size // multiple) * multiple, vocab_size)
    # One more place, for what is not scored.
    is_target = torch.zeros(vocab_size + 1, device=targets.device, dtype=torch.float32)
    places = torch.where(targets == IGNORE_INDEX, vocab_size, targets).flatten()
    is_target = is_target.scatter_(0, places, 1.0)[:vocab_size]  # `is_target[places] = 1` would copy the 1 to the GPU
    ids = (is_target + torch.rand_like(is_target)).topk(size).indices  # (K,), targets first
    distinct = is_target.sum()
    # clamp: no others are left where all tokens are targets.
    shift = ((vocab_size - distinct) / (size - distinct).clamp(min=1)).clamp(min=1).log() * (1 - is_target[ids])
    return Sample(ids, shift, _as_indices(targets, ids, vocab_size))


def _as_indices(targets: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
    """Targets as indices into ``ids``, which hold each of them."""
    index = torch.empty(vocab_size, dtype=torch.int64, device=ids.device)  # of each token in `ids`, where it is drawn
    index[ids] = torch.arange(len(ids), device=ids.device)
    return torch.where(targets == IGNORE_INDEX, IGNORE_INDEX, index[targets.clamp(min=0)])
