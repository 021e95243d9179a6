"""Token-weighted figures, in any grouping of batches, and in units of the text."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_gpt.metrics import TokenMetrics, per_text, whole_split


def test_figures_do_not_depend_on_how_tokens_are_grouped() -> None:
    torch.manual_seed(0)
    nats, rank = torch.rand(12, 4), torch.randint(9, (12, 4))
    scored = torch.rand(12, 4) > 0.3
    nats = nats * scored
    rank[~scored] = 9
    results = []
    for sizes in ([12], [1, 5, 6], [4, 4, 4]):
        metric = TokenMetrics()
        for part in zip(*(x.split(sizes) for x in (nats, rank, scored)), strict=True):
            metric.update(*part)
        results.append({k: float(v) for k, v in metric.compute().items()})
    assert results[0] == pytest.approx(results[1])
    assert results[0] == pytest.approx(results[2])
    assert results[0]["loss"] == pytest.approx(float(nats[scored].mean()))
    assert results[0]["top5"] == pytest.approx(float((rank[scored] < 5).float().mean()))
    assert results[0]["perplexity"] == pytest.approx(math.exp(results[0]["loss"]))


def test_states_hold_no_float64() -> None:
    states = TokenMetrics().metric_state
    assert {s.dtype for s in states.values()} == {torch.float32, torch.int64}  # type: ignore[union-attr]


def test_sums_stay_exact_in_a_module_of_bfloat16() -> None:
    metric = nn.ModuleDict({"val": TokenMetrics()}).to(torch.bfloat16)["val"]
    nats, rank, scored = torch.full((4, 256), 1.3), torch.zeros(4, 256), torch.ones(4, 256).bool()
    for _ in range(2):
        for _ in range(300):
            metric.update(nats, rank, scored)
        assert float(metric.compute()["loss"]) == pytest.approx(1.3, rel=1e-5)
        metric.reset()


def test_units_of_the_text() -> None:
    text = SimpleNamespace(tokens=50, chars=200, bytes=220)
    assert per_text(100.0, text) == {"bpb": pytest.approx(100 / math.log(2) / 220), "nats_per_char": pytest.approx(0.5)}
    assert whole_split(40.0, 20, text) == pytest.approx(100.0)  # two fifths scored: in proportion
