"""The rules equal torch's, the groups partition the parameters, the schedules have the values they promise."""

import math

import pytest
import torch
from torch import nn

from lit_gpt import muon
from lit_gpt.model import GPT, GPTConfig
from lit_gpt.optim import (
    OptimizerConfig,
    StepSchedule,
    build_optimizer,
    lr_factor,
    parameter_groups,
)
from lit_gpt.protocols import Network


def small_gpt(**options: object) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, init="normal", **options))


def with_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


class Layer(nn.Linear, Network):
    """The smallest network that an optimizer takes."""


SHAPES = [
    {},
    {"tied_head": True},
    {"norm": "layernorm", "norm_gain": True, "bias": True, "bias_qkv": True, "learned_positions": True},
    {"activation": "swiglu", "bias_head": True},
    {"attention_gate": True, "layer_scale": 0.1},
]


@pytest.mark.parametrize("options", SHAPES)
def test_groups_partition_the_parameters(options: dict[str, object]) -> None:
    net = small_gpt(**options)
    grouped = [id(p) for members in parameter_groups(net).values() for _, p in members]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())


def test_matrices_and_embeddings_decay_and_biases_and_gains_do_not() -> None:
    net = small_gpt(norm="layernorm", norm_gain=True, bias=True, bias_qkv=True, learned_positions=True)
    optimizer = build_optimizer(net, OptimizerConfig(weight_decay=0.1))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in net.named_parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim == 2 else 0.0), name


def test_gates_are_matrices_and_layer_scales_vectors() -> None:
    groups = parameter_groups(small_gpt(attention_gate=True, layer_scale=0.1))
    assert {name for name, _ in groups["vectors"]} == {f"blocks.{i}.scale{half}" for i in (0, 1) for half in (1, 2)}
    assert {f"blocks.{i}.attn.gate.weight" for i in (0, 1)} < {name for name, _ in groups["matrices"]}


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.7, 0.8)])
def test_adamw_equals_torch(betas: tuple[float, float]) -> None:
    ours, theirs = small_gpt(), small_gpt()
    one = build_optimizer(ours, OptimizerConfig(kind="adamw", lr=0.01, weight_decay=0.1, betas=betas))
    two = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=betas, weight_decay=0.1, fused=True)
    for step in range(4):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        one.step()
        two.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_equals_torch_on_single_matrices(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: True)  # torch's own always takes bfloat16
    torch.manual_seed(0)
    ours, theirs = Layer(*shape, bias=False), nn.Linear(*shape, bias=False)
    theirs.load_state_dict(ours.state_dict())
    one = build_optimizer(ours, OptimizerConfig(kind="muon", lr=0.02, weight_decay=0.1))
    two = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.1, momentum=0.95)
    for step in range(5):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        one.step()
        two.step()
    # Both orthogonalise in bfloat16; products of a batch and of one matrix may round differently.
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=2e-3 * 0.02 * 5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_torch(momentum: float) -> None:
    ours, theirs = small_gpt(), small_gpt()
    one = build_optimizer(ours, OptimizerConfig(kind="sgd", lr=0.1, weight_decay=0.0, momentum=momentum))
    two = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=momentum)
    for step in range(3):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        one.step()
        two.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_sgd_decays_apart_from_the_gradient() -> None:
    net = small_gpt()
    before = [p.detach().clone() for p in net.parameters()]
    with_gradients(net, 0)
    build_optimizer(net, OptimizerConfig(kind="sgd", lr=0.1, weight_decay=0.5, momentum=0.0)).step()
    for old, p in zip(before, net.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), old * (1 - 0.1 * 0.5) - 0.1 * p.grad)


def test_group_rates_and_decays_override() -> None:
    config = OptimizerConfig(
        kind="muon", lr=0.001, group_lr={"matrices": 0.02}, group_weight_decay={"embeddings": 0.0, "vectors": 0.3}
    )
    optimizer = build_optimizer(small_gpt(norm="layernorm", norm_gain=True), config)
    groups = {g["name"]: (g["algorithm"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert groups == {
        "matrices": ("muon", 0.02, 0.1),
        "embeddings": ("adamw", 0.001, 0.0),
        "head": ("adamw", 0.001, 0.1),
        "vectors": ("adamw", 0.001, 0.3),
    }


@pytest.mark.parametrize("before", ["sgd", "muon"])
def test_adamw_goes_on_from_what_another_rule_left(before: str) -> None:
    net = small_gpt()
    first = build_optimizer(net, OptimizerConfig(kind=before, lr=0.01))
    with_gradients(net, 0)
    first.step()
    second = build_optimizer(net, OptimizerConfig(kind="adamw", lr=0.01))
    second.load_state_dict({**second.state_dict(), "state": first.state_dict()["state"]})
    with_gradients(net, 1)
    second.step()
    assert all("exp_avg" in state for state in second.state.values())


def test_a_loaded_state_lies_beside_its_parameters() -> None:
    config = OptimizerConfig(kind="muon")
    here, there = Layer(3, 4), Layer(3, 4, device="meta")
    trained, resumed = build_optimizer(here, config), build_optimizer(there, config)
    here(torch.ones(2, 3)).sum().backward()
    trained.step()
    resumed.load_state_dict(trained.state_dict())  # read to the CPU, as a run on a GPU reads it
    places = {name: value.device.type for state in resumed.state.values() for name, value in state.items()}
    assert places == dict.fromkeys(("momentum_buffer", "step", "exp_avg", "exp_avg_sq"), "meta")


def test_any_optimizer_by_class_path() -> None:
    optimizer = build_optimizer(small_gpt(), OptimizerConfig(kind="torch.optim.NAdam", args={"momentum_decay": 0.01}))
    assert isinstance(optimizer, torch.optim.NAdam)
    assert optimizer.defaults["momentum_decay"] == 0.01


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "adam"},
        {"group_lr": {"matrix": 1.0}},
        {"kind": "muon", "warmup": -1},
        {"args": {"eps": 1e-6}},
        {"kind": "torch.optim.NAdam", "args": {"lr": 0.1}},
        {"betas": (0.9, 1.0)},
    ],
)
def test_wrong_values_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="optimizer"):
        OptimizerConfig(**bad)  # type: ignore[arg-type]


def factors(total: int = 10, **options: object) -> list[float]:
    config = OptimizerConfig(**options)  # type: ignore[arg-type]
    return [round(lr_factor(step, total, config), 6) for step in range(total)]


def test_schedules_have_exact_values() -> None:
    assert factors(4, schedule="constant", warmup=2) == [0.5, 1.0, 1.0, 1.0]
    assert factors(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert factors(5, schedule="linear", warmup=1, final_lr=0.2) == [1.0, 1.0, 0.8, 0.6, 0.4]
    assert factors(10, schedule="linear", warmup=0.2, decay_fraction=0.5) == [
        *(0.5, 1.0, 1.0, 1.0, 1.0, 1.0),
        *(1.0, 0.75, 0.5, 0.25),
    ]
    cosine = [round(0.5 * (1 + math.cos(math.pi * k / 4)), 6) for k in range(4)]
    assert factors(4, schedule="cosine") == cosine


def test_a_loaded_schedule_keeps_the_step_and_its_own_rates() -> None:
    def build(lr: float) -> tuple[torch.optim.Optimizer, StepSchedule]:
        config = OptimizerConfig(lr=lr, schedule="linear", weight_decay=lr, group_lr={"embeddings": 0.3})
        optimizer = build_optimizer(small_gpt(), config)
        return optimizer, StepSchedule(optimizer, config, total_steps=10)

    optimizer, schedule = build(0.1)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    other, resumed = build(0.5)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    rates = {group["name"]: group["lr"] for group in other.param_groups}
    assert rates == pytest.approx({"matrices": 0.5 * 0.6, "embeddings": 0.3 * 0.6, "head": 0.5 * 0.6})
    assert other.param_groups[0]["weight_decay"] == 0.5
