"""Averages of the weights, as callbacks: `TailAverage`, and what it and Lightning's EMAWeightAveraging need to know of
a language model. See docs/ema.md.
"""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

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


def averages_of(trainer: Any) -> list[WeightAveraging]:
    """The averages that a Trainer keeps."""
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]


def widen_averages(trainer: Any, module: LightningModule) -> None:
    """Let a module with averages, and these, be in float64 from the start if the run is.

    The callback builds and copies the module before Lightning converts it. A checkpoint that is loaded would be
    rounded, and so would the weights by a validation, which swaps the two.
    """
    for callback in averages_of(trainer):
        if trainer.precision == "64-true" and callback._average_model is not None:
            module.double()
            callback._average_model.double()


def begin_averages(trainer: Any, module: LightningModule) -> None:
    """Begin a new average from the weights as they are now, on their device, and let it use the module's own buffers.

    The callback copied the module before its weights were read (``init_from``) and its n-grams were counted.

    Raises:
        UserError: It would average token ids or counts, which it rounds down to other ids.
    """
    for callback in averages_of(trainer):
        average = callback._average_model
        assert average is not None  # made in `setup`
        if callback._use_buffers:
            _refuse_whole_numbers(module, type(callback).__name__)
        else:
            _share_buffers(module, average.module)
        if callback._device is None:
            # The callback copied the module before it was moved. Every step would send all weights to the CPU.
            average.module.to(next(module.parameters()).device)
        if not average.n_averaged:
            for averaged, parameter in zip(average.module.parameters(), module.parameters(), strict=True):
                averaged.data.copy_(parameter.data)


def _refuse_whole_numbers(module: LightningModule, callback: str) -> None:
    for name, buffer in module.named_buffers():
        if not buffer.is_floating_point():
            raise UserError(
                f"{callback} would average {name}, which holds whole numbers: add --trainer.callbacks.use_buffers "
                "false behind it."
            )


def _share_buffers(module: LightningModule, copy: nn.Module) -> None:
    layers = dict(copy.named_modules())
    for name, layer in module.named_modules():
        layers[name]._buffers.update(layer._buffers)


def may_be_swapped(trainer: Trainer) -> bool:
    """Whether the module may hold an average instead of its own weights, as it does while it is validated."""
    return trainer.validating and bool(averages_of(trainer))
