"""A sample of the vocabulary stands for all of it: which tokens it holds, that it is right on average, when it ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.errors import UserError
from lit_gpt import LitExtendedGPT, loss
from lit_gpt.methods import module as module_gpt
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.extended_gpt import ExtendedGPT
from lit_gpt.methods.sampled_softmax import _of_fixed_size, sample
from lit_gpt.model import GPT
from lit_gpt.optim import OptimizerConfig
from tests.lit_gpt.test_language_model import SMALL, joined, rows, trainer

TARGETS = torch.tensor([[7, 2, loss.IGNORE_INDEX, 7], [39, loss.IGNORE_INDEX, 2, 0]])


def test_a_sample_holds_the_targets_once_and_others() -> None:
    found = sample(TARGETS, 40, 10)
    assert found.ids[:4].tolist() == [0, 2, 7, 39]
    assert len(set(found.ids.tolist())) == len(found.ids) == 14
    assert found.shift[:4].tolist() == [0] * 4
    torch.testing.assert_close(found.shift[4:].exp(), torch.full((10,), 36 / 10))
    scored = TARGETS != loss.IGNORE_INDEX
    assert (found.targets[~scored] == loss.IGNORE_INDEX).all()
    assert torch.equal(found.ids[found.targets[scored]], TARGETS[scored])


@pytest.mark.parametrize(("others", "size"), [(10, 16), (12, 16), (13, 24), (35, 40)])
def test_others_fill_up_a_multiple_as_far_as_there_are_any(others: int, size: int) -> None:
    found = sample(TARGETS, 40, others, multiple=8)
    assert len(found.ids) == len(set(found.ids.tolist())) == size
    torch.testing.assert_close(found.shift[4:].exp(), torch.full((size - 4,), 36 / (size - 4)))


def test_others_change_from_step_to_step() -> None:
    assert set(sample(TARGETS, 400, 10).ids.tolist()) != set(sample(TARGETS, 400, 10).ids.tolist())


@pytest.mark.parametrize("targets", [TARGETS, torch.full((2, 4), loss.IGNORE_INDEX), torch.arange(40)])
def test_a_sample_of_all_is_the_vocabulary(targets: torch.Tensor) -> None:
    found = sample(targets, 40, 50)
    assert sorted(found.ids.tolist()) == list(range(40))
    assert (found.shift == 0).all()


def test_the_sum_of_exponentials_is_right_on_average() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40)
    sums = [(logits[found.ids] + found.shift).exp().sum() for found in (sample(TARGETS, 40, 10) for _ in range(4000))]
    assert torch.stack(sums).mean().item() == pytest.approx(logits.exp().sum().item(), rel=0.01)


@pytest.mark.parametrize(("size", "multiple", "drawn"), [(14, 1, 14), (13, 8, 16), (4, 1, 4), (39, 8, 40), (90, 8, 40)])
def test_a_sample_of_fixed_size_holds_the_targets_and_others(size: int, multiple: int, drawn: int) -> None:
    found = _of_fixed_size(TARGETS, 40, size, multiple)
    assert len(set(found.ids.tolist())) == len(found.ids) == drawn
    scored = TARGETS != loss.IGNORE_INDEX
    assert (found.targets[~scored] == loss.IGNORE_INDEX).all()
    assert torch.equal(found.ids[found.targets[scored]], TARGETS[scored])
    is_target = torch.isin(found.ids, TARGETS)
    assert (found.shift[is_target] == 0).all()
    torch.testing.assert_close(found.shift[~is_target].exp(), torch.full((drawn - 4,), 36 / max(drawn - 4, 1)))


def test_its_sum_of_exponentials_is_right_on_average_and_a_sample_of_all_is_the_vocabulary() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40)
    found = [_of_fixed_size(TARGETS, 40, 14, 1) for _ in range(4000)]
    sums = [(logits[one.ids] + one.shift).exp().sum() for one in found]
    assert torch.stack(sums).mean().item() == pytest.approx(logits.exp().sum().item(), rel=0.01)
    for targets in (torch.arange(40), torch.full((2, 4), loss.IGNORE_INDEX)):
        whole = _of_fixed_size(targets, 40, 50, 1)
        assert sorted(whole.ids.tolist()) == list(range(40))
        assert (whole.shift == 0).all()


@pytest.mark.parametrize("options", [{}, {"tied_head": True}, {"bias_head": True, "softcap": 3.0}, {"parts": True}])
def test_logits_of_some_tokens_are_theirs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    parts = {"token_parts": True, "n_parts": 3, "tied_head": True} if options.pop("parts", False) else {}
    net = ExtendedGPT(ExtendedGPTConfig(**SMALL, vocab_size=20, pad_vocab_to=8, **options, **parts))
    if parts:
        net.wte.parts.assign([[1 + i % 3] for i in range(20)])
        torch.nn.init.normal_(net.wte.parts.shared.weight[1:])
    hidden, ids = torch.randn(3, 16), torch.tensor([19, 0, 7])
    torch.testing.assert_close(net.head(hidden, net.head_weights(ids)), net.head(hidden)[:, ids])


class Sizes(LitExtendedGPT):
    """Notes how many tokens each step's softmax has."""

    def loss_inputs(self, targets: torch.Tensor, net: GPT) -> Any:
        found = super().loss_inputs(targets, net)
        self.sizes = [*getattr(self, "sizes", []), found.vocab_size]
        return found


def fitted(folder: Path, sampled: int, config: dict[str, Any] | None = None, **options: Any) -> Sizes:
    """Five steps over 20 tokens, of which a batch has 9 at most as targets."""
    torch.manual_seed(0)
    shape = ExtendedGPTConfig(**{**SMALL, "vocab_size": 20, "init": "normal", **(config or {})})
    optimizer = OptimizerConfig(kind="sgd", lr=0.1)
    model = Sizes(shape, optimizer, sampled_softmax=sampled, **options)
    trainer(folder, max_steps=5).fit(model, DataLoader(rows(9) * 5, batch_size=None))
    return model


@pytest.mark.parametrize("config", [{}, {"members": 2}, {"tied_head": True}])
@pytest.mark.parametrize("options", [{}, {"r_drop": 1.0}])
def test_a_sample_of_all_trains_as_without(tmp_path: Path, config: dict[str, Any], options: dict[str, Any]) -> None:
    # Nothing is random but the sample and dropout, whose coins would differ after the sample has been drawn.
    config = {**config, "dropout": 1e-9} if options else config
    whole, sampled = (fitted(tmp_path, n, config, **options) for n in (0, 20))
    torch.testing.assert_close(sampled.state_dict(), whole.state_dict())
    assert set(whole.sizes) == set(sampled.sizes) == {20}


def test_a_sample_ends_when_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_gpt, "MULTIPLE", 1)
    always, partly = fitted(tmp_path, 2, sampled_softmax_until=1.0), fitted(tmp_path, 2)
    few = always.sizes[0]
    assert 2 < few < 12
    assert always.sizes == [few] * 5
    assert partly.sizes == [few] * 3 + [20] * 2


@pytest.mark.parametrize("draw", [sample, _of_fixed_size])
def test_the_correction_is_float32_also_where_new_tensors_are_bfloat16(draw: Callable[..., Any]) -> None:
    """As in a step under bf16-true: 8 bits would make the other tokens 1 % too likely, and round all logits."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = draw(torch.zeros(1, 1, dtype=torch.int64), 1000, 64, 1)
    finally:
        torch.set_default_dtype(torch.float32)
    others = len(found.ids) - 1
    torch.testing.assert_close(found.shift[1:], torch.full((others,), 999 / others).log())
    assert found.shift[0] == 0


def test_the_gradient_of_a_sample_is_that_of_all_on_average() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 16), (torch.randn(200, 16) / 4).requires_grad_()
    targets = torch.randint(20, (8,))
    full = torch.autograd.grad(torch.nn.functional.cross_entropy(hidden @ weight.T, targets), weight)[0]
    total = torch.zeros_like(weight)
    for _ in range(1000):
        found = sample(targets, 200, 60)
        logits = hidden @ weight[found.ids].T + found.shift
        total += torch.autograd.grad(torch.nn.functional.cross_entropy(logits, found.targets), weight)[0] / 1000
    assert torch.nn.functional.cosine_similarity(total.flatten(), full.flatten(), dim=0) > 0.99
    assert total.norm() == pytest.approx(full.norm().item(), rel=0.05)


def test_wrong_samples_are_refused() -> None:
    with pytest.raises(UserError, match="sampled_softmax is -1: give 0"):
        LitExtendedGPT(ExtendedGPTConfig(**SMALL), sampled_softmax=-1)
    for wrong in (0.0, 1.5):
        with pytest.raises(UserError, match=r"sampled_softmax_until is .* give a share"):
            LitExtendedGPT(ExtendedGPTConfig(**SMALL), sampled_softmax=5, sampled_softmax_until=wrong)


def test_evaluation_takes_the_whole_vocabulary(tmp_path: Path) -> None:
    model, batch = fitted(tmp_path, 1), joined(rows(9, 16))
    nats, rank = model.token_scores(batch)
    logits, targets = model.net(batch["input_ids"]).flatten(0, 1), batch["targets"].flatten()
    torch.testing.assert_close(nats.flatten(), torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    assert rank.max() > 10
