"""Attention behind one call: whole rows, packed documents, padded prompts, cached decoding.

A forward pass builds its mask once, with `build_mask`, and every layer passes that mask to `attention`. Shape letters:
B batch, T new tokens, S visible tokens (cached and new), H query heads, H_kv key/value heads, D head size.
"""

import functools
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lit_gpt.gpu_kernels import fastest_kernel, groups_queries

#: None: no mask beyond the argument `causal` of `attention`. A bool tensor, (1 or B, 1, 1 or T, S), is True where a
#: query sees a key.
Mask: TypeAlias = Tensor | BlockMask | None
#: Cosine and sine of the rotary angle of every position and channel, (T, 1, D) each.
CosSin: TypeAlias = tuple[Tensor, Tensor]

#: FlexAttention skips whole blocks of this many queries by as many keys; shorter rows have none to skip.
FLEX_BLOCK = 128
#: FlexAttention's kernel needs heads of at least this many channels.
FLEX_MIN_HEAD_SIZE = 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout``, in a third of the time on a CPU. Every layer of the model uses it.

    On a CPU torch draws one random number for each element. Here four elements share the 64 bits of one random number:
    2,048 x 256 elements take 1.27 ms instead of 4.20 (two threads, no AVX-512). The probability is rounded to 2**-16,
    which changes the expected value by less than 1e-5 at p = 0.1.
    """
    if not training or p == 0:
        return x
    # Compiled code draws its own random numbers, fused with the operations around them.
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64)  # a quarter of the elements, rounded up
    # From -2**63, with no upper limit: all 64 bits are random. Each number is then read as four int16.
    bits = numbers.random_(-(2**63), None).view(torch.int16)
    # An int16 is uniform from -2**15 to 2**15 - 1, so a share p of them lies below p * 2**16 - 2**15.
    kept = bits[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * kept.to(x.dtype).mul_(1 / (1 - p))


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Mask = None, dropout_p: float = 0.0, causal: bool = True
) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: Queries, (B, H, T, D): those of the last T of the S tokens. So a single new token sees every cached one.
        k: Keys, (B, H_kv, S, D) where H_kv divides H (grouped queries, Ainslie et al. 2023).
        v: Values, shaped as the keys.
        mask: What `build_mask` returned for this forward pass.
        dropout_p: Probability that an attention weight is dropped.
        causal: Whether a token sees only itself and those before it; False for an encoder. Ignored when a mask is
            given, which then says all.

    Returns:
        The attention output, (B, H, T, D).
    """
    if isinstance(mask, BlockMask):
        assert dropout_p == 0.0, "FlexAttention has no dropout: build_mask(use_flex=False) builds a bool tensor"
        return _block_sparse_attention(q, k, v, mask)
    if q.size(2) == 1 and not dropout_p and not torch.is_grad_enabled():  # decoding
        return _single_query_attention(q, k, v, mask)
    if q.is_cpu and (dropout_p or _has_slow_gradient(q)):
        return _unfused_attention(q, k, v, mask, dropout_p, causal)
    if mask is None and causal and 1 < q.size(2) < k.size(2):
        # The kernel's own is_causal takes the T queries for the first of the S tokens. Here they are the last.
        mask = _causal_mask(q, k)
    # A branch: in compiled code, a comparison with a dynamic T is a symbol, which the kernel refuses.
    causal = True if causal and mask is None and q.size(2) > 1 else False  # noqa: SIM210
    grouped = q.size(1) != k.size(1)
    if grouped and q.is_cuda and not groups_queries(q, mask):
        k, v, grouped = *_repeated(q, k, v), False
    with fastest_kernel(q):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal, enable_gqa=grouped
        )


def _repeated(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values once for each query head, (B, H, S, D)."""
    times = q.size(1) // k.size(1)
    return k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """(T, S), True where a key is not after the query: the last query sees every key."""
    T, S = q.size(2), k.size(2)
    return torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)


def _single_query_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of a single new token. The query heads that share keys become the rows of one matmul.

    On a CPU with two threads, a batch of 16 with 128 cached tokens takes half the time of
    `scaled_dot_product_attention`.
    """
    B, H, _, D = q.shape
    q = q.reshape(B, k.size(1), -1, D)  # (B, H_kv, H / H_kv, D)
    scores = q * D**-0.5 @ k.mT  # (B, H_kv, H / H_kv, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)  # (B, 1, 1, S), the same for every head
    return (scores.softmax(-1) @ v).view(B, H, 1, D)


def _has_slow_gradient(q: Tensor) -> bool:
    """Whether matmuls are faster on a CPU than the fused kernel, forward and backward: in bfloat16 and short rows.

    32 rows of 128 tokens, 4 heads of 64 channels, take the fused kernel 57 ms and matmuls 16; 16 of 256 and 6 heads 104
    and 55; 2 of 512 and 12 heads 88 and 39; 4 of 1,024 and 6 heads 202 and 232 (one thread with AVX-512 and bfloat16, a
    busy machine). With AMX nothing longer than 256 tokens was measured.
    """
    return q.dtype == torch.bfloat16 and q.size(2) <= 512 and torch.is_grad_enabled()


def _unfused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, causal: bool) -> Tensor:
    """Attention by matmuls and softmax, with dropout of the attention weights.

    torch's fused kernel for CPUs has no dropout, so `scaled_dot_product_attention` falls back to matmuls of its own.
    This takes 76 ms where that takes 115: 8 rows of 256 tokens, 6 heads of 64 channels, forward and backward, one
    thread.
    """
    B, H, T, D = q.shape
    if k.size(1) != H:
        k, v = _repeated(q, k, v)
    if mask is None and causal:
        mask = _causal_mask(q, k)[None, None]
    q, k, v = (q * D**-0.5).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # (B * H, T or S, D)
    # The mask is added by the matmul: 4 to 20 % less time than masked_fill, whose gradient is another pass.
    scores = q @ k.mT if mask is None else torch.baddbmm(_additive(mask, B, H, q.dtype), q, k.mT)  # (B * H, T, S)
    y = dropout(scores.softmax(-1), p, training=True) @ v  # the caller passes p = 0 in evaluation
    return y.view(B, H, T, D)


def _additive(mask: Tensor, B: int, H: int, dtype: torch.dtype) -> Tensor:
    """0 where a mask (1 or B, 1, 1 or T, S) is True and -inf elsewhere, (1 or B * H, 1 or T, S)."""
    bias = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
    return bias[0] if len(bias) == 1 else bias.expand(B, H, -1, -1).flatten(0, 1)


def _block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """FlexAttention (Dong et al. 2024), which is fast only when compiled.

    If the caller's block is being compiled, it is a part of that; otherwise a compiled version of it alone is used.
    """
    in_compiled_block = torch.compiler.is_compiling()
    flex: Any = flex_attention if in_compiled_block or not q.is_cuda else _compiled_flex_attention()
    return flex(q, k, v, block_mask=mask, enable_gqa=q.size(1) != k.size(1))


@functools.cache
def _compiled_flex_attention() -> Any:
    """FlexAttention compiled once for all layers; torch compiles again for shapes that it has not seen."""
    return torch.compile(flex_attention)


def build_mask(
    input_ids: Tensor,
    past_length: int = 0,
    *,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    use_flex: bool = False,
    causal: bool = True,
) -> Mask:
    """The mask of one forward pass, for all layers; None where `attention` needs only its argument `causal`.

    Args:
        input_ids: The new tokens, (B, T).
        past_length: How many cached tokens precede them.
        attention_mask: The padding mask, (B, past_length + T), True for real tokens. Rows padded on the left need it.
            A pad sees itself, because the softmax over no key at all would be NaN.
        document_ids: The id of each token's document, (B, T). Tokens see their own document only.
        use_flex: Whether packed documents may use FlexAttention, which skips blocks in which no query sees a key.
        causal: The same value as for `attention`: False if a token also sees those after it (an encoder).
    """
    T = input_ids.size(1)
    if document_ids is not None:
        assert past_length == 0, "packed rows are for training and scoring, not for decoding"
        if use_flex and causal and attention_mask is None:
            return _document_block_mask(document_ids)
    # With cached tokens, one new token sees all of them; several need a mask, which is built here for all layers.
    if attention_mask is None and document_ids is None and (past_length == 0 or T == 1):
        return None
    query = torch.arange(past_length, past_length + T, device=input_ids.device)[:, None]  # (T, 1)
    key = torch.arange(past_length + T, device=input_ids.device)  # (S,)
    mask = (key <= query)[None] if causal else torch.ones_like(key, dtype=torch.bool)[None, None]  # (1, T or 1, S)
    if document_ids is not None:
        mask = mask & (document_ids[:, :, None] == document_ids[:, None, :])
    if attention_mask is not None:
        mask = (mask & attention_mask[:, None, :]) | (key == query)
    return mask[:, None]


def _document_block_mask(document_ids: Tensor) -> BlockMask:
    """FlexAttention's mask for packed documents, causal inside each; `document_ids` is (B, T)."""
    start = _document_starts(document_ids, torch.arange(document_ids.size(1), device=document_ids.device))  # (B, T)

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query sees a key, both given as positions in row b; the same for every head h."""
        return (key <= query) & (key >= start[b, query])

    some, every = (_in_order(blocks) for blocks in _visible_blocks(start))
    T = document_ids.size(1)
    return BlockMask.from_kv_blocks(*some, *every, BLOCK_SIZE=FLEX_BLOCK, mask_mod=visible, seq_lengths=(T, T))


def _visible_blocks(start: Tensor) -> tuple[Tensor, Tensor]:
    """Which blocks of keys (columns) a block of queries (rows) sees in part, and which in full; (B, 1, n, n) each.

    torch's `create_block_mask` compares every query with every key for it. Here the first and the last start of a
    document among the queries of a block say it, because a document is contiguous.
    """
    blocks = -(-start.size(1) // FLEX_BLOCK)
    n_missing = blocks * FLEX_BLOCK - start.size(1)  # queries that the last block lacks
    # Missing queries see nothing. As minimum they repeat the last one; as maximum they make no block visible in full.
    earliest = F.pad(start, (0, n_missing), value=start.size(1)).view(-1, 1, blocks, 1, FLEX_BLOCK).amin(-1)
    latest = F.pad(start, (0, n_missing), value=blocks * FLEX_BLOCK).view(-1, 1, blocks, 1, FLEX_BLOCK).amax(-1)
    index = torch.arange(blocks, device=start.device)  # (n,)
    query, key = index[:, None], index
    is_seen = (key <= query) & ((key + 1) * FLEX_BLOCK > earliest)
    in_full = (key < query) & (key * FLEX_BLOCK >= latest)
    return is_seen & ~in_full, in_full


def _in_order(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """FlexAttention's form of a table of blocks (B, 1, n, n): for each row their number, and their indices first."""
    index = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), index.to(torch.int32)


def _document_starts(document_ids: Tensor, position: Tensor) -> Tensor:
    """The ``position`` of the first token of each token's document, (B, T), where documents are contiguous."""
    is_first = torch.ones_like(document_ids, dtype=torch.bool)
    is_first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    # Starts grow along a row, so the running maximum is the start of each token's own document.
    return (position * is_first).cummax(1).values


def position_ids(
    input_ids: Tensor,
    past_length: int = 0,
    *,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Positions for learned position embeddings. Pads do not count, and each packed document starts at 0.

    Returns:
        int64, (T,) where all rows agree and (B, T) otherwise. Arguments are those of `build_mask`.
    """
    T = input_ids.size(1)
    if attention_mask is None:
        position = torch.arange(past_length, past_length + T, device=input_ids.device)
    else:
        position = attention_mask.cumsum(1)[:, past_length:] - 1  # a pad has that of the real token before it, or -1
    if document_ids is not None:
        # A pad has the position of the real token before it. A document that begins with pads therefore starts one
        # position later, at its first real token.
        start = position if attention_mask is None else position + (~attention_mask).long()
        position = position - _document_starts(document_ids, start)
    return position if attention_mask is None else position.clamp(min=0)


def rotary_cos_sin(T: int, head_size: int, base: float, *, past_length: int = 0, device: torch.device) -> CosSin:
    """Cosine and sine of rotary position embedding (RoPE, Su et al. 2021) for positions from past_length on.

    The position is the index in the row, for padded and packed rows too: attention depends on differences of positions
    only. Both are always float32: bfloat16 cannot tell position 256 from 257. They are computed in every forward pass
    (a few microseconds). A buffer would be rounded by ``model.to(torch.bfloat16)``, and would stay uninitialised in a
    model that is built on the meta device.
    """
    frequency = base ** (-torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size)  # (D / 2,)
    position = torch.arange(past_length, past_length + T, device=device, dtype=torch.float32)
    angle = position[:, None, None] * frequency.repeat(2)  # (T, 1, D), once for each half of the channels
    return angle.cos(), angle.sin()


def apply_rotary(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Rotate queries or keys by their position, (B, T, H, D), in float32; the result has the dtype of `x`.

    Channels are paired as (i, i + D/2), as in Hugging Face's ``rotate_half``; the paper pairs (2i, 2i + 1).
    """
    cos, sin = cos_sin
    x1, x2 = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-x2, x1), dim=-1), sin).type_as(x)


class LayerCache:
    """The keys and values that one layer has computed so far, in tensors reserved up to the block size."""

    def __init__(self, shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype) -> None:
        """Reserve `shape` = (B, H_kv, block_size, D) twice."""
        # Not filled: only what `append` has written is read.
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H_kv, T, D) of new tokens; return views of all so far (B, H_kv, S, D)."""
        start, self.length = self.length, self.length + k.size(2)
        self.keys.narrow(2, start, k.size(2)).copy_(k)
        self.values.narrow(2, start, k.size(2)).copy_(v)
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)


class KVCache:
    """The KV cache of decoding: every layer's keys and values, and the padding mask."""

    def __init__(
        self, n_layer: int, shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """One `LayerCache` of `shape` = (B, H_kv, block_size, D) for each layer."""
        self.layers = [LayerCache(shape, device=device, dtype=dtype) for _ in range(n_layer)]
        self.attention_mask: Tensor | None = None  # (B, S), True for real tokens

    @property
    def length(self) -> int:
        """How many tokens of each row are cached, pads included."""
        return self.layers[0].length  # the same in every layer between forward passes

    def reset(self) -> None:
        """Drop all tokens; the tensors stay reserved."""
        self.attention_mask = None
        for layer in self.layers:
            layer.length = 0

    def extend_mask(self, attention_mask: Tensor | None, input_ids: Tensor) -> Tensor | None:
        """Append the new tokens' padding mask, (B, T), and return that of cached and new tokens, (B, S).

        None as long as no call has given a mask.
        """
        if attention_mask is None and self.attention_mask is None:
            return None
        new = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
        past = new.new_ones(new.size(0), self.length) if self.attention_mask is None else self.attention_mask
        self.attention_mask = torch.cat((past, new), dim=1)
        return self.attention_mask
