"""Which attention kernel a GPU takes, its block masks, and the residual stream in bfloat16; on tensors without memory
where there is no GPU.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import create_block_mask
from torch.overrides import TorchFunctionMode

from datamodules.errors import UserError
from lit_gpt import LitGPT, gpu_kernels
from lit_gpt.attention import attention, build_mask
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.model import GPT, GPTConfig
from tests.lit_gpt.test_model import EVERY_ARCHITECTURE, small, tokens


class Calls(TorchFunctionMode):
    """The heads of the keys, `enable_gqa`, `is_causal` and the first kernel of each call of torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, Any, Any, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            options = kwargs or {}
            first = torch._C._get_sdp_priority_order()[0]
            self.calls.append((args[1].size(1), options["enable_gqa"], options["is_causal"], first))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fake() -> Iterator[None]:
    if torch.backends.cuda.is_built() and not torch.cuda.is_available():
        pytest.skip("a torch that is built for CUDA asks the GPU even about tensors without memory")
    with FakeTensorMode():
        yield


def attended(dtype: torch.dtype, mask: bool = False, heads: int = 2) -> tuple[int, Any, Any, int]:
    q, k, v = (torch.empty(2, n, 256, 64, device="cuda", dtype=dtype) for n in (4, heads, heads))
    visible = torch.ones(2, 1, 256, 256, dtype=torch.bool, device="cuda") if mask else None
    with Calls() as calls:
        assert attention(q, k, v, mask=visible).shape == (2, 4, 256, 64)
    return calls.calls[0]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("capability", [7, 8, 9, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [False, True])
def test_keys_are_shared_only_by_a_kernel_that_can(
    capability: int, dtype: torch.dtype, mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_kernels, "compute_capability", lambda _: capability)
    heads, grouped, causal, first = attended(dtype, mask)
    can_share = capability >= 8 and dtype != torch.float32 and not mask
    assert (heads, grouped) == ((2, True) if can_share else (4, False))
    assert causal is not mask  # a bool, which `is` tells from a symbol
    assert (first == SDPBackend.CUDNN_ATTENTION.value) == (capability == 9)
    with torch.no_grad():
        assert attended(dtype, mask)[3] != SDPBackend.CUDNN_ATTENTION.value
    assert attended(dtype, mask, heads=4)[:2] == (4, False)


def test_a_kernel_that_is_chosen_first_is_not_chosen_for_others() -> None:
    before = torch._C._get_sdp_priority_order()
    q = torch.randn(1, 1, 8, 16, requires_grad=True)
    with torch.nn.attention.sdpa_kernel(gpu_kernels.CUDNN_FIRST, set_priority=True):
        assert torch._C._get_sdp_priority_order()[0] == SDPBackend.CUDNN_ATTENTION.value
        attention(q, q, q)
    assert torch._C._get_sdp_priority_order() == before


@pytest.mark.parametrize("length", [129, 400])
@pytest.mark.parametrize("share", [0.002, 0.02, 0.5])
def test_blocks_of_documents_are_those_of_every_pair_of_tokens(length: int, share: float) -> None:
    torch.manual_seed(0)
    documents = (torch.rand(2, length) < share).cumsum(1).int()
    documents[1, length // 2 :] = -1  # padding

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (documents[b, query] == documents[b, key])

    ours = build_mask(torch.zeros(2, length, dtype=torch.int64), document_ids=documents, use_flex=True)
    plain = create_block_mask(visible, B=2, H=None, Q_LEN=length, KV_LEN=length, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        numbers = getattr(plain, f"{name}_num_blocks")
        assert torch.equal(getattr(ours, f"{name}_num_blocks"), numbers)
        one, other = (getattr(mask, f"{name}_indices") for mask in (ours, plain))
        counted = torch.arange(one.size(-1)) < numbers[..., None]
        assert torch.equal(one[counted], other[counted])
    index = torch.arange(length)
    pairs = torch.arange(2)[:, None, None], torch.tensor(0), index[:, None], index
    assert torch.equal(ours.mask_mod(*pairs), plain.mask_mod(*pairs))  # type: ignore[union-attr]


@EVERY_ARCHITECTURE
def test_a_bfloat16_residual_stream_stays_close_and_is_one(architecture: dict[str, Any]) -> None:
    whole, ids = small(**architecture), tokens(2, 20)
    net = whole.trained_nets()[0] if hasattr(whole, "trained_nets") else whole
    if not hasattr(net, "blocks"):
        pytest.skip("no stream of its own")
    direction = torch.randn(2, 20, net.config.n_embd)
    streams: list[torch.dtype] = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, inputs, output: streams.append(output.dtype))
    results = []
    for dtype in (None, torch.bfloat16):
        net.residual_dtype = dtype
        with torch.autocast("cpu", torch.bfloat16):
            hidden = net.hidden(ids)[..., : net.config.n_embd].float()  # behind them may be what counts predict
        results.append((hidden, *torch.autograd.grad((hidden * direction).sum(), net.wte.weight)))
    half = len(net.blocks)
    assert (set(streams[:half]), set(streams[half:])) == ({torch.float32}, {torch.bfloat16})
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() < 0.03 * one.norm()
    net.hidden(ids)  # without autocast: as the weights
    assert streams[-1] == torch.float32


def test_a_bfloat16_residual_stream_needs_a_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPTConfig(vocab_size=11, n_layer=1, n_head=1, n_embd=8, block_size=4)

    def built(precision: str | None) -> GPT:
        module = LitGPT(config, residual_dtype="bfloat16")
        if precision is not None:
            trainer = SimpleNamespace(precision=precision, datamodule=None, strategy=None, callbacks=[])
            monkeypatch.setattr(module, "_trainer", trainer)
        LitGPT.configure_model(module)
        return module.net  # type: ignore[return-value]

    assert built("bf16-mixed").residual_dtype == built(None).residual_dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"the Trainer's is 32-true: set --trainer.precision bf16-mixed"):
        built("32-true")
    assert issubclass(LitGPT, LitLanguageModel)
