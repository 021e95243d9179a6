"""Every way to attend gives the same answer, and pads and neighbouring documents never leak."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from lit_gpt.attention import attention, build_mask, position_ids, rotary_cos_sin
from lit_gpt.model import GPT, Block
from tests.lit_gpt.test_model import ARCHITECTURES, EVERY_ARCHITECTURE, small, tokens

DOCUMENTS = torch.tensor([[0] * 5 + [1] * 9 + [2] * 6, [7] * 12 + [8] * 5 + [-1] * 3], dtype=torch.int32)
SPANS = [(0, 0, 5), (0, 5, 14), (0, 14, 20), (1, 0, 12), (1, 12, 17)]


def gradients(net: GPT, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-3)


#: A network on counts refuses rows of several documents.
ARCHITECTURES_FOR_DOCUMENTS = pytest.mark.parametrize(
    "architecture",
    [pytest.param(value, id=name) for name, value in ARCHITECTURES.items() if "kneser_ney_folds" not in value],
)


@ARCHITECTURES_FOR_DOCUMENTS
def test_packed_documents_equal_the_documents_alone(architecture: dict[str, Any]) -> None:
    net, ids = small(**architecture), tokens(2, 20)
    packed = net(ids, document_ids=DOCUMENTS)
    alone = [net(ids[row : row + 1, start:end])[0] for row, start, end in SPANS]
    inside = [packed[row, start:end] for row, start, end in SPANS]
    close(inside, alone)
    close(gradients(net, torch.cat(inside).square().mean()), gradients(net, torch.cat(alone).square().mean()))


@EVERY_ARCHITECTURE
def test_rows_padded_on_the_right_equal_rows_alone_with_and_without_a_mask(architecture: dict[str, Any]) -> None:
    net, ids = small(**architecture), tokens(2, 12)
    ids[1, 7:] = 0
    real = torch.tensor([[True] * 12, [True] * 7 + [False] * 5])
    alone = torch.cat((net(ids[:1])[0], net(ids[1:, :7])[0]))
    wanted = gradients(net, alone.square().mean())
    for mask in (None, real):
        padded = net(ids, attention_mask=mask)[real]
        close(padded, alone)
        close(gradients(net, padded.square().mean()), wanted)


@EVERY_ARCHITECTURE
def test_rows_padded_on_the_left_equal_rows_alone(architecture: dict[str, Any]) -> None:
    net, ids = small(**architecture), tokens(2, 12)
    real = torch.tensor([[True] * 12, [False] * 5 + [True] * 7])
    padded = net(ids, attention_mask=real)[real]
    alone = torch.cat((net(ids[:1])[0], net(ids[1:, 5:])[0]))
    close(padded, alone)
    close(gradients(net, padded.square().mean()), gradients(net, alone.square().mean()))


@ARCHITECTURES_FOR_DOCUMENTS
def test_what_pads_and_neighbours_hold_does_not_matter(architecture: dict[str, Any]) -> None:
    net, ids = small(**architecture), tokens(2, 20)
    real = torch.ones(2, 20, dtype=torch.bool)
    real[1, :6] = False
    other = torch.where(real, ids, (ids + 1) % 37)
    assert torch.equal(net(ids, attention_mask=real)[real], net(other, attention_mask=real)[real])
    inside = DOCUMENTS[:, 5:6] == DOCUMENTS  # the second document of row 0 and the first of row 1
    other = torch.where(inside, ids, (ids + 1) % 37)
    before, after = (net(x, document_ids=DOCUMENTS)[inside] for x in (ids, other))
    assert torch.equal(before, after)


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("pads", [0, 4])
@pytest.mark.parametrize("sizes", [(10, 1, 1, 1), (6, 5, 2), (13,)])
def test_cached_logits_equal_uncached(architecture: dict[str, Any], pads: int, sizes: tuple[int, ...]) -> None:
    net, ids = small(**architecture).eval(), tokens(2, 13)
    real = torch.arange(13) >= torch.tensor([[0], [pads]])
    cache, parts, done = net.new_cache(2), [], 0
    with torch.no_grad():
        for size in sizes:
            mask = real[:, :size] if pads and done == 0 else None
            parts.append(net(ids[:, done : done + size], attention_mask=mask, cache=cache))
            done += size
        whole = net(ids, attention_mask=real if pads else None)
    close(torch.cat(parts, dim=1)[real], whole[real])
    assert cache.length == 13


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "autocast": None}


MODES = [{}, {"attention_dropout": 1e-9}, {"n_kv_head": 2}, {"recompute": True}]


@pytest.mark.parametrize("pads", [0, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", MODES)
def test_a_cache_changes_no_logits_whatever_the_mode(
    options: dict[str, Any], grad: bool, training: bool, precision: str, pads: int
) -> None:
    """A dropout of 1e-9 drops nothing, and takes the ways through the code that dropout takes."""
    dtype, options = PRECISIONS[precision], {**options}
    recompute = options.pop("recompute", False)
    net, ids = small(**options).to(dtype or torch.float32).train(training), tokens(2, 13)
    net.activation_checkpointing = recompute
    real = torch.arange(13) >= torch.tensor([[0], [pads]])
    exact = small(**options).eval()(ids, attention_mask=real)
    cache, parts, done = net.new_cache(2), [], 0
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
        for size in (6, 1, 4, 1, 1):
            new = slice(done, done + size)
            parts.append(net(ids[:, new], attention_mask=real[:, new] if pads else None, cache=cache))
            done += size
    difference = (torch.cat(parts, dim=1).float() - exact)[real]
    assert difference.norm() < (1e-5 if dtype == torch.float32 else 0.03) * exact[real].norm()


def test_a_cache_has_the_models_dtype_and_the_size_of_the_grouped_heads() -> None:
    cache = small(n_kv_head=2).bfloat16().new_cache(3)
    assert cache.layers[0].keys.shape == (3, 2, 32, 8)
    assert cache.layers[0].keys.dtype == torch.bfloat16


def test_a_full_cache_refuses_more() -> None:
    net = small().eval()
    cache = net.new_cache(1)
    net(tokens(1, 32), cache=cache)
    with pytest.raises(ValueError, match="33 tokens exceed"):
        net(tokens(1, 1), cache=cache)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_dense_and_causal_attention_agree(kv_heads: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 20, 16)
    k, v = torch.randn(2, 2, kv_heads, 20, 16)
    ids = torch.zeros(2, 20, dtype=torch.long)
    for documents in (torch.zeros(2, 20, dtype=torch.int32), DOCUMENTS):
        dense, flex = (build_mask(ids, document_ids=documents, use_flex=flex) for flex in (False, True))
        close(attention(q, k, v, mask=flex), attention(q, k, v, mask=dense))
        if documents is not DOCUMENTS:
            close(attention(q, k, v, mask=dense), attention(q, k, v))


def test_attention_is_the_textbook_formula() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 4)
    scores = (q @ k.mT / 4**0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    close(attention(q, k, v), F.softmax(scores, -1) @ v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 1e-9])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("T", [1, 2, 5, 6])
def test_the_last_queries_of_a_row_see_what_they_see_in_the_whole_row(
    T: int, grad: bool, dropout: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 4).to(dtype)
    scores = (q @ k.mT / 4**0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    with torch.set_grad_enabled(grad):
        y = attention(q[:, :, -T:], k, v, dropout_p=dropout)
    expected = (F.softmax(scores, -1) @ v)[:, :, -T:]
    torch.testing.assert_close(y, expected, atol=0.03 if dtype == torch.bfloat16 else 1e-5, rtol=0)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_learns_on_a_cpu_as_float32_does(kv_heads: int, packed: bool) -> None:
    torch.manual_seed(0)
    ids = torch.zeros(2, 20, dtype=torch.long)
    mask = build_mask(ids, document_ids=DOCUMENTS) if packed else None
    exact = [torch.randn(2, heads, 20, 16) for heads in (4, kv_heads, kv_heads)]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = inputs = [x.to(dtype).requires_grad_() for x in exact]
        y = attention(q, k, v, mask=mask)
        assert y.dtype == dtype
        found.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for full, rounded in zip(*found, strict=True):
        assert (rounded.float() - full).norm() < 0.02 * full.norm()


def test_positions_start_anew_in_each_document_and_after_pads() -> None:
    ids = torch.zeros(2, 20, dtype=torch.long)
    in_documents = position_ids(ids, document_ids=DOCUMENTS).tolist()
    assert in_documents[0] == [*range(5), *range(9), *range(6)]
    assert in_documents[1][:17] == [*range(12), *range(5)]
    real = torch.arange(20) >= torch.tensor([[0], [3]])
    assert position_ids(ids, attention_mask=real)[1].tolist() == [0, 0, 0, *range(17)]
    assert position_ids(ids[:, :2], 18).tolist() == [18, 19]


def test_positions_in_documents_do_not_count_pads() -> None:
    ids = torch.zeros(2, 20, dtype=torch.long)
    everything = torch.ones(2, 20, dtype=torch.bool)
    both = position_ids(ids, attention_mask=everything, document_ids=DOCUMENTS)
    assert torch.equal(both, position_ids(ids, document_ids=DOCUMENTS))
    real = everything.clone()
    real[0, [0, 1, 5, 6, 7, 17]] = False
    found = position_ids(ids, attention_mask=real, document_ids=DOCUMENTS)[0]
    assert found[real[0]].tolist() == [*range(3), *range(6), *range(5)]
    assert found.min() == 0


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("T", [16, 5, 1])
def test_dropout_applies_to_attention_weights(T: int, grad: bool) -> None:
    torch.manual_seed(0)
    k, v = torch.zeros(64, 2, 16, 16), torch.eye(16).expand(64, 2, 16, 16)  # so the weights themselves come out
    q = k[:, :, -T:]
    with torch.set_grad_enabled(grad):
        weights, whole = attention(q, k, v, dropout_p=0.25), attention(q, k, v)
    kept = weights > 0
    torch.testing.assert_close(weights[kept], whole[kept] / 0.75)
    assert kept.sum() / (whole > 0).sum() == pytest.approx(0.75, abs=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_packed_documents_on_a_gpu_use_flex_attention_and_equal_the_cpu() -> None:
    net, ids = small(n_embd=64), tokens(2, 20)
    expected = net(ids, document_ids=DOCUMENTS)
    wanted = gradients(net, expected.square().mean())
    net, ids, documents = net.cuda(), ids.cuda(), DOCUMENTS.cuda()
    mask = build_mask(ids, document_ids=documents, use_flex=True)
    assert isinstance(mask, type(create_block_mask(lambda b, h, q, k: q >= k, None, None, 20, 20)))
    logits = net(ids, document_ids=documents)
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-3, rtol=1e-2)
    found = [g.cpu() for g in gradients(net, logits.square().mean())]
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_dropping_hardly_any_weight_changes_nothing(heads: int, masked: bool) -> None:
    torch.manual_seed(0)
    shapes = (2, 4, 20, 8), (2, heads, 20, 8), (2, heads, 20, 8)
    qkv = [torch.randn(shape, requires_grad=True) for shape in shapes]
    mask = build_mask(tokens(2, 20), document_ids=DOCUMENTS) if masked else None
    found = []
    for p in (0.0, 1e-9):
        y = attention(*qkv, mask=mask, dropout_p=p)
        found.append((y, *torch.autograd.grad(y.square().sum(), qkv)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_an_encoder_see_what_comes_after(architecture: dict[str, Any], masked: bool) -> None:
    """A change of the last token reaches the first, but not in a causal block; that of a pad reaches no other."""
    torch.manual_seed(0)
    net, ids = small(**architecture), tokens(1, 9)
    real = torch.tensor([[True] * 8 + [False]]) if masked else None

    def moved(causal: bool, changed: int) -> Tensor:
        """Whether the output at each place moves with the input at one, (T,)."""
        block = Block(net.config, causal=causal)
        mask = build_mask(ids, attention_mask=real, causal=causal)
        x = torch.randn(1, 9, net.config.n_embd)
        other = x.clone()
        other[:, changed] = torch.randn(net.config.n_embd)
        cos_sin = rotary_cos_sin(9, net.config.head_size, 10_000.0, device=x.device)
        return (block(x, cos_sin, mask) - block(other, cos_sin, mask)).abs().amax(-1)[0] > 1e-6

    last = 7 if masked else 8
    assert moved(causal=False, changed=last)[: last + 1].all()
    assert not moved(causal=True, changed=last)[:last].any()
    if masked:
        assert moved(causal=False, changed=8).nonzero().flatten().tolist() == [8]
