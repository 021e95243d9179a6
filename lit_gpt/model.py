"""GPT, a decoder-only transformer, in plain PyTorch.

    import torch
    from lit_gpt.model import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=65))
    ids = torch.randint(65, (2, 16))
    logits = model(ids)  # (2, 16, 65)

Every option is a field of `GPTConfig` in config.py. Nothing here knows of Lightning, data or text.
Shape letters: B rows, T time, C channels, H heads, D head size, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gpt.attention import (
    KVCache,
    LayerCache,
    Mask,
    Rotation,
    attention,
    attention_mask_for,
    dropout,
    positions,
    rotate,
    rotation,
)
from lit_gpt.bounds import check_fits
from lit_gpt.config import PRESETS, GPTConfig
from lit_gpt.protocols import Network

__all__ = ["GPT", "MLP", "PRESETS", "Attention", "Block", "GPTConfig", "TokenEmbedding"]


def _norm(config: GPTConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.norm_epsilon, elementwise_affine=config.norm_gain)
    return nn.LayerNorm(config.n_embd, eps=config.norm_epsilon, elementwise_affine=config.norm_gain, bias=config.bias)


def _layer_scale(config: GPTConfig) -> nn.Parameter | None:
    return None if config.layer_scale is None else nn.Parameter(torch.full((config.n_embd,), config.layer_scale))


class TokenEmbedding(nn.Embedding):
    """The embedding of tokens, which is the head's weight too when they are tied. A subclass may add to it."""

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Embeddings of the tokens at every position, (B, T) to (B, T, C). Arguments are those of `GPT.hidden`."""
        return self.rows(input_ids)

    def rows(self, ids: Tensor | None = None) -> Tensor:
        """Embeddings of token ids (...) wherever they stand, (..., C); of the whole vocabulary, (V, C), without ids."""
        return self.weight if ids is None else super().forward(ids)

    def reset(self) -> None:
        """Initialise what is not drawn from N(0, 0.02)."""


class Attention(nn.Module):
    """Self-attention with grouped key/value heads, RoPE, QK-norm and a gate on what each head found."""

    def __init__(self, config: GPTConfig, causal: bool = True) -> None:
        """One projection `qkv` gives H query, H_kv key and H_kv value heads, in this order; `proj` mixes the result."""
        super().__init__()
        self.config = config
        self.causal = causal
        self.heads = config.n_head, config.kv_heads, config.kv_heads
        self.qkv = nn.Linear(config.n_embd, sum(self.heads) * config.head_size, bias=config.bias_qkv)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.gate = nn.Linear(config.n_embd, config.n_head, bias=False) if config.attention_gate else None

    def forward(self, x: Tensor, by: Rotation | None, mask: Mask, cache: LayerCache | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        n_head, n_kv_head, _ = self.heads
        qk, v = self.qkv(x).view(B, T, -1, self.config.head_size).split((n_head + n_kv_head, n_kv_head), dim=2)
        if self.config.qk_norm:
            qk = F.rms_norm(qk, (self.config.head_size,)).type_as(v)  # autocast makes it float32
        if by is not None:
            qk = rotate(qk, by)
        q, k = qk.transpose(1, 2).split((n_head, n_kv_head), dim=1)  # (B, H, T, D)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k, v)
        p = self.config.score_dropout if self.training else 0.0
        y = attention(q, k, v, mask=mask, dropout=p, causal=self.causal)
        y = y.transpose(1, 2)  # (B, T, H, D)
        if self.gate is not None:
            y = y * (2 * self.gate(x).sigmoid())[..., None]
        return self.proj(y.reshape(B, T, C))


class MLP(nn.Module):
    """Two linear layers around a non-linearity; swiglu adds a gate (Shazeer 2020), relu2 squares (So et al. 2021)."""

    def __init__(self, config: GPTConfig) -> None:
        """`fc` (and `gate`) widen to the hidden width, `proj` returns to the stream."""
        super().__init__()
        self.activation = config.activation
        self.fc = nn.Linear(config.n_embd, config.mlp_hidden, bias=config.bias)
        self.proj = nn.Linear(config.mlp_hidden, config.n_embd, bias=config.bias)
        if config.activation == "swiglu":
            self.gate = nn.Linear(config.n_embd, config.mlp_hidden, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.proj(self._activate(self.fc(x), x))

    def _activate(self, h: Tensor, x: Tensor) -> Tensor:
        match self.activation:
            case "swiglu":
                return F.silu(self.gate(x)) * h
            case "relu2":
                h = F.relu(h)
                return h * h  # square() would be float32 under autocast on a GPU
            case "relu":
                return F.relu(h)
            case "gelu":
                return F.gelu(h)
            case _:
                return F.gelu(h, approximate="tanh")


class Block(nn.Module):
    """Attention, then MLP, each on the normalised stream and added to it."""

    def __init__(self, config: GPTConfig, causal: bool = True) -> None:
        """Dropout applies to what each half adds, after its scale (Touvron et al. 2021)."""
        super().__init__()
        self.norm1 = _norm(config)
        self.attn = Attention(config, causal)
        self.norm2 = _norm(config)
        self.mlp = MLP(config)
        self.scale1, self.scale2 = _layer_scale(config), _layer_scale(config)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, by: Rotation | None = None, mask: Mask = None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self._scaled(self.attn(self.norm1(x), by, mask, cache), self.scale1)
        return x + self._scaled(self.mlp(self.norm2(x)), self.scale2)

    def _scaled(self, y: Tensor, scale: Tensor | None) -> Tensor:
        return dropout(y if scale is None else y * scale, self.dropout, self.training)


class GPT(Network):
    """A decoder-only transformer: `hidden` computes features, `head` turns them into logits."""

    cache_class = KVCache

    def __init__(self, config: GPTConfig) -> None:
        """Build and initialise the model; `config.vocab_size` must be known.

        Raises:
            UserError: It is larger than the memory.
        """
        super().__init__()
        check_fits(config.matrix_parameters, "config.n_embd, config.n_layer or the vocabulary")
        self.config = config
        self.wte = self.build_embedding()
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.learned_positions else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = _norm(config)
        untied = not config.tied_head
        self.lm_head = nn.Linear(config.n_embd, config.vocab_rows, bias=config.bias_head) if untied else None
        self.activation_checkpointing = False
        self.reset_parameters()

    def build_embedding(self) -> TokenEmbedding:
        """The embedding of tokens for ``self.config``."""
        return TokenEmbedding(self.config.vocab_rows, self.config.n_embd)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Features after the final norm, (B, T, C).

        Args:
            input_ids: Tokens, (B, T), with T and what the cache holds together at most block_size.
            attention_mask: True for real tokens, (B, T). Rows padded on the left need it. Rows padded on the right do
                not: causality already hides pads from real tokens, and without a mask attention is faster.
            document_ids: The document of every token of packed rows, (B, T); a token sees its own document only, and
                learned positions start anew in each.
            cache: From `new_cache`; holds the tokens before these and is extended by them.
        """
        past, T = (0 if cache is None else cache.length), input_ids.size(1)
        if past + T > self.config.block_size:
            raise ValueError(f"{past + T} tokens exceed the model's block_size {self.config.block_size}: pass fewer.")
        if cache is not None:
            attention_mask = cache.extend_mask(attention_mask, input_ids)
        masks: dict[str, Any] = {"attention_mask": attention_mask, "document_ids": document_ids}
        x = self.wte(input_ids, **masks, cache=cache)
        if self.wpe is not None:
            x = x + self.wpe(positions(input_ids, past, **masks))
        x = dropout(x, self.config.dropout, self.training)
        mask = attention_mask_for(input_ids, past, **masks, flex=self._flex_allowed(input_ids))
        return self.norm(self._run_blocks(x, self._rotation(past, T, x.device), mask, cache))

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        """Weight (and bias) of the head, its own or the vectors of the tokens when they are tied: all rows, or those of
        the tokens ``ids`` (K,).
        """
        if self.lm_head is not None:
            return [p if ids is None else p[ids] for p in self.lm_head.parameters()]
        return [self.wte.rows(ids)]

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (..., V) of features (..., C): softcapped, without the rows that pad the vocabulary.

        Args:
            hidden: From `hidden`.
            weights: From `head_weights`, for a caller that asks more than once or wants the logits of some tokens.
        """
        if weights is None and self.lm_head is not None:
            logits = self.lm_head(hidden)  # the layer itself: decoding makes it fast for few rows
        else:
            logits = F.linear(hidden, *(weights or self.head_weights()))
        logits, cap = logits[..., : self.config.vocab_size], self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty key/value cache for `batch_size` rows of up to block_size tokens, in the model's dtype."""
        config, weight = self.config, self.wte.weight
        shape = batch_size, config.kv_heads, config.block_size, config.head_size
        return self.cache_class(config.n_layer, shape, device=weight.device, dtype=weight.dtype)

    def num_parameters(self, *, embeddings: bool = True, positions: bool = True) -> int:
        """Number of parameters, without the embeddings of tokens or the learned positions where asked.

        A tied embedding is the head as well; without embeddings it is not counted in either place.
        """
        total = sum(p.numel() for p in self.parameters())
        tables = (m.weight.numel() for m in self.wte.modules() if isinstance(m, nn.Embedding))
        tokens = 0 if embeddings else sum(tables)
        places = 0 if positions or self.wpe is None else self.wpe.weight.numel()
        return total - tokens - places

    def flops_per_token(self, T: int | None = None) -> int:
        """Floating-point operations of one forward and backward pass, per token of rows of T (default block_size).

        6 for each weight that multiplies a token (the head's too when tied) and 12 * n_layer * n_embd * T for scores
        and mixing: the convention of PaLM (Chowdhery et al. 2022, appendix B), which does not discount causality.
        """
        config = self.config
        weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear) and m is not self.lm_head)
        weights += config.vocab_rows * config.n_embd
        return 6 * weights + 12 * config.n_layer * config.n_embd * (T or config.block_size)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial weights by `config.init`; the initial loss is near ln(V) for each scheme."""
        if self.config.init == "torch":
            return
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.blocks.modules():
            if isinstance(module, Attention) and module.gate is not None:
                nn.init.zeros_(module.gate.weight)
        self.wte.reset()
        if self.wpe is not None:
            nn.init.normal_(self.wpe.weight, std=self.config.position_std)
        self._scale_outputs()

    def _scale_outputs(self) -> None:
        """Shrink what writes to the stream, so that its variance does not grow with depth (Radford et al. 2019)."""
        factor = {"gpt2": (2 * self.config.n_layer) ** -0.5, "normal": 1.0, "zero_proj": 0.0}[self.config.init]
        for module in self.blocks.modules():
            if isinstance(module, Attention | MLP):
                module.proj.weight.mul_(factor)
        if self.lm_head is not None and not factor:
            nn.init.zeros_(self.lm_head.weight)
        if self.lm_head is None and (not factor or self.config.layer_scale is not None):
            # Blocks add little or nothing yet, so a tied head scores the token itself std * n_embd: keep that at 1.
            nn.init.normal_(self.wte.weight, std=1 / self.config.n_embd)

    def _flex_allowed(self, input_ids: Tensor) -> bool:
        """FlexAttention has no dropout, its kernel wants heads of 16 channels or more, and its blocks of 128 tokens by
        128 leave nothing to skip in shorter rows.
        """
        dropout = self.training and self.config.score_dropout > 0
        return input_ids.is_cuda and input_ids.size(1) > 128 and self.config.head_size >= 16 and not dropout

    def _rotation(self, past: int, T: int, device: torch.device) -> Rotation | None:
        if not self.config.rope:
            return None
        return rotation(T, self.config.head_size, self.config.rope_base, past=past, device=device)

    def _run_blocks(self, x: Tensor, by: Rotation | None, mask: Mask, cache: KVCache | None) -> Tensor:
        # A cache is for decoding, and a block that runs again in the backward pass would append its keys twice.
        recompute = self.activation_checkpointing and self.training and cache is None
        for i, block in enumerate(self.blocks):
            if recompute:
                x = checkpoint(block, x, by, mask, use_reentrant=False)
            else:
                x = block(x, by, mask, None if cache is None else cache.layers[i])
        return x
