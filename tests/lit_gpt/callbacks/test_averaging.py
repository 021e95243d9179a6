"""EMAWeightAveraging of Lightning, and `TailAverage`: the average by hand, exact resume, and what is refused. See
docs/ema.md.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from datamodules.errors import UserError
from lit_gpt.averaging import TailAverage, averaged, begin_averages
from lit_gpt.cli.lightning_cli import run

Fit = Callable[..., Path]
Weights = dict[str, Tensor]
EMA = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay", "0.5"]
EMA += ["--trainer.callbacks.use_buffers", "false"]
TAIL = ["--trainer.callbacks+=TailAverage", "--trainer.callbacks.share"]
HERE = "--trainer.callbacks+=tests.lit_gpt.callbacks.test_averaging"
SHORT = ["--model.optimizer.schedule", "constant", "--data.train_eval_rows", "4"]
#: Dropout needs the random state; n-grams are counted and token parts are looked up after the callback's set-up.
EVERY = ["--model", "LitExtendedGPT", "--model.config.dropout", "0.2", "--model.config.kneser_ney", "2"]
EVERY += ["--model.config.ngrams", "[2]", "--model.config.ngram_rows", "64", "--model.config.token_parts", "true"]


class Recorder(Callback):
    """Keeps the weights after each step."""

    weights: ClassVar[list[Weights]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *batch: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in module.named_parameters()})


class FailingValidation(Callback):
    """Raises in the second validation."""

    def on_validation_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 6:
            raise ZeroDivisionError


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoints_hold_the_average_and_are_scored_as_in_fit(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Recorder.weights.clear()
    folder = fit(*SHORT, *EMA, f"{HERE}.Recorder")
    average = Recorder.weights[0]
    for weights in Recorder.weights[1:]:
        average = {name: 0.5 * average[name] + 0.5 * weights[name] for name in average}
    state = saved(folder)
    for name, value in average.items():
        assert torch.allclose(state["state_dict"][name], value, atol=1e-7), name
        assert torch.equal(state["current_model_state"][name], Recorder.weights[-1][name])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step 6  val"))
    run("validate", ["--ckpt_path", str(folder), "--trainer.accelerator", "cpu"])
    assert line.removeprefix("step 6  ") in capsys.readouterr().out


def test_the_tail_average_of_a_whole_run_is_the_mean_of_all_steps(fit: Fit) -> None:
    Recorder.weights.clear()
    average = saved(fit(*SHORT, *TAIL, "1", f"{HERE}.Recorder"))["state_dict"]
    for name in Recorder.weights[0]:
        mean = torch.stack([weights[name] for weights in Recorder.weights]).mean(0)
        assert torch.allclose(average[name], mean, atol=1e-6), name


def test_most_of_a_tail_average_is_from_the_last_share_of_the_run() -> None:
    """After 1,000 steps, step s counts in proportion to s^3 with a share of 0.25: found by averaging unit vectors."""
    average, steps = torch.zeros(1000, dtype=torch.float64), torch.eye(1000, dtype=torch.float64)
    for done, weights in enumerate(steps):
        average = averaged(average, weights, torch.tensor(done), share=0.25)
    expected = torch.arange(1, 1001, dtype=torch.float64) ** 3
    assert torch.allclose(average, expected / expected.sum(), atol=1e-5)
    assert average[750:].sum() > 0.68
    with pytest.raises(UserError, match="share is 0: give a share of the run"):
        TailAverage(0)


@pytest.mark.parametrize(
    "options",
    [EMA, pytest.param([*EMA, *EVERY], marks=pytest.mark.slow), [*TAIL, "0.5"]],
    ids=["gpt", "every method", "tail"],
)
def test_a_resumed_run_is_the_straight_one_bit_for_bit(options: list[str], fit: Fit) -> None:
    straight = saved(fit(*options, *SHORT, "--name", "straight", runs="straight"))
    first = fit(*options, *SHORT, "--trainer.max_steps", "3", "--name", "parts", runs="parts")
    resumed = saved(fit(*options, *SHORT, "--name", "parts", "--ckpt_path", str(first), runs="parts"))
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert same(resumed[part], straight[part]), part
    assert int(resumed["averaging_state"]["n_averaged"]) == 6
    assert not same(resumed["state_dict"], resumed["current_model_state"])


def test_a_failed_validation_never_saves_the_average_as_the_weights(fit: Fit) -> None:
    """While it is validated, the module holds the average."""
    with pytest.raises(ZeroDivisionError):
        fit(*SHORT, *EMA, f"{HERE}.FailingValidation", "--checkpoint.every_n_steps", "1")
    (folder,) = Path("logs/run").iterdir()
    straight = saved(fit(*SHORT, *EMA, "--name", "straight", "--trainer.max_steps", "5", runs="straight"))
    left = saved(folder)
    assert left["global_step"] == 5
    for part in ("state_dict", "current_model_state"):
        assert same(left[part], straight[part])


def test_the_first_validation_of_published_weights_is_of_them(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(*SHORT)
    capsys.readouterr()
    still = ["--model.optimizer.lr", "0", "--val_at_start", "true", "--model.init_from", str(folder)]
    fit(*SHORT, *EMA, *still, "--name", "from")
    losses = [line.split()[3] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(losses) == 3
    assert len(set(losses)) == 1


@pytest.mark.parametrize(("device", "found"), [(None, "meta"), ("cpu", "cpu")])
def test_the_average_is_on_the_device_of_the_weights(device: str | None, found: str) -> None:
    """The callback makes it before the network is moved, here to the device `meta`."""
    callback = EMAWeightAveraging(device, use_buffers=False)
    callback._average_model = average = AveragedModel(nn.Linear(2, 2), device="cpu")
    average.n_averaged += 1  # so that nothing is copied from `meta`, which holds nothing
    moved: Any = nn.Linear(2, 2, device="meta")
    begin_averages(SimpleNamespace(callbacks=[callback]), moved)
    assert {parameter.device.type for parameter in average.parameters()} == {found}


def test_weights_of_float64_are_rounded_neither_by_a_validation_nor_by_a_resume(fit: Fit) -> None:
    flags = [*SHORT, *EMA, "--trainer.precision", "64-true", "--trainer.val_check_interval"]
    first = fit(*flags, "1", "--trainer.max_steps", "2", "--name", "parts", runs="parts")
    often = saved(
        fit(*flags, "1", "--trainer.max_steps", "3", "--ckpt_path", str(first), "--name", "parts", runs="parts")
    )
    seldom = saved(fit(*flags, "3", "--trainer.max_steps", "3"))
    for part in ("state_dict", "current_model_state"):
        assert {weights.dtype for weights in often[part].values()} == {torch.float64}
        assert same(often[part], seldom[part]), part


def test_averages_of_token_ids_are_refused(fit: Fit) -> None:
    with pytest.raises(UserError, match=r"EMAWeightAveraging would average net\..*use_buffers false"):
        fit(*EVERY, *EMA[:3])
    fit(*EMA[:3], "--trainer.max_steps", "1")  # a GPT has none
