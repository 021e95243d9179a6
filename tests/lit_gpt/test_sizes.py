"""Bytes and FLOPs of networks: planned without memory, beside what real tensors take."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_gpt import fused_loss, loss, sizes
from lit_gpt.baselines.bigram import BigramConfig, build_bigram
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.extended_gpt import build_network
from lit_gpt.model import GPT, GPTConfig
from lit_gpt.optim import OptimizerConfig, build_optimizer

SMALL: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 50}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"dropout": 0.1},
    {"activation": "swiglu", "n_head": 4, "n_kv_head": 2, "softcap": None},
    {"tied_head": True, "norm": "layernorm", "bias": True, "learned_positions": True, "rope": False, "qk_norm": False},
    {"attention_gate": True, "layer_scale": 0.1, "pad_vocab_to": 64},
]
Step = sizes.Step


def adamw(net: Any) -> list[torch.optim.Optimizer]:
    return [build_optimizer(net, OptimizerConfig())]


def on_meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


def really_saved(net: GPT, rows: int, dtype: torch.dtype | None) -> int:
    """Bytes that autograd keeps of a forward pass with real tensors."""
    kept: dict[int, Any] = {}
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.randint(net.config.vocab_size or 1, (rows, net.config.block_size))
    autocast = torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        out = net.hidden(ids)
    total = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
    del out
    return total


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "default")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activations_are_those_that_autograd_keeps(options: dict[str, Any], precision: str) -> None:
    config = GPTConfig(**SMALL | options)
    net = on_meta(lambda: GPT(config))
    planned = sizes.memory(net, adamw(net), Step(3, 16, precision=precision))
    assert planned.activations == really_saved(GPT(config), 3, sizes.AUTOCAST.get(precision))


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that exist, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, int] = {}
        self.peak = 0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.known.pop, storage._cdata, 0)
            self.peak = max(self.peak, sum(self.known.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"block_size": 64, "n_embd": 64}, "adamw"),  # the activations decide
        ({"block_size": 64, "n_embd": 64, "dropout": 0.1}, "muon"),
        ({"vocab_size": 4000, "softcap": None}, "adamw"),  # the LM head decides, and the loss takes six chunks
        ({"vocab_size": 4000}, "sgd"),
    ],
)
def test_the_most_that_exists_at_a_time_is_planned(
    options: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "MAX_LOGITS_CPU", 2**16)
    monkeypatch.setattr(loss, "LOGITS_IN_CACHE", 2**12)
    monkeypatch.setattr(sizes, "HEAP_GAPS", 0)  # there is no heap between tensors that are counted one by one
    config = GPTConfig(**SMALL | options)
    net, rows = GPT(config), 6
    optimizer = build_optimizer(net, OptimizerConfig(kind=kind))
    ids = torch.randint(config.vocab_size or 1, (rows, config.block_size + 1))
    with Live() as live:
        for parameter in net.parameters():
            live.add(parameter)
        for _ in range(2):
            inputs = net.head, net.head_weights(), ids[:, 1:], config.vocab_size
            nats = loss.cross_entropy_sum(net.hidden(ids[:, :-1]), *inputs)  # type: ignore[arg-type]
            optimizer.zero_grad()
            nats.backward()
            del nats
            optimizer.step()
    planned = sizes.memory(net, [optimizer], Step(rows, config.block_size))
    assert planned.total == pytest.approx(live.peak, rel=0.06)


def add_without_a_copy(total: Tensor, a: Tensor, b: Tensor, share: float) -> None:
    """As a GPU adds a product of 16 bits to float32; a CPU makes copies for it."""
    total[:1] += 0.0 * share * a[0, 0] * b[0, 0]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_most_that_a_gpu_s_loss_holds_at_a_time_is_planned(
    compiled: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_loss, "MAX_LOGITS", 2**17)
    monkeypatch.setattr(fused_loss, "LOGITS_PER_PIECE", 2**15)
    monkeypatch.setattr(fused_loss, "_add_product", add_without_a_copy)
    # A compiled kernel writes the gradient over the logits, and a number for each row.
    monkeypatch.setattr(fused_loss, "_compiled", lambda _: lambda logits, *more: torch.zeros(len(logits.zero_())))
    net = GPT(GPTConfig(**SMALL | {"vocab_size": 2000, "pad_vocab_to": 64, "softcap": None}))
    net.compiled = compiled
    rows, dtype = 12, sizes.AUTOCAST.get(precision)
    ids = torch.randint(2000, (rows, 17))
    with Live() as live, torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        for parameter in net.parameters():
            live.add(parameter)
            parameter.grad = torch.zeros_like(parameter)  # of the micro-batch before
        assert net.linear_head is not None
        weights = net.head_weights()
        fused_loss.fused_cross_entropy_sum(net.hidden(ids[:, :-1]), net.linear_head, weights, ids[:, 1:], 2000, None)
    planned = sizes.memory(net, [], Step(rows, 16, precision=precision, device="cuda"))
    assert planned.total == pytest.approx(live.peak, rel=0.08)


@pytest.mark.parametrize("packed", [False, True])
def test_a_gpu_that_is_elsewhere_has_a_plan_also_by_a_torch_that_was_built_for_it(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = on_meta(lambda: GPT(GPTConfig(**SMALL | {"block_size": 256})))
    step = Step(2, 256, packed, "bf16-mixed", "cuda")
    expected = sizes.memory(net, adamw(net), step)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert sizes.memory(net, adamw(net), step) == expected
    assert expected.activations == sizes.memory(net, adamw(net), replace(step, packed=False)).activations


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(),
        OptimizerConfig(kind="muon"),
        OptimizerConfig(kind="sgd"),
        OptimizerConfig(kind="sgd", momentum=0.0),
        OptimizerConfig(kind="torch.optim.NAdam"),
        OptimizerConfig(kind="torch.optim.SGD", args={"momentum": 0.9}),
        OptimizerConfig(kind="torch.optim.RMSprop"),
    ],
    ids=lambda config: f"{config.kind} {config.momentum}",
)
def test_the_optimizer_s_state_is_what_a_step_leaves(config: OptimizerConfig) -> None:
    net = GPT(GPTConfig(**SMALL))
    optimizer = build_optimizer(net, config)
    planned = sizes.state_bytes(optimizer)
    net(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.dim()]
    assert planned == sum(v.numel() * v.element_size() for v in states)


def test_a_plan_changes_neither_network_nor_random_numbers() -> None:
    net = GPT(GPTConfig(**SMALL, dropout=0.1))
    net.activation_checkpointing = True
    weights, state = [p.clone() for p in net.parameters()], torch.get_rng_state()
    sizes.memory(net, adamw(net), Step(2, 16))
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(net.parameters(), weights, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.activation_checkpointing


def test_checkpointing_keeps_inputs_of_blocks_and_one_block() -> None:
    net = on_meta(lambda: GPT(GPTConfig(**SMALL | {"n_layer": 8})))
    whole = sizes.memory(net, adamw(net), Step(4, 16))
    net.activation_checkpointing = True
    recomputed = sizes.memory(net, adamw(net), Step(4, 16))
    inputs = 8 * 4 * 16 * 32 * 4
    assert recomputed.activations == pytest.approx(inputs + whole.activations / 8, rel=0.001)
    assert recomputed.weights == whole.weights


def test_every_kind_of_network_has_a_plan() -> None:
    extended: dict[str, Any] = {"members": 2, "token_parts": True, "n_parts": 9, "ngrams": [2], "ngram_rows": 64}
    ensemble = on_meta(lambda: build_network(ExtendedGPTConfig(**SMALL, **extended, kneser_ney=3)))
    one = on_meta(lambda: build_network(ExtendedGPTConfig(**SMALL, **extended | {"members": 1})))
    step = Step(2, 16, packed=True, passes=2)
    both, alone = (sizes.memory(net, adamw(net), step) for net in (ensemble, one))
    assert both.activations == 2 * alone.activations
    assert both.activations == 2 * sizes.memory(ensemble, adamw(ensemble), Step(2, 16, packed=True)).activations
    for kind in ("neural", "counts"):
        table = on_meta(lambda kind=kind: build_bigram(BigramConfig(kind=kind, vocab_size=50)))
        planned = sizes.memory(table, [], Step(2, 8))
        assert planned.weights == 50 * 50 * (4 if kind == "neural" else 8)


def test_parameters_and_embeddings_are_counted_once() -> None:
    tied = GPT(GPTConfig(**SMALL, tied_head=True, learned_positions=True))
    assert sizes.count_parameters(tied) == tied.num_parameters()
    assert sizes.count_embeddings(tied) == (50 + 16) * 32
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    assert (sizes.count_parameters(lazy), sizes.has_lazy_layers(lazy)) == (8, True)


def test_half_precision_halves_the_state() -> None:
    full, half = (on_meta(lambda: GPT(GPTConfig(**SMALL))) for _ in range(2))
    half.to(torch.bfloat16)
    one, other = (sizes.memory(net, adamw(net), Step(2, 16)) for net in (full, half))
    assert (one.weights, one.gradients, one.optimizer) == (2 * other.weights, 2 * other.gradients, 2 * other.optimizer)
