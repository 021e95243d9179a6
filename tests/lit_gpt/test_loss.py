"""The chunked losses equal the plain ones, gradients too; ranks behave on ties and on unscored places."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt import loss
from lit_gpt.methods.r_drop import r_drop_sum


@pytest.fixture
def problem() -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 8, requires_grad=True)
    targets = torch.randint(11, (3, 5))
    targets[0, :2] = loss.IGNORE_INDEX
    return hidden, nn.Linear(8, 11), targets


@pytest.mark.parametrize("held", [11, 44, 10_000])
def test_loss_and_gradients_do_not_depend_on_the_chunk(
    problem: tuple[Tensor, nn.Linear, Tensor], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, head, targets = problem
    plain = F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
    expected = torch.autograd.grad(plain / 7, (hidden, head.weight, head.bias))
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
    ours = loss.cross_entropy_sum(hidden, head, list(head.parameters()), targets, 11)
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
        monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
        with torch.autocast("cpu", torch.bfloat16):
            nats = loss.cross_entropy_sum(hidden, head, list(head.parameters()), targets, 11)
        gradients.append(torch.autograd.grad(nats, head.weight)[0])
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("what", ["train", "r_drop", "score"])
def test_no_more_logits_than_allowed_are_held(
    problem: tuple[Tensor, nn.Linear, Tensor], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, linear, targets = problem
    sizes: list[int] = []

    def head(h: Tensor) -> Tensor:
        logits = linear(h)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", 44)
    weights = list(linear.parameters())
    if what == "train":
        loss.cross_entropy_sum(hidden, head, weights, targets, 11)
    elif what == "r_drop":
        r_drop_sum(torch.stack((hidden, hidden)), head, weights, targets, 11, weight=1.0)
    else:
        loss.score(hidden, head, targets, 11)
    assert max(sizes) <= 44
    assert sum(sizes) == targets.numel() * 11 * (2 if what == "r_drop" else 1)


def test_chunks_lose_nothing_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 11, dtype=torch.bfloat16)
    hidden, targets = torch.randn(1, 800, 8, dtype=torch.bfloat16, requires_grad=True), torch.randint(11, (1, 800))
    gradients = []
    for held in (10_000, 11):
        monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
        nats = loss.cross_entropy_sum(hidden, head, list(head.parameters()), targets, 11)
        gradients.append(torch.autograd.grad(nats, head.weight)[0].float())
    assert (gradients[0] - gradients[1]).norm() < 0.005 * gradients[0].norm()


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-6), (torch.bfloat16, 0.005)])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_shift_is_added_to_the_logits_in_float32(dtype: torch.dtype, off: float, passes: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(passes, 2, 30, 11).to(dtype).requires_grad_()
    targets, shift = torch.randint(11, (2, 30)), torch.linspace(0, 1.7, 11)
    plain = F.cross_entropy((logits + shift).flatten(0, 2), targets.flatten().repeat(passes), reduction="sum") / passes
    if passes == 1:
        ours = loss.cross_entropy_sum(logits[0], lambda h: h, [], targets, 11, shift)
    else:
        ours = r_drop_sum(logits, lambda h: h, [], targets, 11, shift, weight=0)[0]
    torch.testing.assert_close(ours, plain)
    found, expected = (torch.autograd.grad(value, logits)[0].float() for value in (ours, plain))
    assert (found - expected).norm() <= off * expected.norm()


def test_ranks_and_nats_match_a_sort(
    problem: tuple[Tensor, nn.Linear, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, head, targets = problem
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", 33)
    nats, rank = loss.score(hidden, head, targets, 11)
    logits = head(hidden)
    order = logits.argsort(-1, descending=True)
    for b, t in (targets != loss.IGNORE_INDEX).nonzero().tolist():
        assert order[b, t, rank[b, t]] == targets[b, t]
        assert nats[b, t] == pytest.approx(-F.log_softmax(logits[b, t], -1)[targets[b, t]].item(), abs=1e-5)
    assert nats[0, :2].tolist() == [0, 0]
    assert rank[0, :2].tolist() == [11, 11]


def test_equal_logits_do_not_make_every_target_the_first_choice() -> None:
    targets = torch.arange(10)[None]
    _, rank = loss.score(torch.ones(1, 10, 4), lambda h: h.new_zeros(len(h), 10), targets, 10)
    assert rank.tolist() == [list(range(10))]


def test_of_equal_logits_the_lower_id_comes_first() -> None:
    torch.manual_seed(0)
    logits = torch.randint(-3, 3, (40, 11)).float()  # some targets share their logit, some do not
    targets = torch.randint(11, (1, 40))
    _, rank = loss.score(logits[None], lambda h: h, targets, 11)
    order = torch.argsort(logits, dim=-1, descending=True, stable=True)
    assert torch.equal(order.gather(1, rank.T).T, targets)
