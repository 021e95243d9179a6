"""Evaluation with packed weights gives what plain layers give, each time with the weights of that evaluation."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from lit_gpt import packed_weight
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.packed_layers import PackedLayers
from tests.lit_gpt.test_language_model import OF_EACH_KIND, module, module_of, trainer
from tests.lit_gpt.test_model import small
from tests.test_bert_network import small as small_bert

ACTIVATIONS = ["gelu", "gelu_tanh", "relu", "relu2", "swiglu"]
#: Rounding of another order of sums; under autocast, of activations to 8 bits.
PRECISION = {"32-true": 1e-5, "bf16-true": 0.05, "bf16-mixed": 0.05, "64-true": 1e-12}


@pytest.fixture(autouse=True)
def no_packed_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weight, "MIN_ROWS", 10**9)


def hidden(net: Any, ids: torch.Tensor, layers: PackedLayers | None = None) -> torch.Tensor:
    """Of ``net``, with ``layers`` or without."""
    with torch.inference_mode(), (layers or PackedLayers()).used_by(net):
        states: torch.Tensor = net.hidden(ids)
    return states


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("build", [small, small_bert])
def test_hidden_states_equal_those_of_plain_layers(build: Any, activation: str, precision: str) -> None:
    if build is small_bert and activation == "swiglu":
        pytest.skip("a BERT has no gate")
    torch.manual_seed(0)
    net = build(activation=activation)
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)  # biases too
    net.to({"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32))
    ids = torch.randint(net.config.vocab_size, (3, net.config.block_size))
    layers = PackedLayers()
    layers.begin()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        torch.testing.assert_close(
            hidden(net, ids, layers).double(),
            hidden(net, ids).double(),
            rtol=PRECISION[precision],
            atol=PRECISION[precision],
        )
    assert not any("forward" in vars(module) for module in net.modules())


def test_weights_are_those_of_the_evaluation_and_a_hook_or_gradients_keep_the_plain_layers() -> None:
    torch.manual_seed(0)
    net, ids, layers = small(), torch.randint(5, (2, 8)), PackedLayers()
    layers.begin()
    before = hidden(net, ids, layers)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    layers.end()
    layers.begin()
    after = hidden(net, ids, layers)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, hidden(net, ids), rtol=1e-5, atol=1e-5)
    hooked = [m for m in net.modules() if isinstance(m, nn.Linear)][1]
    hooked.register_forward_hook(lambda module, inputs, output: output * 0)
    torch.testing.assert_close(hidden(net, ids, layers), hidden(net, ids), rtol=1e-5, atol=1e-5)
    with layers.used_by(net):
        net.hidden(ids).sum().backward()
    assert all(p.grad is not None for block in net.blocks for p in block.parameters())
    copy.deepcopy(layers)  # packed weights cannot be copied


def test_every_evaluation_has_the_weights_of_its_time_and_rows_of_padding_count_for_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids, targets = torch.randint(20, (6, 16)), torch.randint(20, (6, 16))
    targets[1, 3:], targets[4:] = IGNORE_INDEX, IGNORE_INDEX
    batches = [{"input_ids": i, "targets": t} for i, t in zip(ids.split(3), targets.split(3), strict=True)]
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    lit, run = module(), trainer(tmp_path)
    for _ in range(2):
        [metrics] = run.validate(lit, loader, verbose=False)
        with torch.no_grad():
            logits = lit.net(ids).double()
            expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
            assert metrics["val/loss"] == pytest.approx(float(expected), rel=1e-5)
            top1 = (logits.argmax(-1) == targets).sum() / (targets != IGNORE_INDEX).sum()
            assert metrics["val/top1"] == pytest.approx(float(top1))
            for parameter in lit.net.parameters():
                parameter.data.add_(torch.randn_like(parameter))
    nats, rank = lit.token_scores(batches[1])
    assert (nats[1:] == 0).all()
    assert (rank[1:] == 20).all()


def change_in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.copy_(weight.flip(0))  # of the same sum


def change_data(weight: nn.Parameter) -> None:
    weight.data.mul_(2)  # as EMAs do; it does not count as an operation on the weight


def replace_data(weight: nn.Parameter) -> None:
    weight.data = weight.data.flip(0)


@pytest.mark.parametrize("change", [change_in_place, change_data, replace_data])
def test_weights_that_change_in_the_middle_of_an_evaluation_are_packed_again(change: Any) -> None:
    net, ids, layers = small(activation="gelu"), torch.randint(5, (2, 8)), PackedLayers()
    layers.begin()
    before = hidden(net, ids, layers)
    for block in net.blocks:
        change(block.mlp.fc.weight)
        change(block.attn.qkv.weight)
    after = hidden(net, ids, layers)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, hidden(net, ids), rtol=1e-5, atol=1e-5)


def test_a_weight_that_takes_the_place_of_another_is_packed() -> None:
    """Python gives the id of an object that is gone to the next one."""
    net, ids, layers = small(), torch.randint(5, (2, 8)), PackedLayers()
    layers.begin()
    hidden(net, ids, layers)
    fc = net.blocks[0].mlp.fc
    new, old_id = torch.full_like(fc.weight, 0.1), id(fc.weight)
    fc.weight = None
    others = []
    while id(fc.weight) != old_id and len(others) < 100:
        fc.weight = nn.Parameter(new)
        others.append(fc.weight)
    torch.testing.assert_close(hidden(net, ids, layers), hidden(net, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_with_nan_has_the_loss_nan(activation: str, tmp_path: Path) -> None:
    lit = module()
    lit.config.activation = activation
    lit.configure_model()
    lit.net.blocks[0].mlp.fc.weight.data[0, 0] = float("nan")
    ids = torch.randint(20, (2, 16))
    loader: Any = DataLoader([{"input_ids": ids, "targets": ids}], batch_size=None)  # type: ignore[arg-type]
    [metrics] = trainer(tmp_path).validate(lit, loader, verbose=False)
    assert math.isnan(metrics["val/loss"])
    assert metrics["val/top1"] == metrics["val/top5"] == 0


class WithInnerGradient(nn.Module):
    """Adds the gradient of a layer's squared output, as networks do that learn while they are tested."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            return x + torch.autograd.grad(self.layer(y).square().sum(), y)[0]


def test_a_network_may_compute_gradients_inside_of_an_evaluation() -> None:
    net, ids, layers = small(), torch.randint(5, (2, 8)), PackedLayers()
    net.norm = nn.Sequential(net.norm, WithInnerGradient(net.config.n_embd))
    layers.begin()
    with torch.no_grad():
        expected = net.hidden(ids)
        with layers.used_by(net):
            torch.testing.assert_close(net.hidden(ids), expected, rtol=1e-5, atol=1e-5)


def test_two_dtypes_are_the_same_error_as_without_packing() -> None:
    net, layers = small(), PackedLayers()
    layers.begin()
    with torch.inference_mode(), layers.used_by(net), pytest.raises(RuntimeError, match="dtype"):
        net.blocks[0].mlp(torch.zeros(1, 2, net.config.n_embd, dtype=torch.float64))


def test_a_hook_for_all_modules_is_called_for_each() -> None:
    net, ids, layers, called = small(activation="gelu"), torch.randint(5, (2, 8)), PackedLayers(), []
    layers.begin()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        hidden(net, ids, layers)
    finally:
        handle.remove()
    assert {m for m in net.modules() if isinstance(m, nn.Linear) and m is not net.lm_head} <= set(called)


def test_entries_of_a_batch_that_are_no_rows_stay_as_they_are() -> None:
    lit = module()
    lit.configure_model()
    ids = torch.randint(20, (3, 16))
    targets = ids.clone()
    targets[1:] = IGNORE_INDEX
    plain = lit.token_scores({"input_ids": ids, "targets": targets})
    seen: dict[str, Any] = {}
    compute = lit.net.hidden_of_batch
    lit.net.hidden_of_batch = lambda batch: (seen.update(batch), compute(batch))[1]  # type: ignore[method-assign]
    own: Any = {"language": ["en", "de", "fr"], "scale": torch.tensor(2.0), "position": torch.arange(16)}
    for result, expected in zip(lit.token_scores({"input_ids": ids, "targets": targets, **own}), plain, strict=True):
        torch.testing.assert_close(result, expected)
    assert {name: seen[name] for name in own} == own


class Failing(Callback):
    """Fails behind the first batch."""

    def on_validation_batch_end(self, *_: Any) -> None:
        raise ValueError("broken")

    on_test_batch_end = on_validation_batch_end


@pytest.mark.parametrize("verb", ["validate", "test"])
@OF_EACH_KIND
def test_an_evaluation_that_failed_leaves_nothing_to_the_next(kind: str, verb: str, tmp_path: Path) -> None:
    lit, other = module_of(kind), module_of(kind)
    ids = torch.randint(20, (4, 16))
    batches = [{"input_ids": i, "targets": i} for i in ids.split(2)]
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="broken"):
        getattr(trainer(tmp_path, callbacks=[Failing()]), verb)(lit, loader, verbose=False)
    for model in (lit, other):
        model.configure_model()
        with torch.no_grad():
            for i, parameter in enumerate(model.net.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter).roll(i))
    failed, whole = (getattr(trainer(tmp_path), verb)(model, loader, verbose=False) for model in (lit, other))
    assert failed == whole
    scores, expected = lit.token_scores(batches[0])[0], other.token_scores(batches[0])[0]
    torch.testing.assert_close(scores, expected)


@OF_EACH_KIND
def test_predictions_leave_the_sums_of_a_validation_as_they_were(kind: str, tmp_path: Path) -> None:
    lit, ids = module_of(kind), torch.randint(20, (4, 16))
    loader: Any = DataLoader([{"input_ids": i, "targets": i} for i in ids.split(2)], batch_size=None)  # type: ignore[arg-type]
    (logged,) = trainer(tmp_path).validate(lit, loader, verbose=False)
    trainer(tmp_path).predict(lit, loader)
    assert float(lit.scores["val"].compute()["loss"]) == logged["val/loss"]
