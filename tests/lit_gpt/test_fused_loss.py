"""The loss and the metrics of a GPU, computed on the CPU: they equal the chunked ones, and touch nothing twice."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt import fused_loss, loss
from lit_gpt.fused_loss import LinearHead, chunk_size, fused_cross_entropy_sum, fused_score
from lit_gpt.model import GPT, GPTConfig

ATEN = torch.ops.aten
V, P, C = 11, 16, 8
SHIFT = torch.linspace(-1, 1.7, V)


class Counting(TorchDispatchMode):
    """Counts operations by their name and the shape of their result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        shape = tuple(result.shape) if isinstance(result, Tensor) else ()
        self.calls[func.overloadpacket.__name__, shape] += 1
        return result

    def with_shape(self, shape: tuple[int, ...]) -> Counter[str]:
        return Counter({name: number for (name, one), number in self.calls.items() if one == shape})


def inputs(softcap: float | None, rows: int, bias: bool) -> tuple[Tensor, list[Tensor], Tensor, Any]:
    """Hidden states, weights with padded rows, targets of which some are unscored, and the head that cuts padding."""
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, C, requires_grad=True)
    weights = [torch.randn(rows, C, requires_grad=True), *([torch.randn(rows, requires_grad=True)] if bias else [])]
    targets = torch.randint(V, (3, 5))
    targets[0, :2] = loss.IGNORE_INDEX

    def head(h: Tensor, weights: list[Tensor]) -> Tensor:
        logits = F.linear(h, *weights)[..., :V]
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    return hidden, weights, targets, head


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("rows", "bias", "shift"), [(P, False, None), (V, True, SHIFT), (P, True, None)])
@pytest.mark.parametrize(("held", "piece"), [(10_000, 10_000), (4 * P, 2 * P)])
def test_loss_gradients_and_metrics_equal_the_chunked_ones(
    softcap: float | None, rows: int, bias: bool, shift: Tensor | None, held: int, piece: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fused_loss, "MAX_LOGITS", held)
    monkeypatch.setattr(fused_loss, "LOGITS_PER_PIECE", piece)
    hidden, weights, targets, head = inputs(softcap, rows, bias)
    expected = loss.cross_entropy_sum(hidden, head, weights, targets, V, shift)
    found = fused_cross_entropy_sum(hidden, LinearHead(softcap), weights, targets, V, shift)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted = [torch.autograd.grad(nats / 7, (hidden, *weights)) for nats in (found, expected)]
    torch.testing.assert_close(*wanted, rtol=1e-5, atol=1e-5)
    assert (wanted[0][1][V:] == 0).all()  # padding learns nothing
    if shift is None:
        scores = fused_score(hidden, LinearHead(softcap), weights, targets, V)
        torch.testing.assert_close(scores, loss.score(hidden, head, weights, targets, V), rtol=1e-5, atol=1e-5)


def test_of_equal_logits_the_lower_id_comes_first_and_unscored_targets_have_rank_v() -> None:
    hidden = torch.zeros(1, V + 1, C)
    targets = torch.tensor([[*range(V), loss.IGNORE_INDEX]])
    nats, rank = fused_score(hidden, LinearHead(), [torch.ones(P, C)], targets, V)
    assert rank.tolist() == [[*range(V), V]]
    assert nats[0, -1] == 0


def test_under_autocast_gradients_stay_close_and_float32() -> None:
    hidden, weights, targets, head = inputs(3.0, P, True)
    exact = torch.autograd.grad(loss.cross_entropy_sum(hidden, head, weights, targets, V), (hidden, *weights))
    for dtype, off in ((torch.bfloat16, 0.01), (torch.float16, 0.002)):
        with torch.autocast("cpu", dtype):
            nats = fused_cross_entropy_sum(hidden, LinearHead(3.0), weights, targets, V, None)
        assert nats.dtype == torch.float32
        for one, other in zip(torch.autograd.grad(nats, (hidden, *weights)), exact, strict=True):
            assert one.dtype == torch.float32
            assert (one - other).norm() < off * other.norm()


def test_in_float16_improbable_tokens_have_a_gradient() -> None:
    """Their probability is 1e-9, and the smallest number of float16 is 6e-8."""
    hidden, weight = torch.ones(1, 400, C), torch.zeros(P, C, requires_grad=True)
    bias = torch.tensor([0.0] + [-20.7] * (V - 1) + [0.0] * (P - V), requires_grad=True)
    targets = torch.zeros(1, 400, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        nats = fused_cross_entropy_sum(hidden, LinearHead(), [weight, bias], targets, V, None)
    found = torch.autograd.grad(nats, (weight, bias))
    expected = torch.full((V - 1,), 400 * torch.tensor(-20.703125).exp().item())  # as float16 has it
    torch.testing.assert_close(found[1][1:V], expected, rtol=0.01, atol=0)
    torch.testing.assert_close(found[0][1:V, 0], expected, rtol=0.01, atol=0)


def test_the_weight_is_cast_once_and_each_chunk_adds_once_to_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_loss, "MAX_LOGITS", 5 * P)
    hidden, weights, targets, _ = inputs(3.0, P, False)
    with Counting() as counting:
        fused_cross_entropy_sum(hidden, LinearHead(3.0), weights, targets, V, None).backward()
    names = {name for name, _ in counting.calls}
    assert not [name for name in names if "slice_" in name]  # slice_backward, slice_scatter
    made = counting.with_shape((P, C))
    assert made["addmm_"] == 3  # one for each chunk, in place
    assert {name for name in made if name not in ("addmm_", "detach", "t", "view", "alias")} == {"zeros_like", "mul"}
    with Counting() as counting, torch.autocast("cpu", torch.bfloat16):
        fused_cross_entropy_sum(hidden, LinearHead(3.0), weights, targets, V, None)
    assert counting.with_shape((P, C))["_to_copy"] == 1


def test_chunks_are_equal_if_they_can_be() -> None:
    assert [chunk_size(32768, limit) for limit in (5336, 40000, 32768, 0)] == [4096, 32768, 32768, 1]
    assert chunk_size(101, 50) == 50
    for rows in range(1, 200):
        assert all(1 <= chunk_size(rows, limit) <= limit for limit in range(1, 60))


def test_a_second_derivative_is_refused() -> None:
    hidden, weights, targets, _ = inputs(None, P, False)
    nats = fused_cross_entropy_sum(hidden, LinearHead(), weights, targets, V, None)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(nats, hidden, create_graph=True)


def test_in_float64_loss_and_gradients_are_those_of_float64() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, 4, C, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(P, *more, dtype=torch.float64, requires_grad=True) for more in ((C,), ()))
    targets = torch.tensor([[3, loss.IGNORE_INDEX, 0, V - 1]])

    def nats(*inputs: Tensor) -> Tensor:
        return fused_cross_entropy_sum(inputs[0], LinearHead(3.0), list(inputs[1:]), targets, V, None)

    assert torch.autograd.gradcheck(nats, (hidden, weight, bias))
    logits = 3.0 * torch.tanh(F.linear(hidden, weight, bias)[0, :, :V] / 3.0)
    expected = F.cross_entropy(logits, targets[0], reduction="none")
    found = fused_score(hidden, LinearHead(3.0), [weight, bias], targets, V)[0]
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(nats(hidden, weight, bias), expected.sum(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("target", [-1, V, P, 500])
def test_an_id_that_is_no_token_makes_loss_and_gradient_nan_and_not_another_number(target: int) -> None:
    """On a CPU it is refused. A GPU would have to be waited for."""
    hidden, weights, _, _ = inputs(3.0, P, True)
    targets = torch.tensor([[1, target, loss.IGNORE_INDEX, 2, 3]] * 3)
    nats = fused_cross_entropy_sum(hidden, LinearHead(3.0), weights, targets, V, None)
    assert nats.isnan()
    assert torch.autograd.grad(nats, weights[0])[0][:V].isnan().all()
    scored = fused_score(hidden, LinearHead(3.0), weights, targets, V)[0]
    assert scored.isnan().tolist() == [[False, True, False, False, False]] * 3


@pytest.mark.parametrize("fused", [False, True])
def test_in_float16_the_gradient_of_many_targets_is_finite(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sum is 109,091, and the largest number of float16 is 65,504. Their mean is 2.73."""
    N = 40_000
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", 10_000 * V)
    hidden = torch.full((1, N, C), 3.0, dtype=torch.float16)
    weight = torch.zeros(V, C, dtype=torch.float16, requires_grad=True)
    targets = torch.zeros(1, N, dtype=torch.int64)
    if fused:
        nats = fused_cross_entropy_sum(hidden, LinearHead(), [weight], targets, V, None)
    else:
        nats = loss.cross_entropy_sum(hidden, lambda h, weights: F.linear(h, *weights), [weight], targets, V)
    (gradient,) = torch.autograd.grad(nats / N, weight)
    expected = 3 * (torch.full((V, 1), 1 / V) - F.one_hot(torch.tensor(0), V)[:, None]).expand(V, C)
    assert gradient.dtype == torch.float16
    torch.testing.assert_close(gradient.float(), expected, rtol=0.002, atol=0)


def test_frozen_weights_get_no_gradient() -> None:
    hidden, (weight, bias), targets, _ = inputs(None, P, True)
    weight.requires_grad_(False)
    fused_cross_entropy_sum(hidden, LinearHead(), [weight, bias], targets, V, None).backward()
    assert weight.grad is None
    assert bias.grad is not None
    assert bias.grad.abs().sum() > 0


def test_a_gpt_says_how_its_head_works_unless_a_subclass_has_another() -> None:
    class Other(GPT):
        def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
            return 2 * super().head(hidden, weights)

    config = GPTConfig(vocab_size=V, n_layer=1, n_head=1, n_embd=8, block_size=4, softcap=7.0)
    assert GPT(config).linear_head == LinearHead(7.0, compiled=False)
    assert Other(config).linear_head is None


@pytest.mark.slow  # the compiler takes 20 seconds when its cache is empty
@pytest.mark.filterwarnings("ignore:::torch")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_compiled_kernels_equal_the_plain_ones(softcap: float | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(20, P).to(dtype), torch.randint(V, (20,))
    targets[3] = loss.IGNORE_INDEX
    columns = fused_loss.Columns(V, softcap)
    one, two = logits.clone(), logits.clone()
    nats = fused_loss.replace_by_gradient(one, targets, columns, 1.0)
    kernel = torch.compile(fused_loss.replace_by_gradient, fullgraph=True)
    found, (code,) = run_and_get_code(kernel, two, targets, columns, 1.0)
    torch.testing.assert_close(found, nats)
    assert code.count("async_compile.cpp_pybinding(") == 1  # kernels
    torch.testing.assert_close(one, two, rtol=0.008 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    scores = fused_loss._compiled(fused_loss.nats_and_rank)(logits, targets, columns)
    torch.testing.assert_close(scores, fused_loss.nats_and_rank(logits, targets, columns))
