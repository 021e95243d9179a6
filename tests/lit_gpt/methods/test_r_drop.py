"""R-Drop: the paper's loss and its gradient, over micro-batches, and from a share of the run on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.errors import UserError
from lit_gpt import ExtendedGPTConfig, LitExtendedGPT, loss
from lit_gpt.checkpoint import load
from lit_gpt.cli.lightning_cli import run
from lit_gpt.loss import LossInputs
from lit_gpt.methods.r_drop import r_drop_sum
from lit_gpt.optim import OptimizerConfig
from tests.lit_gpt.cli.conftest import rows as rows_of
from tests.lit_gpt.conftest import Problem, head, no_head
from tests.lit_gpt.test_language_model import SMALL, Passes, joined, rows, trainer, weights_after_a_step


def naive_r_drop(logits: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Token by token as the paper writes it, halved: logits (2, B, T, V)."""
    nats, kl = torch.zeros(()), torch.zeros(())
    for b, t in (targets != loss.IGNORE_INDEX).nonzero().tolist():
        p, q = logits[:, b, t].softmax(-1)
        nats = nats - (p[targets[b, t]].log() + q[targets[b, t]].log()) / 2
        kl = kl + ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    return nats + alpha * kl / 2, nats, kl


@pytest.mark.parametrize("held", [11, 66, 10_000])  # one target at a time, three, all
@pytest.mark.parametrize("cap", [None, 1.5])
def test_r_drop_and_its_gradients_equal_the_papers_halved(
    problem: Problem, held: int, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, weights, targets = problem
    passes = torch.stack((first, first + torch.randn_like(first) / 2))

    def capped(hidden: Tensor, weights: list[Tensor]) -> Tensor:
        logits = head(hidden, weights)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    naive = naive_r_drop(capped(passes, weights), targets, alpha=3.0)
    expected = torch.autograd.grad(naive[0] / 7, (first, *weights), retain_graph=True)
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
    monkeypatch.setattr(loss, "LOGITS_IN_CACHE", 44)  # of four targets
    ours = r_drop_sum(passes, LossInputs(capped, weights, targets, 11), 3.0)
    torch.testing.assert_close(ours, naive)
    assert [figure.requires_grad for figure in ours] == [True, False, False]
    found = torch.autograd.grad(ours[0] / 7, (first, *weights))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_both_passes_count_as_logits_that_are_held(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weights, targets = problem
    sizes: list[int] = []

    def noted(h: Tensor, weights: list[Tensor]) -> Tensor:
        sizes.append(h.shape[:-1].numel() * 11)
        return head(h, weights)

    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", 44)
    r_drop_sum(torch.stack((hidden, hidden)), LossInputs(noted, weights, targets, 11), 1.0)
    assert max(sizes) <= 44
    assert sum(sizes) == 2 * targets.numel() * 11


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-6), (torch.bfloat16, 0.005)])
def test_a_shift_is_added_to_the_logits_in_float32(dtype: torch.dtype, off: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 30, 11).to(dtype).requires_grad_()
    targets, shift = torch.randint(11, (2, 30)), torch.linspace(0, 1.7, 11)
    plain = F.cross_entropy((logits + shift).flatten(0, 2), targets.flatten().repeat(2), reduction="sum") / 2
    ours = r_drop_sum(logits, LossInputs(no_head, [], targets, 11, shift), 0)[0]
    torch.testing.assert_close(ours, plain)
    found, expected = (torch.autograd.grad(value, logits)[0].float() for value in (ours, plain))
    assert (found - expected).norm() <= off * expected.norm()


def test_r_drop_of_equal_passes_is_their_cross_entropy(problem: Problem) -> None:
    hidden, weights, targets = problem
    plain = loss.cross_entropy_sum(hidden, head, weights, targets, 11)
    total, nats, kl = r_drop_sum(torch.stack((hidden, hidden)), LossInputs(head, weights, targets, 11), 5.0)
    assert kl == 0
    torch.testing.assert_close((total, nats), (plain, plain.detach()))
    gradients = [torch.autograd.grad(value, hidden, retain_graph=True)[0] for value in (total, plain)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][0, :2] == 0).all()  # unscored places


def test_r_drop_under_autocast_measures_distance_in_float32(problem: Problem) -> None:
    _, _, targets = problem
    passes = torch.randn(2, *targets.shape, 11)
    expected = r_drop_sum(passes, LossInputs(no_head, [], targets, 11), 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = r_drop_sum(passes, LossInputs(no_head, [], targets, 11), 2.0)
    assert found == expected


def test_what_unscored_targets_predict_does_not_count(problem: Problem) -> None:
    hidden, weights, targets = problem
    passes = torch.stack((hidden, hidden * 0.9)).detach().requires_grad_()
    total = r_drop_sum(passes, LossInputs(head, weights, targets, 11), 2.0)[0]
    gradient = torch.autograd.grad(total, passes)[0]  # (2, B, T, C)
    unscored = targets == loss.IGNORE_INDEX
    assert (gradient[:, unscored] == 0).all()
    assert (gradient[:, ~unscored].abs().amax(-1) > 0).all()


class FixedDropout(LitExtendedGPT):
    """The first pass over each row drops nothing, the second the same channels in every row, so that rows may be
    dealt out to micro-batches in any way.
    """

    def _hidden(self, batch: dict[str, torch.Tensor], net: Any) -> torch.Tensor:
        self.reads = getattr(self, "reads", 0) + 1
        hidden = super()._hidden(batch, net)
        return hidden * (torch.arange(hidden.size(-1)) % 4 > 0) * 4 / 3 if self.reads % 2 == 0 else hidden


def r_drop_step(batches: list[dict[str, torch.Tensor]], folder: Path, **options: Any) -> FixedDropout:
    torch.manual_seed(0)
    optimizer = OptimizerConfig(kind="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
    config = ExtendedGPTConfig(**SMALL, vocab_size=20, init="normal", dropout=1e-9)
    model = FixedDropout(config, optimizer, r_drop=2.0)
    trainer(folder, max_steps=1, **options).fit(model, DataLoader(batches, batch_size=None))
    return model


def test_r_drop_weighs_tokens_not_micro_batches(tmp_path: Path) -> None:
    uneven = rows(*[16, 3, 9, 1] * 8)
    fours = [joined(uneven[i : i + 8]) for i in range(0, 32, 8)]
    together = r_drop_step([joined(uneven)], tmp_path)
    accumulated = r_drop_step(fours, tmp_path, accumulate_grad_batches=4)
    assert together.step_metrics["r_drop"] > 1e-4
    torch.testing.assert_close(accumulated.step_metrics, together.step_metrics)
    torch.testing.assert_close(accumulated.state_dict(), together.state_dict())
    plain = weights_after_a_step([joined(uneven)], tmp_path)
    assert not torch.allclose(plain[0], next(together.parameters()), atol=1e-6)


def test_the_loss_under_r_drop_is_the_cross_entropy_of_both_passes(tmp_path: Path) -> None:
    batch = joined(rows(16, 3, 9, 1))
    model = r_drop_step([batch], tmp_path)
    torch.manual_seed(0)
    fresh = FixedDropout(model.config, model.optimizer_config, r_drop=2.0)
    fresh.configure_model()
    expected = (fresh.batch_cross_entropy(batch, fresh.net) + fresh.batch_cross_entropy(batch, fresh.net)) / (2 * 29)
    torch.testing.assert_close(model.step_loss, expected.detach())


def test_r_drop_without_dropout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"r_drop 2.0 .* config\.dropout is 0: set it"):
        trainer(tmp_path).fit(
            LitExtendedGPT(ExtendedGPTConfig(**SMALL, vocab_size=20), r_drop=2.0), DataLoader(rows(16))
        )
    with pytest.raises(UserError, match=r"r_drop is -1\.0: give 0"):
        LitExtendedGPT(ExtendedGPTConfig(**SMALL, dropout=0.1), r_drop=-1.0)
    for wrong in (1.0, -0.5):
        with pytest.raises(UserError, match=r"r_drop_start is .* give a share"):
            LitExtendedGPT(ExtendedGPTConfig(**SMALL, dropout=0.1), r_drop=1.0, r_drop_start=wrong)


def test_a_second_fit_of_a_module_begins_anew(tmp_path: Path) -> None:
    model = LitExtendedGPT(ExtendedGPTConfig(**SMALL, vocab_size=20, dropout=0.1), r_drop=1.0, r_drop_start=0.5)
    for _ in range(2):
        passes = Passes()
        trainer(tmp_path, max_steps=4, callbacks=[passes]).fit(model, DataLoader(rows(*[16] * 4), batch_size=None))
        assert passes.seen == [1, 1, 2, 2]


# ---- on the command line

Fit = Callable[..., Path]
EXTENDED = ("--model", "LitExtendedGPT")


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_r_drop_by_one_key(kind: str, fit: Fit) -> None:
    with pytest.raises(UserError, match="passes that differ by dropout alone"):
        fit(*EXTENDED, "--model.r_drop", "1.0")
    folder = fit(*EXTENDED, "--model.r_drop", "1.0", f"--model.config.{kind}", "0.2", "--model.optimizer.lr", "0.01")
    found = [(float(row["train/loss"]), float(row["train/r_drop"])) for row in rows_of(folder) if row["train/loss"]]
    assert len(found) == 6
    assert all(0 < kl < loss for loss, kl in found[1:])


@pytest.mark.slow  # 2.5 s
def test_r_drop_begins_at_its_share_of_the_run(fit: Fit) -> None:
    flags = (*EXTENDED, "--model.config.dropout", "0.1", "--model.optimizer.lr", "0.01")
    late = rows_of(fit(*flags, "--model.r_drop", "1.0", "--model.r_drop_start", "0.5"))
    plain = rows_of(fit(*flags))
    losses = [[(row["step"], row["train/loss"]) for row in found if row["train/loss"]] for found in (late, plain)]
    assert losses[0][:3] == losses[1][:3]
    assert losses[0][3:] != losses[1][3:]
    assert [row["step"] for row in late if row["train/r_drop"]] == ["4", "5", "6"]
    endless = ("--trainer.max_steps", "-1", "--trainer.max_epochs", "-1", "--model.optimizer.schedule", "constant")
    with pytest.raises(UserError, match="r_drop_start needs an end"):
        fit(*flags, "--model.r_drop", "1.0", "--model.r_drop_start", "0.5", *endless)
    assert not Path("logs/run/version_2").exists()
    off = fit(*flags, "--model.r_drop", "0", "--model.r_drop_start", "0.5")
    assert [row["train/loss"] for row in rows_of(off)] == [row["train/loss"] for row in plain]


def test_utilisation_counts_every_pass_over_a_batch(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gpt.callbacks.throughput.peak_flops", lambda device: 1e12)
    flags = (*EXTENDED, "--model.config.dropout", "0.1", "--trainer.log_every_n_steps", "1")
    for passes, more in ((1, ()), (2, ("--model.r_drop", "1.0"))):
        folder = fit(*flags, *more)
        flops = passes * (load(folder).net.flops_per_token() or 0)
        logged = [row for row in rows_of(folder) if row["train/mfu"]]
        assert len(logged) == 6
        for row in logged:
            assert float(row["train/mfu"]) == pytest.approx(float(row["train/tokens_per_second"]) * flops / 1e12)


def test_an_option_of_training_does_not_stop_the_other_verbs(fit: Fit, text: Path) -> None:
    flags = [*EXTENDED, "--ckpt_path", str(fit(*EXTENDED)), "--data.source", str(text), "--trainer.accelerator", "cpu"]
    run("validate", [*flags, "--model.r_drop", "1.0"])
