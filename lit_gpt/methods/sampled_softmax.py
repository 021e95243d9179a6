"""The softmax over a sample of the vocabulary, for a training whose head is most of its work.

The tokens that a batch has as targets, and others drawn anew in each step, stand for the whole vocabulary: all others
are equally likely to be drawn, so each stands for as many as it was drawn from, and the sum of exponentials is right
on average (Bengio and Senecal 2008; Jean et al. 2015). Frequent tokens are among the targets of nearly every batch, so
what is estimated is the rare ones' part of the sum.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.loss import IGNORE_INDEX

#: Samples have few sizes, because oneDNN compiles a product anew for each: 10 to 30 ms in bfloat16, where a product of
#: 1,911 targets and 4,352 tokens takes 3 (two threads with AMX).
MULTIPLE = 256


class Sample(NamedTuple):
    """Tokens that stand for the vocabulary.

    Args:
        ids: Their ids, (K,).
        shift: To be added to their logits, (K,): the logarithm of how many tokens each stands for.
        targets: The batch's targets as places in ``ids``; -100 where nothing is scored.
    """

    ids: Tensor
    shift: Tensor
    targets: Tensor


def sample(targets: Tensor, vocab_size: int, others: int, multiple: int = 1) -> Sample:
    """The distinct tokens among ``targets`` and so many ``others`` of the vocabulary, a few more to fill up a
    ``multiple``, or all others where there are no more.
    """
    wanted = torch.zeros(vocab_size, dtype=torch.bool, device=targets.device)
    wanted[targets[targets != IGNORE_INDEX]] = True
    own, rest = wanted.nonzero()[:, 0], (~wanted).nonzero()[:, 0]
    others += -(len(own) + others) % multiple
    drawn = rest[torch.randperm(len(rest), device=rest.device)[:others]]
    ids = torch.cat((own, drawn))
    shift = torch.zeros(len(ids), device=ids.device)
    if len(drawn):
        shift[len(own) :] = math.log(len(rest) / len(drawn))
    place = torch.empty(vocab_size, dtype=torch.int64, device=ids.device)
    place[ids] = torch.arange(len(ids), device=ids.device)
    return Sample(ids, shift, torch.where(targets == IGNORE_INDEX, IGNORE_INDEX, place[targets.clamp(min=0)]))
