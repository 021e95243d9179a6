"""The chunked loss equals the plain one, gradients too; ranks behave on ties and on unscored places."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt import loss


@pytest.fixture
def problem() -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 8, requires_grad=True)
    targets = torch.randint(11, (3, 5))
    targets[0, :2] = loss.IGNORE
    return hidden, nn.Linear(8, 11), targets


@pytest.mark.parametrize("held", [11, 44, 10_000])
def test_loss_and_gradients_do_not_depend_on_the_chunk(
    problem: tuple[Tensor, nn.Linear, Tensor], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, head, targets = problem
    plain = F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
    expected = torch.autograd.grad(plain / 7, (hidden, head.weight, head.bias))
    monkeypatch.setattr(loss, "MAX_LOGITS", held)
    ours = loss.summed_nats(hidden, head, list(head.parameters()), targets, 11)
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad(ours / 7, (hidden, head.weight, head.bias))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_chunked_gradients_under_autocast_stay_close(
    problem: tuple[Tensor, nn.Linear, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, head, targets = problem
    gradients = []
    for held in (10_000, 22):
        monkeypatch.setattr(loss, "MAX_LOGITS", held)
        with torch.autocast("cpu", torch.bfloat16):
            nats = loss.summed_nats(hidden, head, list(head.parameters()), targets, 11)
        gradients.append(torch.autograd.grad(nats, head.weight)[0])
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)


def test_ranks_and_nats_match_a_sort(
    problem: tuple[Tensor, nn.Linear, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, head, targets = problem
    monkeypatch.setattr(loss, "MAX_LOGITS", 33)
    nats, rank = loss.score(hidden, head, targets, 11)
    logits = head(hidden)
    order = logits.argsort(-1, descending=True)
    for b, t in (targets != loss.IGNORE).nonzero().tolist():
        assert order[b, t, rank[b, t]] == targets[b, t]
        assert nats[b, t] == pytest.approx(-F.log_softmax(logits[b, t], -1)[targets[b, t]].item(), abs=1e-5)
    assert nats[0, :2].tolist() == [0, 0]
    assert rank[0, :2].tolist() == [11, 11]


def test_equal_logits_do_not_make_every_target_the_first_choice() -> None:
    targets = torch.arange(10)[None]
    _, rank = loss.score(torch.ones(1, 10, 4), lambda h: h.new_zeros(len(h), 10), targets, 10)
    assert rank.tolist() == [list(range(10))]
