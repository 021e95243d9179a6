"""Blocks that are compiled one by one: no graph break, and no new compilation at a fixed length of rows.

The graphs run as they were traced (backend ``eager``), so that tracing is what is tested, and takes a second.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import cache, partialmethod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lit_gpt import LitGPT, forked, fused_loss
from lit_gpt.model import GPT, GPTConfig

pytestmark = pytest.mark.filterwarnings("ignore:::torch")
T, V = 32, 37


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(dynamic: bool | None = None, **options: Any) -> GPT:
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": T, "vocab_size": V}
    net = GPT(GPTConfig(**sizes | options))
    for block in net.blocks:
        block.compile(backend="eager", dynamic=dynamic, fullgraph=True)
    return net


def compilations() -> int:
    return int(counters["stats"]["unique_graphs"])


def ids(length: int = T) -> Tensor:
    return torch.randint(V, (2, length), generator=torch.Generator().manual_seed(length))


def documents(seed: int) -> Tensor:
    return (torch.rand(2, T, generator=torch.Generator().manual_seed(seed)) < 0.05).cumsum(1).int()


def every_use(net: GPT, use_flex: bool, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Training and evaluation, of whole and of packed rows, and text."""
    monkeypatch.setattr(net, "_can_use_flex", lambda _: use_flex)
    for document_ids in (None, documents(seed)):
        net.train()
        net.hidden(ids(), document_ids=document_ids).square().mean().backward()
        net.eval()
        with torch.no_grad():
            net.hidden(ids(), document_ids=document_ids)
    with torch.inference_mode():
        cache = net.new_cache(2)
        net.hidden(ids(20), cache=cache)
        for _ in range(3):
            net.hidden(ids(1), cache=cache)


SLOW = [pytest.mark.slow]  # ten seconds each


@pytest.mark.parametrize(
    ("options", "use_flex"),
    [
        pytest.param({}, False, marks=SLOW),
        pytest.param({}, True, marks=SLOW),
        pytest.param({"n_kv_head": 1, "dropout": 0.1, "learned_positions": True}, False, marks=SLOW),
    ],
)
def test_a_second_round_of_training_evaluation_and_text_compiles_nothing(
    options: dict[str, Any], use_flex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the kernel of a GPU, FlexAttention refuses to train on a CPU, also where it is only traced.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    net = compiled(**options)
    every_use(net, use_flex, monkeypatch, seed=1)
    first = compilations()
    assert first
    assert not counters["graph_break"]
    for seed in (2, 3):
        every_use(net, use_flex, monkeypatch, seed)
    assert compilations() == first
    assert not counters["graph_break"]


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=SLOW)])
def test_rows_of_any_length_work_with_few_compilations(dynamic: bool | None) -> None:
    net, plain = compiled(dynamic), compiled()
    for block in plain.blocks:
        block._compiled_call_impl = None
    plain.load_state_dict(net.state_dict())
    for length in (T, 9, 17, 30, 5):
        torch.testing.assert_close(net.hidden(ids(length)), plain.hidden(ids(length)))
    assert compilations() <= 2  # one for the first length, one for all others
    assert not counters["graph_break"]


def test_the_kernel_of_the_loss_is_compiled_once_and_once_more_for_all_other_sizes() -> None:
    kernel = torch.compile(fused_loss.replace_by_gradient, fullgraph=True, backend="eager")
    columns = fused_loss.Columns(V, 15.0)
    sizes = []
    for rows in (8, 8, 6, 11, 8, 30):
        kernel(torch.randn(rows, V), torch.zeros(rows, dtype=torch.int64), columns, 1.0)
        sizes.append(compilations())
    assert sizes == [1, 1, 2, 2, 2, 2]


def test_every_network_of_a_process_is_compiled_and_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook. By itself torch compiles a function 8 times in a process; here 2 times, to save seconds."""
    monkeypatch.setattr(fused_loss, "_compiled", cache(lambda k: torch.compile(k, fullgraph=True, backend="eager")))
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    targets = torch.tensor([0, 1, 2, 3, 4, -100])
    with torch._dynamo.config.patch(optimize_ddp=True, recompile_limit=2):  # put back afterwards
        for number in range(3):
            sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": T, "vocab_size": V}
            module = LitGPT(GPTConfig(**sizes, norm_eps=1e-5 + number), compile=True)
            module.configure_model()
            before = compilations()
            module.net.hidden(ids())
            assert compilations() == before + 1
            logits, columns = torch.randn(6, V), fused_loss.Columns(V, 1.0 + number)
            plain = fused_loss.nats_and_rank(logits, targets, columns)
            torch.testing.assert_close(
                fused_loss._in_pieces(fused_loss.nats_and_rank, True, logits, targets, columns), [plain]
            )


def test_a_network_that_comes_back_from_a_forked_process_has_the_options_of_training() -> None:
    """A second fit in a notebook would be without them, and need more memory."""
    config = GPTConfig(vocab_size=V, n_layer=1, n_head=1, n_embd=8, block_size=T)
    weights = {f"net.{name}": value for name, value in GPT(config).state_dict().items()}
    module = LitGPT(activation_checkpointing=True, compile=True, residual_dtype="bfloat16")
    with torch._dynamo.config.patch(optimize_ddp=True, recompile_limit=8):  # put back afterwards
        module.load_state_dict({**weights, forked.KEY: asdict(config)})
    net: Any = module.net
    assert torch.equal(net.wte.weight, weights["net.wte.weight"])
    assert (net.activation_checkpointing, net.compiled, net.residual_dtype) == (True, True, torch.bfloat16)
    assert net.blocks[0]._compiled_call_impl is not None
