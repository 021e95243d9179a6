"""Evaluation's cross-entropy and ranks are those of the full logits, for each kind of head and each precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt import loss, packed_weight
from lit_gpt.metrics import TokenMetrics
from tests.lit_gpt.conftest import head
from tests.lit_gpt.methods.test_honest_scores import counted
from tests.lit_gpt.test_model import small
from tests.test_bert_network import small as small_bert

NETWORKS: dict[str, Callable[[], Any]] = {
    "softcap and padded vocabulary": lambda: small(vocab_size=37, pad_vocab_to=16, softcap=3.0, bias_head=True),
    "tied, without softcap": lambda: small(vocab_size=37, tied_head=True, softcap=None),
    "counts": lambda: counted(kneser_ney=3, softcap=2.0),
    "ensemble with counts": lambda: counted(kneser_ney=3, members=2, bias_head=True),
    "bert": small_bert,
}
#: How far two orders of a float32 sum may be apart; 16 bits for logits.
PRECISION = {"32-true": 1e-6, "64-true": 1e-12, "bf16-mixed": 0.02, "bf16-true": 0.02}


@pytest.fixture(autouse=True)
def packs_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of several rows, and weights that are packed for a few rows as otherwise for many."""
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", 8 * 5 * 37)
    monkeypatch.setattr(packed_weight, "MIN_ROWS", 1)


def by_definition(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats and ranks from a log-softmax in float64 and a stable sort."""
    place = targets.clamp(min=0)[..., None]
    nats = -logits.double().log_softmax(-1).gather(-1, place)[..., 0]
    rank = (logits.argsort(dim=-1, descending=True, stable=True) == place).int().argmax(-1)
    scored = targets != loss.IGNORE_INDEX
    return nats * scored, rank.where(scored, logits.size(-1))


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("kind", NETWORKS)
def test_scores_equal_those_of_the_full_logits(kind: str, precision: str) -> None:
    net = NETWORKS[kind]()
    net.to({"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32))
    V = net.config.vocab_size
    torch.manual_seed(3)
    ids, targets = torch.randint(V, (4, 12)), torch.randint(V, (4, 12))
    targets[torch.rand(4, 12) < 0.3] = loss.IGNORE_INDEX
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        hidden = net.hidden(ids)
        arguments = hidden, net.head, net.head_weights(), targets, V
        results = [loss.score(*arguments), loss.score(*arguments, net.linear_head, net.probability_head)]
        logits = net.head(hidden)
    expected, expected_rank = by_definition(logits, targets)
    off = PRECISION["32-true" if logits.dtype == torch.float32 else precision]  # counts are mixed in float32
    for nats, rank in results:
        torch.testing.assert_close(nats.double(), expected, rtol=off, atol=off)
        assert nats.dtype == loss.at_least_float32(logits).dtype
        if not precision.startswith("bf16"):  # there two logits may be swapped by the rounding of another order of sums
            assert torch.equal(rank, expected_rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ranks_are_those_of_a_stable_sort_where_half_of_the_logits_are_equal(dtype: torch.dtype) -> None:
    """Whole numbers, which every dtype and every order of sums gives exactly."""
    torch.manual_seed(0)
    hidden, weight = (torch.randint(-2, 3, shape).to(dtype) for shape in ((3, 40, 4), (37, 4)))
    targets = torch.randint(37, (3, 40))
    targets[0, :15] = loss.IGNORE_INDEX
    nats, rank = loss.score(hidden, head, [weight], targets, 37)
    expected, expected_rank = by_definition(F.linear(hidden, weight), targets)
    assert torch.equal(rank, expected_rank)
    torch.testing.assert_close(nats.double(), expected)
    metrics, scored = TokenMetrics(), targets != loss.IGNORE_INDEX
    metrics.update(nats, rank, scored)
    for k in (1, 5):
        is_near = (expected_rank < k) & scored
        assert float(metrics.compute()[f"top{k}"]) == pytest.approx(float(is_near.sum() / scored.sum()))


def test_the_head_sees_scored_places_only_and_all_where_none_is() -> None:
    seen: list[int] = []

    def counting(hidden: Tensor, weights: list[Tensor]) -> Tensor:
        seen.append(len(hidden))
        return head(hidden, weights)

    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 30, 4), torch.randn(37, 4)
    targets = torch.full((2, 30), loss.IGNORE_INDEX)
    nats, rank = loss.score(hidden, counting, [weight], targets, 37)
    assert (nats == 0).all()
    assert (rank == 37).all()
    targets[1, ::2] = 5
    seen.clear()
    nats, rank = loss.score(hidden, counting, [weight], targets, 37)
    assert sum(seen) == 15
    assert (rank == 37).sum() == 45
    assert ((nats > 0) == (targets == 5)).all()


def test_a_packed_weight_is_a_plain_tensor_to_every_other_function() -> None:
    torch.manual_seed(0)
    weight, hidden = torch.nn.Parameter(torch.randn(37, 4)), torch.randn(50, 4)
    [packed] = packed_weight.packed_for(50, [weight], 10)
    assert isinstance(packed, packed_weight.PackedWeight)
    assert type(packed[:3]) is type(hidden @ packed.T) is type(F.linear(hidden, packed)) is Tensor
    torch.testing.assert_close(F.linear(hidden, packed), hidden @ packed.T)
    torch.testing.assert_close(
        F.linear(hidden.T.contiguous().T, packed, hidden[:37, 0]), hidden @ weight.T + hidden[:37, 0]
    )
    small_one, double = torch.randn(4), torch.randn(37, 4, dtype=torch.float64)
    assert packed_weight.packed_for(50, [small_one, double], 10) == [small_one, double]
    [unpacked] = packed_weight.packed_for(19, [weight], 10)
    assert unpacked is weight


def test_a_head_of_one_s_own_is_evaluated_also_where_counts_have_probabilities() -> None:
    net = counted(kneser_ney=3)

    class Sharper(type(net)):  # type: ignore[misc]
        def head(self, hidden: Any, weights: list[Tensor] | None = None) -> Tensor:
            logits: Tensor = 2 * super().head(hidden, weights)
            return logits

    net.__class__ = Sharper
    ids = torch.randint(net.config.vocab_size, (2, 12))
    with torch.inference_mode():
        hidden = net.hidden(ids)
        heads = net.linear_head, net.probability_head
        nats, _ = loss.score(hidden, net.head, net.head_weights(), ids, net.config.vocab_size, *heads)
        torch.testing.assert_close(nats.double(), by_definition(net.head(hidden), ids)[0])
