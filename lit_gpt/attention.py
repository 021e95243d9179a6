"""Causal attention behind one call: whole rows, packed documents, padded prompts, cached decoding.

A forward pass decides once, in `attention_mask_for`, what its tokens may see, and every layer hands that decision to
`attention`. Shape letters: B rows, T new tokens, S visible tokens (cached and new), H heads, D head size.
"""

from functools import cache as memoize
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

#: None: every token sees all tokens up to itself. A bool tensor (B or 1, 1, T, S) is True where a query sees a key.
Mask: TypeAlias = Tensor | BlockMask | None
#: Cosines and sines of the rotation of every position, (T, 1, D) each.
Rotation: TypeAlias = tuple[Tensor, Tensor]


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout``, with `p` rounded to 2**-16 on a CPU.

    On a CPU torch draws one random number after the other, 10 ns for each element. Here four elements share the 64 bits
    of one random number, which takes a third of the time.
    """
    if not x.is_cpu or not training or p == 0 or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * kept.to(x.dtype).mul_(1 / (1 - p))


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Mask = None, dropout: float = 0.0, causal: bool = True
) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: Queries, (B, H, T, D).
        k: Keys, (B, H_kv, S, D) where H_kv divides H (grouped queries, Ainslie et al. 2023). The queries are those of
            the last T of these S tokens: without a mask a single new token sees everything.
        v: Values, shaped as the keys.
        mask: What `attention_mask_for` returned for this forward pass.
        dropout: Probability that an attention weight is dropped.
        causal: Without a mask, whether a token sees only itself and those before it, or all (an encoder).

    Returns:
        The mixed values, (B, H, T, D).
    """
    if isinstance(mask, BlockMask):
        assert dropout == 0.0, "FlexAttention has no dropout: attention_mask_for(flex=False) builds a dense mask"
        return _block_sparse_attention(q, k, v, mask)
    if q.size(2) == 1 and not dropout and not torch.is_grad_enabled():
        return _single_query_attention(q, k, v, mask)
    if q.is_cpu and (dropout or _has_slow_gradient(q)):
        return _unfused_attention(q, k, v, mask, dropout, causal)
    if mask is None and causal and 1 < q.size(2) < k.size(2):
        mask = _causal_mask(q, k)  # the kernel's own `is_causal` takes the queries for those of the first T tokens
    causal = causal and mask is None and q.size(2) > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=q.size(1) != k.size(1)
    )


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """(T, S), True where a key is not after the query: the last query sees every key."""
    T, S = q.size(2), k.size(2)
    return torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)


def _single_query_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of a single new token: heads that share keys are the rows of one matrix product.

    For 16 rows of 128 cached tokens on two threads this takes half the time of `scaled_dot_product_attention`.
    """
    B, H, _, D = q.shape
    scores = q.reshape(B, k.size(1), -1, D) * D**-0.5 @ k.mT  # (B, H_kv, H / H_kv, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).view(B, H, 1, D)


def _has_slow_gradient(q: Tensor) -> bool:
    """Whether the gradient of the fused kernel takes longer on a CPU than that of plain products: in bfloat16 and short
    rows. Forward and backward of 32 rows of 128 tokens, 4 heads of 64 channels, two threads with AMX: 47 ms and 12; of
    256 tokens as long, of 1,024 half as long.
    """
    return q.dtype == torch.bfloat16 and q.size(2) <= 256 and torch.is_grad_enabled()


def _unfused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, causal: bool) -> Tensor:
    """Attention by plain products, with dropout of its weights. On a CPU the fused kernel has none: this takes 0.65 of
    `scaled_dot_product_attention`'s time for 8 rows of 256 tokens, 6 heads of 64 channels, forward and backward.
    """
    if k.size(1) != q.size(1):
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    scores = q * q.size(-1) ** -0.5 @ k.mT  # (B, H, T, S)
    if mask is None and causal:
        mask = _causal_mask(q, k)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return dropout(scores.softmax(-1), p, training=True) @ v


def _block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """FlexAttention (Dong et al. 2024): fast only when compiled, by the caller's compiled block or here."""
    run: Any = flex_attention if torch.compiler.is_compiling() or not q.is_cuda else _compiled_flex_attention()
    return run(q, k, v, block_mask=mask, enable_gqa=q.size(1) != k.size(1))


@memoize
def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention)


def attention_mask_for(
    input_ids: Tensor,
    past: int = 0,
    *,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    flex: bool = False,
    causal: bool = True,
) -> Mask:
    """What the tokens of one forward pass may see; None when plain causality says it all.

    Args:
        input_ids: The new tokens, (B, T).
        past: How many cached tokens precede them.
        attention_mask: True for real tokens, (B, past + T). Needed for rows padded on the left. Pads see only
            themselves, so that no row of weights is empty.
        document_ids: The document of every token, (B, T). Tokens see their own document only.
        flex: Whether packed documents may use FlexAttention, which skips blocks that no query sees.
        causal: Whether a token sees only itself and those before it, or also those after it (an encoder).
    """
    T = input_ids.size(1)
    if document_ids is not None:
        assert past == 0, "packed rows are for training and scoring, not for decoding"
        if flex and causal and attention_mask is None:
            return _document_blocks(document_ids)
    if attention_mask is None and document_ids is None and (past == 0 or T == 1):
        return None
    query = torch.arange(past, past + T, device=input_ids.device)[:, None]
    key = torch.arange(past + T, device=input_ids.device)
    mask = (key <= query)[None] if causal else (key >= 0)[None, None]  # (1, T or 1, S)
    if document_ids is not None:
        mask = mask & (document_ids[:, :, None] == document_ids[:, None, :])
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, :] | (key == query)
    return mask[:, None]


def _document_blocks(document_ids: Tensor) -> BlockMask:
    B, T = document_ids.shape

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query sees a key: both are places in row b."""
        return (key <= query) & (document_ids[b, query] == document_ids[b, key])

    return create_block_mask(visible, B, None, T, T, device=str(document_ids.device))


def positions(
    input_ids: Tensor, past: int = 0, *, attention_mask: Tensor | None = None, document_ids: Tensor | None = None
) -> Tensor:
    """Each token's place in its own text: pads do not count and packed documents each start at 0.

    Returns:
        int64, (T,) where all rows agree and (B, T) elsewhere. Arguments are those of `attention_mask_for`.
    """
    T = input_ids.size(1)
    if attention_mask is None:
        place = torch.arange(past, past + T, device=input_ids.device)
    else:
        place = attention_mask.cumsum(1)[:, past:] - 1
    if document_ids is not None:
        first = torch.ones_like(document_ids, dtype=torch.bool)
        first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        start = place if attention_mask is None else place + ~attention_mask  # of the next real token
        place = place - (start * first).cummax(1).values
    return place if attention_mask is None else place.clamp(min=0)


def rotation(T: int, head_size: int, base: float, *, past: int = 0, device: torch.device) -> Rotation:
    """The angles of rotary position embedding (Su et al. 2021) for positions past to past + T - 1.

    Always float32: bfloat16 cannot tell position 256 from 257. Attention depends on differences of positions only, so
    padded and packed rows rotate by their place in the row. Computed in every forward pass (a few microseconds),
    because a buffer would follow the model to bfloat16 or to an uninitialised meta device.
    """
    frequency = base ** (torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / -head_size)
    place = torch.arange(past, past + T, device=device, dtype=torch.float32)
    angle = place[:, None, None] * frequency.repeat(2)  # (T, 1, D)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate the pairs (i, i + D/2) of every head, (B, T, H, D), in float32; the dtype of `x` comes back."""
    cos, sin = by
    left, right = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-right, left), dim=-1), sin).type_as(x)


class LayerCache:
    """Keys and values that one layer has computed so far, in memory reserved up to the block size."""

    def __init__(self, shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype) -> None:
        """Reserve `shape` = (B, H_kv, block_size, D) twice."""
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H_kv, T, D) of new tokens; return views of all so far (B, H_kv, S, D)."""
        start, self.length = self.length, self.length + k.size(2)
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KVCache:
    """What decoding remembers between forward passes: every layer's keys and values, and which tokens are pads."""

    def __init__(
        self, n_layer: int, shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """One `LayerCache` of `shape` = (B, H_kv, block_size, D) for each layer."""
        self.layers = [LayerCache(shape, device=device, dtype=dtype) for _ in range(n_layer)]
        self.real: Tensor | None = None

    @property
    def length(self) -> int:
        """How many tokens of each row are cached, pads included."""
        return self.layers[0].length

    def reset(self) -> None:
        """Forget everything and keep the memory."""
        self.real = None
        for layer in self.layers:
            layer.length = 0

    def extend_mask(self, attention_mask: Tensor | None, input_ids: Tensor) -> Tensor | None:
        """Extend the mask of real tokens to (B, S) by that of the new ones; None while no row has a pad."""
        if attention_mask is None and self.real is None:
            return None
        new = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
        old = new.new_ones(new.size(0), self.length) if self.real is None else self.real
        self.real = torch.cat((old, new), dim=1)
        return self.real
