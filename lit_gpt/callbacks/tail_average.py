"""An average of the weights over the last part of the run so far, as `fit` evaluates and saves it."""

from functools import partial

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from datamodules.errors import UserError


class TailAverage(WeightAveraging):
    """Evaluate and save an average of the weights instead of the last ones (power-function EMA, Karras et al. 2024).

    After t steps the weights of step s count in proportion to s^(1 / share - 1), so most of the average is from the
    last ``share`` of the run so far. Unlike with `EMAWeightAveraging`, whose decay is for one length of run, a short
    run and the first evaluations of a long one are averaged as well as its end. docs/ema.md tells what it shares with
    that callback.

    Args:
        share: Share of the run, above 0 and up to 1, that the average covers: 0.25 for its last quarter.
    """

    def __init__(self, share: float = 0.25) -> None:
        if not 0 < share <= 1:
            raise UserError(f"share is {share}: give a share of the run, above 0 and up to 1.")
        super().__init__(use_buffers=False, avg_fn=partial(averaged, share=share))


def averaged(average: Tensor, weights: Tensor, steps: Tensor, share: float) -> Tensor:
    """The average with one step more; ``steps`` are in it."""
    gain = (1 / (share * (steps + 1))).clamp(max=1)
    return torch.lerp(average, weights, gain.to(average.dtype))
