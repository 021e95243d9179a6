"""Networks that learn side by side: each as if alone, all together better, and one checkpoint for all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import lit_gpt
from datamodules.errors import UserError
from lit_gpt import LitExtendedGPT, muon
from lit_gpt.cli.lightning_cli import run
from lit_gpt.commands.export import export
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.ensemble import GPTEnsemble
from lit_gpt.model import TokenEmbedding
from lit_gpt.optim import OptimizerConfig, parameter_groups
from tests.lit_gpt.test_language_model import SMALL, joined, rows, trainer
from tests.lit_gpt.test_model import small, tokens

Fit = Callable[..., Path]
TWO = ("--model", "LitExtendedGPT", "--model.config.members", "2")


def trained(folder: Path, members: int, weights: dict[str, Any] | None = None, **options: Any) -> LitExtendedGPT:
    """A module after three steps of Muon, from given weights where there are some."""
    torch.manual_seed(0)
    config = ExtendedGPTConfig(**SMALL, vocab_size=20, members=members, **options)
    model = LitExtendedGPT(config, OptimizerConfig(kind="muon", schedule="constant"))
    model.configure_model()
    if weights is not None:
        model.net.load_state_dict(weights)
    model.begun = {name: value.clone() for name, value in model.net.state_dict().items()}
    batches = [joined(rows(16, 3, 9, 1)), joined(rows(5, 16)), joined(rows(8, 8))]
    trainer(folder, max_steps=3, gradient_clip_val=0.1).fit(model, DataLoader(batches, batch_size=None))
    return model


def test_each_member_learns_as_if_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # bfloat16 would round Muon's products of two matrices at once otherwise than those of one.
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: False)
    together = trained(tmp_path, 2)
    losses, norms = [], []
    for number, member in enumerate(together.net.trained_nets()):
        start = f"members.{number}."
        weights = {name.removeprefix(start): w for name, w in together.begun.items() if name.startswith(start)}
        alone = trained(tmp_path, 1, weights)
        losses.append(alone.step_loss)
        norms.append(alone.grad_norm)
        torch.testing.assert_close(member.state_dict(), alone.net.state_dict())
        assert not torch.equal(member.blocks[0].mlp.fc.weight, weights["blocks.0.mlp.fc.weight"])
    torch.testing.assert_close(together.step_loss, torch.stack(losses).mean())
    torch.testing.assert_close(together.grad_norm, torch.stack(norms).mean())
    assert min(norms) > 0.1


def test_the_ensemble_predicts_better_than_its_members_on_average() -> None:
    net, ids = small(members=3), tokens(4, 33)
    inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
    each = torch.stack([member(inputs) for member in net.members])  # (3, B, T, V)
    torch.testing.assert_close(net(inputs), each.mean(0))
    losses = torch.stack([F.cross_entropy(logits.flatten(0, 1), targets) for logits in each])
    assert losses.std() > 0.01
    assert F.cross_entropy(net(inputs).flatten(0, 1), targets) < losses.mean() - 0.01


def test_the_mean_of_bfloat16_logits_is_float32() -> None:
    net, ids = small(members=3), tokens(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        each, mean = torch.stack([member(ids).float() for member in net.members]), net(ids)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, each.mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"tied_head": True}, {"bias_head": True, "pad_vocab_to": 64}], ids=str)
def test_what_is_scored_is_the_common_prediction(more: dict[str, Any]) -> None:
    model = LitExtendedGPT(ExtendedGPTConfig(**SMALL, vocab_size=20, members=3, **more))
    model.configure_model()
    batch = joined(rows(16, 9))
    expected = F.cross_entropy(model.net(batch["input_ids"]).mT, batch["targets"], reduction="none", ignore_index=-100)
    torch.testing.assert_close(model.token_scores(batch)[0], expected)
    assert expected[0].std() > 0
    first, *others = (member.wte.weight for member in model.net.members)
    assert not any(torch.equal(first, other) for other in others), "members begin alike"


def test_sizes_and_groups_are_those_of_all_members() -> None:
    one, three = small(), small(members=3)
    assert three.num_parameters() == 3 * one.num_parameters() == sum(p.numel() for p in three.parameters())
    assert three.flops_per_token() == 3 * one.flops_per_token()
    single, several = parameter_groups(one), parameter_groups(three)
    assert {name: 3 * len(found) for name, found in single.items()} == {name: len(f) for name, f in several.items()}
    assert len(several["head"]) == 3


def whole_and_gone_on(fit: Fit, *flags: str) -> tuple[Path, str, float]:
    """A run of 6 steps; the last checkpoint of one that stopped after 3 and went on; the last loss that both share."""
    whole = fit(*flags, "--trainer.max_steps", "6")
    cut = fit(*flags, "--trainer.max_steps", "3")
    path = str(cut / "checkpoints" / "last.ckpt")
    fit(*flags, "--trainer.max_steps", "6", "--ckpt_path", path)
    losses = [final_loss(folder) for folder in (whole, cut)]
    assert losses[0] == losses[1]
    return whole, path, losses[0]


def final_loss(folder: Path) -> float:
    return float(json.loads((folder / "summary.json").read_text())["final"]["val/loss"])


@pytest.mark.slow
def test_a_run_of_an_ensemble_is_kept_goes_on_and_writes(
    fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*TWO, "--model.config.dropout", "0.1", "--model.r_drop", "1.0", "--model.config.token_parts", "true")
    flags = (*flags, "--model.optimizer.schedule", "constant")
    whole, path, loss = whole_and_gone_on(fit, *flags)
    model = lit_gpt.load(whole)
    assert isinstance(model.net, GPTEnsemble)
    assert len(model.generate("the", max_new_tokens=40, seed=1, stop=[])[0]) == 40
    assert model.generate("the", seed=1) == model.generate("the", seed=1, cache=False)
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert weights["net.members.1.wte.parts.table"].any()
    assert [type(gpt.wte) for gpt in model.net.trained_nets()] == [TokenEmbedding] * 2  # the parts are folded
    capsys.readouterr()
    run("validate", ["--ckpt_path", str(whole), "--data.source", str(text), "--trainer.accelerator", "cpu"])
    assert f"val {loss:.4f}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"the checkpoint has members 2, not members 1: set --model\.config\.members 2"):
        fit(*flags, "--model.config.members", "1", "--trainer.max_steps", "9", "--ckpt_path", path)
    with pytest.raises(UserError, match="holds a GPTEnsemble, and only one GPT can be started from"):
        fit("--model.init_from", path)
    with pytest.raises(UserError, match="a GPTEnsemble has no counterpart at Hugging Face"):
        export(path, "out")
    export(path, "out", "safetensors")
    assert "init_from" not in capsys.readouterr().out


@pytest.mark.parametrize("members", [0, -1])
def test_an_ensemble_of_none_is_refused(members: int) -> None:
    with pytest.raises(ValueError, match=f"members is {members}: give at least 1"):
        ExtendedGPTConfig(members=members)


def test_weights_of_one_gpt_do_not_start_an_ensemble(fit: Fit) -> None:
    path = str(fit() / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="init_from starts one GPT, and this network has 2"):
        fit(*TWO, "--model.init_from", path)
