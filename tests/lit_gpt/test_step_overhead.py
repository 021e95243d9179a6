"""What a training step looks up once and keeps: it must not be of another run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.batches import MicroBatches
from datamodules.rows import Rows
from datamodules.step_size import RankShare
from lit_gpt import LitGPT
from lit_gpt.config import GPTConfig
from lit_gpt.optim import OptimizerConfig


class WithTemperature(LitGPT):
    """Has a parameter outside of ``net``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = nn.Parameter(torch.ones(()))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Its gradient is the loss, far above the other gradients."""
        return super().training_step(batch, batch_idx) * self.temperature

    def on_before_zero_grad(self, optimizer: Any) -> None:
        """Not in the optimizer: forget the last step's gradient."""
        self.temperature.grad = None

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Note the norm of all gradients, by a sum of squares."""
        super().on_before_optimizer_step(optimizer)
        self.norms = [*getattr(self, "norms", []), sum(float(p.grad.square().sum()) for p in self.parameters()) ** 0.5]


def train(model: LitGPT, folder: Path) -> None:
    torch.manual_seed(0)
    ids = torch.randint(20, (4, 17))
    batches: Any = [{"input_ids": ids[:, :-1], "targets": ids[:, 1:]}]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(**quiet, max_steps=2, default_root_dir=folder, enable_checkpointing=False, gradient_clip_val=1e-3)
    trainer.fit(model, DataLoader(batches, batch_size=None))


def module() -> WithTemperature:
    torch.manual_seed(0)
    config = GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16, vocab_size=20, init="normal")
    return WithTemperature(config=config, optimizer=OptimizerConfig(kind="sgd", lr=0.1, schedule="constant"))


def test_each_run_clips_the_parameters_that_the_module_has_in_it(tmp_path: Path) -> None:
    model = module()
    train(model, tmp_path)
    assert float(model.grad_norm) == pytest.approx(model.norms[-1], rel=1e-5)  # type: ignore[arg-type]
    model.temperature = nn.Parameter(torch.full((), 2.0))  # another one, for the second run
    train(model, tmp_path)
    assert float(model.grad_norm) == pytest.approx(model.norms[-1], rel=1e-5)  # type: ignore[arg-type]
    assert float(model.temperature.grad.abs()) < 1.1e-3  # type: ignore[union-attr]  # clipped with the others


class Numbered(Rows):
    """Rows whose batch is their own numbers."""

    def __init__(self, count: int, seed: int | None) -> None:
        self.count, self.seed = count, seed

    def batch(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"rows": rows}


@pytest.mark.parametrize("seed", [None, 3])
def test_a_micro_batch_has_its_own_rows_in_any_order_of_asking(seed: int | None) -> None:
    rows = Numbered(1201, seed)
    share = RankShare(rows.count, 12, 3, rank=1, world=2)
    data = MicroBatches(rows, share)
    asked = [(0, 0), (0, 31), (0, 32), (1, 32), (0, 1), (0, len(data) - 1), (1, len(data) - 1), (1, 0)]
    for epoch, item in asked:
        alone = MicroBatches(rows, share).rows_at(epoch, share.positions(item))
        np.testing.assert_array_equal(data[epoch, item]["rows"].numpy(), alone)


class Interrupted(MicroBatches):
    """Another thread asks for a row of another group whenever one has been looked up, as in reading ahead."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_rows" and value is not None and value[1] == 0:
            self[0, 40]


def test_a_micro_batch_has_its_own_rows_where_threads_read_ahead() -> None:
    rows, share = Numbered(1201, 3), RankShare(1201, 12, 3, rank=1, world=2)
    expected = MicroBatches(rows, share)[0, 5]["rows"]
    assert torch.equal(Interrupted(rows, share)[0, 5]["rows"], expected)
