"""Dropout on a CPU: the share that falls, the scale of the rest, the gradient, and coins that are independent."""

import pytest
import torch

from lit_gpt.attention import dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_falls_and_what_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(501, 401, dtype=dtype, requires_grad=True)
    y = dropout(x, p, training=True)
    assert y.dtype == dtype
    fallen = y == 0
    assert fallen.double().mean() == pytest.approx(p, abs=0.005)
    torch.testing.assert_close(y[~fallen], torch.full_like(y[~fallen], 1 / (1 - p)), rtol=1e-2, atol=0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)


def test_coins_are_independent_of_their_neighbours() -> None:
    torch.manual_seed(0)
    coins = (dropout(torch.ones(2**20), 0.25, training=True) == 0).double() - 0.25
    for apart in range(1, 9):  # four elements share one random number
        assert abs((coins[:-apart] * coins[apart:]).mean()) < 4 * 0.25 * 0.75 / 2**10


def test_a_seed_gives_its_coins_again() -> None:
    x, found = torch.ones(3, 5), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(dropout(x, 0.5, training=True))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_nothing_falls_in_eval_mode_or_at_zero() -> None:
    x = torch.randn(3, 5)
    assert torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)
