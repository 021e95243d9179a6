"""Faster forwards of a GPT's modules while it decodes in float32 on a CPU, where each step is one token of each row.

`FastForwards` has those of linear layers, attention, MLPs and blocks. Whatever they are not made for, such as the
tokens of a prompt, goes to the module's own forward.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.attention import CosSin, LayerCache, Mask
from lit_gpt.distributed import is_sharded
from lit_gpt.forwards import Change, has_hooks, has_its_class_forward, replaced_forwards
from lit_gpt.model import MLP, Attention, Block
from lit_gpt.packed_weight import can_be_packed, pack, packed_linear


class FastForwards:
    """Faster forwards of a network's modules, for `replaced_forwards` in each step of a `decode`.

    Subclasses, modules whose weights are not all here in float32, and modules with a forward of their own, keep theirs.
    """

    def __init__(self, net: nn.Module, batch_size: int) -> None:
        """Nothing is made before `current`."""
        self._net, self._batch_size = net, batch_size
        self._weights = [p for p in net.parameters() if not p.is_inference()]  # those have no `_version`
        self._version, self._changes = -1, list[Change]()

    def current(self) -> list[Change]:
        """The forwards with the weights as they are now: some have copies, which are made anew after a change."""
        version = sum(weight._version for weight in self._weights)
        if version != self._version:
            with replaced_forwards(_fast_forwards(self._net, self._batch_size)) as self._changes:
                self._version = version
        return self._changes


def _fast_forwards(net: nn.Module, batch_size: int) -> Iterator[Change]:
    kinds: dict[type[Any], Callable[..., Any]] = {nn.Linear: _linear, Attention: _attention, MLP: _mlp, Block: _block}
    for kind, fast in kinds.items():  # parts before what is made of them
        for module in net.modules():
            if has_its_class_forward(module, kind) and _is_float32(module):
                yield module, fast(module, batch_size)


def _is_float32(module: nn.Module) -> bool:
    """Whether all weights are in float32, and whole in this process."""
    return all(p.dtype == torch.float32 and not is_sharded(p) for p in module.parameters())


def _direct(module: nn.Module) -> Callable[..., Tensor]:
    """A module's forward, without the 2 us of a call; the module itself where hooks have to run."""
    return module if has_hooks(module) else module.forward


def _linear(layer: nn.Linear, batch_size: int) -> Callable[[Tensor], Tensor]:
    """A batch of 1 or 2 multiplies 4 slices of the weight in one batched matmul, 2 to 4 times as fast as BLAS. A larger
    batch multiplies a copy of the weight in oneDNN's own layout: 1.7 to 2.3 times as fast for 16 rows (24 layers of 384
    channels, 1 and 2 threads). Copying 10 million weights takes 24 ms.
    """
    weight, bias, width = layer.weight.detach(), layer.bias, layer.in_features
    if batch_size > 2 and can_be_packed(weight):
        return partial(packed_linear, packed=pack(weight, batch_size), bias=bias)
    if batch_size > 2 or layer.out_features % 4:
        return layer.forward
    slices = weight.view(4, -1, width)  # (4, out_features / 4, in_features)

    def forward(x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        n = x.numel() // width
        if n > 2:  # the tokens of a prompt
            return F.linear(x, weight, bias)
        y = torch.bmm(slices, x.reshape(1, n, width).mT.expand(4, width, n))  # (4, out_features / 4, n)
        y = (y if n == 1 else y.view(-1, n).t()).reshape(*x.shape[:-1], -1)
        # Not baddbmm, which adds the bias itself: in the middle of a step it takes 57 us where this takes 46 and 1.
        return y if bias is None else y.add_(bias)

    return forward


def _attention(layer: Attention, batch_size: int) -> Callable[..., Tensor]:
    """Grouped heads and a gate keep the layer's own forward."""
    if layer.n_head != layer.n_kv_head or layer.gate is not None:
        return layer.forward
    D, is_plain = layer.config.head_size, not (layer.config.qk_norm or layer.config.rope)
    qkv, proj = _direct(layer.qkv), _direct(layer.proj)

    def forward(x: Tensor, cos_sin: CosSin | None, mask: Mask, cache: LayerCache | None) -> Tensor:
        """(B, 1, C) to (B, 1, C)."""
        B, T, C = x.shape
        if T > 1 or type(cache) is not LayerCache:
            return Attention.forward(layer, x, cos_sin, mask, cache)
        if is_plain:
            q, k, v = qkv(x).view(B, 3, -1, 1, D).unbind(1)  # (B, H, 1, D)
        else:
            q, k, v = layer.queries_keys_values(x, cos_sin)
        k, v = cache.append(k, v)  # (B, H, S, D)
        weights = _attention_weights(q, k, mask)
        y = torch.bmm(weights[:, None], v.view(-1, *v.shape[2:])) if B <= 2 else _weighted_sum(weights, cache.values)
        return proj(y.view(B, 1, C))

    return forward


def _attention_weights(q: Tensor, k: Tensor, mask: Any) -> Tensor:
    """Weights (B * H, S) of queries (B, H, 1, D) and keys (B, H, S, D).

    The matmul of keys with queries takes 140 us, that of queries with keys 198 (16 rows, 6 heads, 128 tokens, two
    threads).
    """
    B, H, S, D = k.shape
    # `mT`, not a reshape to (B * H, D, 1): with the strides of that, BLAS takes 8 times as long.
    scores = torch.bmm(k.view(B * H, S, D), (q * D**-0.5).reshape(B * H, 1, D).mT)  # (B * H, S, 1)
    if mask is not None:
        scores = scores.view(B, H, S).masked_fill(~mask[:, :, 0], -torch.inf)
    return scores.view(B * H, S).softmax(-1)


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """(B * H, S) and values (B, H, block_size, D), of which the first S count, to (B * H, D).

    An embedding bag is a sum of rows of a table by weights. It takes 80 us, a batched matmul 194, a product and a sum
    174. For one row of a batch the batched matmul is as fast, and what follows it faster by 0.3 ms a step.
    """
    rows, starts = _rows(len(weights), values.size(2), weights.size(1))
    table = values.view(-1, values.size(-1))  # (B * H * block_size, D)
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights.view(-1))


@lru_cache(maxsize=1)  # the same for all layers of a step
def _rows(parts: int, size: int, length: int) -> tuple[Tensor, Tensor]:
    """For a table in parts of `size` rows: the indices of the first `length` rows of every part, and where each part
    begins among these indices.
    """
    part = torch.arange(parts, dtype=torch.int32)
    rows = part[:, None] * size + torch.arange(length, dtype=torch.int32)
    return rows.view(-1), part * length


def _mlp(layer: MLP, batch_size: int) -> Callable[[Tensor], Tensor]:
    """With a packed weight, GELU is a part of the matmul."""
    fc, proj = _direct(layer.fc), _direct(layer.proj)
    if layer.activation in ("gelu", "gelu_tanh") and isinstance(fc, partial) and fc.func is packed_linear:
        fc_and_gelu = partial(fc, activation=layer.activation)
        return lambda x: proj(fc_and_gelu(x))
    return lambda x: proj(layer._activate(fc(x), x))


def _block(block: Block, batch_size: int) -> Callable[..., Tensor]:
    """Without dropout and `type_as`, which change nothing here. LayerScale keeps the block's own forward."""
    if block.scale1 is not None:
        return block.forward
    norm1, attn, norm2, mlp = map(_direct, (block.norm1, block.attn, block.norm2, block.mlp))

    def forward(x: Tensor, cos_sin: CosSin | None = None, mask: Mask = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + attn(norm1(x), cos_sin, mask, cache)
        return x + mlp(norm2(x))

    return forward
