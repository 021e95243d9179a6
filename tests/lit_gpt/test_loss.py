"""The chunked loss equals the plain one, gradients too; ranks behave on ties and on unscored places."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.errors import UserError
from lit_gpt import loss
from tests.lit_gpt.conftest import Problem, head, no_head


@pytest.mark.parametrize("held", [11, 44, 10_000])  # one target at a time, four, all
@pytest.mark.parametrize("piece", [22, 10_000])
def test_loss_and_gradients_do_not_depend_on_chunks_and_pieces(
    problem: Problem, held: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weights, targets = problem
    plain = F.cross_entropy(head(hidden, weights).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
    expected = torch.autograd.grad(plain / 7, (hidden, *weights))
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
    monkeypatch.setattr(loss, "LOGITS_IN_CACHE", piece)
    ours = loss.cross_entropy_sum(hidden, head, weights, targets, 11)
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad(ours / 7, (hidden, *weights))
    torch.testing.assert_close(found, expected)
    assert (found[0][0, :2] == 0).all()  # unscored places


def test_chunked_gradients_under_autocast_stay_close(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weights, targets = problem
    gradients = []
    for held in (10_000, 22):
        monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
        with torch.autocast("cpu", torch.bfloat16):
            nats = loss.cross_entropy_sum(hidden, head, weights, targets, 11)
            assert nats.dtype == torch.float32
        gradients.append(torch.autograd.grad(nats, weights[0])[0])
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("what", ["train", "score"])
def test_no_more_logits_than_allowed_are_held(problem: Problem, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weights, targets = problem
    sizes: list[int] = []

    def noted(h: Tensor, weights: list[Tensor]) -> Tensor:
        sizes.append(h.size(0) * 11)
        return head(h, weights)

    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", 44)
    if what == "train":
        loss.cross_entropy_sum(hidden, noted, weights, targets, 11)
    else:
        loss.score(hidden, noted, weights, targets, 11)
    assert max(sizes) <= 44
    rows = targets.numel() if what == "train" else int((targets != loss.IGNORE_INDEX).sum())
    assert sum(sizes) == rows * 11


def test_chunks_lose_nothing_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = list(nn.Linear(8, 11, dtype=torch.bfloat16).parameters())
    hidden, targets = torch.randn(1, 800, 8, dtype=torch.bfloat16, requires_grad=True), torch.randint(11, (1, 800))
    gradients = []
    for held in (10_000, 11):
        monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
        nats = loss.cross_entropy_sum(hidden, head, weights, targets, 11)
        gradients.append(torch.autograd.grad(nats, weights[0])[0].float())
    assert (gradients[0] - gradients[1]).norm() < 0.005 * gradients[0].norm()


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-6), (torch.bfloat16, 0.005)])
def test_a_shift_is_added_to_the_logits_in_float32(dtype: torch.dtype, off: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 30, 11).to(dtype).requires_grad_()
    targets, shift = torch.randint(11, (2, 30)), torch.linspace(0, 1.7, 11)
    plain = F.cross_entropy((logits + shift).flatten(0, 1), targets.flatten(), reduction="sum")
    ours = loss.cross_entropy_sum(logits, no_head, [], targets, 11, shift)
    torch.testing.assert_close(ours, plain)
    found, expected = (torch.autograd.grad(value, logits)[0].float() for value in (ours, plain))
    assert (found - expected).norm() <= off * expected.norm()


def test_a_second_derivative_is_refused(problem: Problem) -> None:
    hidden, weights, targets = problem
    nats = loss.cross_entropy_sum(hidden, head, weights, targets, 11)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(nats, hidden, create_graph=True)


@pytest.mark.parametrize("held", [22, 10_000])
def test_another_loss_is_summed_and_what_it_reports_has_no_gradient(
    problem: Problem, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label smoothing, with the count of the scored targets."""

    def smoothed(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        nats = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)
        return nats, (targets != loss.IGNORE_INDEX).sum(), logits.sum()

    hidden, weights, targets = problem
    expected = smoothed(head(hidden, weights).flatten(0, 1), targets.flatten())
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
    found = loss.sum_in_chunks(smoothed, hidden, loss.LossInputs(head, weights, targets, 11))
    torch.testing.assert_close(found, expected)
    assert [one.requires_grad for one in found] == [True, False, False]
    gradients = [torch.autograd.grad(one[0], (hidden, *weights)) for one in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("held", [22, 10_000])
def test_frozen_weights_get_no_gradient(problem: Problem, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, (weight, bias), targets = problem
    weight.requires_grad_(False)
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
    loss.cross_entropy_sum(hidden, head, [weight, bias], targets, 11).backward()
    assert weight.grad is None
    probs = head(hidden, [weight, bias]).softmax(-1)[targets != loss.IGNORE_INDEX].sum(0)
    torch.testing.assert_close(bias.grad, probs - torch.bincount(targets[targets >= 0], minlength=11))


@pytest.mark.parametrize("listed", [0, 1])
def test_a_parameter_that_would_not_be_trained_is_refused(problem: Problem, listed: int) -> None:
    hidden, weights, targets = problem
    message = r"head\(\) uses a parameter of shape \(11,.* that head_weights\(\) leaves out, .*: return it there"
    with pytest.raises(UserError, match=message):
        loss.cross_entropy_sum(hidden, lambda h, _: head(h, weights), weights[:listed], targets, 11)


def test_ranks_and_nats_match_a_sort(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weights, targets = problem
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", 33)
    nats, rank = loss.score(hidden, head, weights, targets, 11)
    logits = head(hidden, weights)
    order = logits.argsort(-1, descending=True)
    for b, t in (targets != loss.IGNORE_INDEX).nonzero().tolist():
        assert order[b, t, rank[b, t]] == targets[b, t]
        assert nats[b, t] == pytest.approx(-F.log_softmax(logits[b, t], -1)[targets[b, t]].item(), abs=1e-5)
    assert nats[0, :2].tolist() == [0, 0]
    assert rank[0, :2].tolist() == [11, 11]


def test_equal_logits_do_not_make_every_target_the_first_choice() -> None:
    targets = torch.arange(10)[None]
    _, rank = loss.score(torch.zeros(1, 10, 10), no_head, [], targets, 10)
    assert rank.tolist() == [list(range(10))]


def test_of_equal_logits_the_lower_id_comes_first() -> None:
    torch.manual_seed(0)
    logits = torch.randint(-3, 3, (40, 11)).float()  # some targets share their logit, some do not
    targets = torch.randint(11, (1, 40))
    _, rank = loss.score(logits[None], no_head, [], targets, 11)
    order = torch.argsort(logits, dim=-1, descending=True, stable=True)
    assert torch.equal(order.gather(1, rank.T).T, targets)
