"""Muon's work shared among processes gives what one process gives, and every process does about the same share."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

from lit_gpt import muon, muon_shared
from lit_gpt.muon import newton_schulz_flops
from lit_gpt.muon_shared import flops_of_busiest, plan_of, rows_of, sent_replicated, sent_sharded
from lit_gpt.optim import GroupedOptimizer
from tests.processes import on_processes

#: Rows that no number of processes divides; a matrix with fewer rows than processes; a tall, wide and square one.
SHAPES = [(6, 6), (5, 12), (12, 5), (5, 12), (7, 8), (3, 9), (5, 12), (5, 12), (6, 6), (5, 12)]


def optimizer(parameters: list[nn.Parameter]) -> GroupedOptimizer:
    """Muon for all but the last, AdamW for that."""
    common = {"lr": 0.02, "weight_decay": 0.1}
    groups = [
        {"params": parameters[:-1], "algorithm": "muon", **common},
        {"params": parameters[-1:], "algorithm": "adamw", **common},
    ]
    return GroupedOptimizer(groups, (0.9, 0.95), 0.95)


def weights(shapes: list[tuple[int, int]], dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype) / 4 for shape in [*shapes, (4, 4)]]


def trained(
    rank: int, shapes: list[tuple[int, int]], dtype: torch.dtype, ranks: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and momenta after 4 steps on given gradients. With ``ranks`` they are sharded by rows."""
    mesh = init_device_mesh("cpu", (ranks,)) if ranks else None
    place = (lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])) if mesh else torch.clone
    parameters = [nn.Parameter(place(weight)) for weight in weights(shapes, dtype)]
    steps = optimizer(parameters)
    for _ in range(4):
        for parameter in parameters:
            parameter.grad = place(torch.randn(parameter.shape, dtype=dtype))
        if shapes == SHAPES:
            parameters[1].grad = None  # an unused parameter
        steps.step()
    moments = [steps.state[p]["momentum_buffer"] for p in parameters[:-1] if p in steps.state]
    return whole(parameters), whole(moments)


def whole(tensors: list[Any]) -> list[Tensor]:
    return [t.full_tensor() if isinstance(t, DTensor) else t.detach() for t in tensors]


@pytest.mark.parametrize(
    ("ranks", "shapes", "dtype", "sharded"),
    [
        (2, SHAPES, torch.float32, False),
        (2, SHAPES, torch.float32, True),
        pytest.param(2, SHAPES, torch.float64, True, marks=pytest.mark.slow),
        pytest.param(4, SHAPES, torch.float32, False, marks=pytest.mark.slow),
        pytest.param(4, SHAPES, torch.float64, True, marks=pytest.mark.slow),
        pytest.param(4, SHAPES[:2], torch.float32, False, marks=pytest.mark.slow),
        pytest.param(4, [(2, 3)], torch.float32, False, marks=pytest.mark.slow),
        pytest.param(4, [(2, 3)], torch.float32, True, marks=pytest.mark.slow),
    ],
)
def test_shared_equals_alone(
    ranks: int,
    shapes: list[tuple[int, int]],
    dtype: torch.dtype,
    sharded: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slow: more processes than a quick test may start."""
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: False)
    expected = trained(0, shapes, dtype)
    work = partial(trained, shapes=shapes, dtype=dtype, ranks=ranks if sharded else 0)
    first, *others = on_processes(ranks, work, tmp_path)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)  # replicas stay equal to the last bit


@pytest.mark.slow
@pytest.mark.parametrize("machines", [["a", "b", "a", "b"], ["a", "b", "a"], ["a", "b"]])
def test_each_machine_does_all_of_the_work(
    machines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow: more processes than a quick test may start. Machines of two processes, of one and two, and of one."""
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: False)
    expected = trained(0, SHAPES, torch.float32)

    def work(rank: int) -> tuple[Any, list[int]]:
        monkeypatch.setattr("socket.gethostname", lambda: machines[rank])
        stacked: list[int] = []
        given = muon_shared.orthogonalize
        monkeypatch.setattr(muon_shared, "orthogonalize", lambda x: stacked.append(len(x)) or given(x))
        return trained(rank, SHAPES, torch.float32), [sum(stacked)]

    found = on_processes(len(machines), work, tmp_path)
    for weights_and_moments, _ in found:
        torch.testing.assert_close(weights_and_moments, expected, rtol=0, atol=1e-6)
    for machine in set(machines):  # 9 matrices with a gradient, 4 steps
        assert sum(n for name, (_, [n]) in zip(machines, found, strict=True) if name == machine) == 36


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_shared_equals_alone_in_bfloat16(sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow: what a GPU does, by emulated bfloat16. Products of a batch and of one matrix may round differently."""
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: True)
    expected, _ = trained(0, SHAPES, torch.float32)
    work = partial(trained, shapes=SHAPES, dtype=torch.float32, ranks=2 if sharded else 0)
    for found, _ in on_processes(2, work, tmp_path):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * 0.02 * 4)


def test_a_matrix_that_is_sharded_by_columns_is_refused(tmp_path: Path) -> None:
    def work(rank: int) -> str:
        mesh = init_device_mesh("cpu", (1,))
        parameters = [
            nn.Parameter(distribute_tensor(weight, mesh, [Shard(1)])) for weight in weights([], torch.float32)
        ]
        parameters[0].grad = parameters[0].detach().clone()
        steps = optimizer([*parameters, nn.Parameter(torch.zeros(1, 1))])
        with pytest.raises(ValueError, match="along their rows"):
            steps.step()
        with pytest.raises(TypeError, match="needs whole matrices"):
            muon.orthogonalize(parameters[0])
        return "refused"

    assert on_processes(1, work, tmp_path) == ["refused"]


GPT2 = tuple(shape for _ in range(12) for shape in ((2304, 768), (768, 768), (3072, 768), (768, 3072)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 16, 48, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_matrix_has_one_owner_and_the_busiest_does_little_more_than_the_mean(
    ranks: int, dtype: torch.dtype
) -> None:
    plan = plan_of(GPT2, ranks, dtype)
    assert sorted(i for owned in plan.owned for i in owned) == list(range(len(GPT2)))
    flops = [newton_schulz_flops(*shape, dtype) for shape in GPT2]
    # No schedule can be better than the mean, or than the largest matrix; this way it is at most 4/3 of the best.
    assert flops_of_busiest(plan, dtype) <= 4 / 3 * max(sum(flops) / ranks, *flops)
    if ranks in (2, 4, 8):
        assert flops_of_busiest(plan, dtype) <= (1.03 if dtype == torch.bfloat16 else 1.04) * sum(flops) / ranks


def test_flops_are_those_of_the_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: False)
    for dtype in (torch.float32, torch.float64):
        for shape in ((8, 8), (8, 12), (32, 8)):
            with FlopCounterMode(display=False) as counted:
                muon.orthogonalize(torch.randn(3, *shape, dtype=dtype))
            assert counted.get_total_flops() == 3 * newton_schulz_flops(*shape, dtype)


@pytest.mark.parametrize("ranks", [2, 3])
def test_elements_sent_are_counted_by_hand(ranks: int) -> None:
    """Three matrices of one shape and one that is half as large in rows."""
    plan = plan_of(((4, 6), (4, 6), (4, 6), (2, 6)), ranks)
    assert [[plan.shapes[i] for i in owned] for owned in plan.owned] == {
        2: [[(4, 6), (4, 6)], [(4, 6), (2, 6)]],
        3: [[(4, 6), (2, 6)], [(4, 6)], [(4, 6)]],
    }[ranks]
    # An all-gather of parts as large as the largest. On shards of 2 processes the first has 2 rows of three matrices
    # and 1 of the fourth. It sends 3 rows of the other's two matrices, and 2 rows of each of its two updates.
    assert sent_replicated(plan) == {2: 48, 3: 2 * 36}[ranks]
    assert [rows_of(r, 4, ranks) for r in range(ranks)] == {2: [2, 2], 3: [2, 2, 0]}[ranks]
    # Of 3 processes the first sends 2 rows of each of the others' matrices, and 2 and 1 of its own two updates.
    assert sent_sharded(plan) == {2: 7 * 6, 3: 7 * 6}[ranks]
