"""Evaluation with packed weights gives what plain layers give, each time with the weights of that evaluation."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from lit_gpt import packed_weight
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.packed_layers import PackedLayers
from tests.lit_gpt.test_language_model import module, trainer
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
