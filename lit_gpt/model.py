"""GPT, a decoder-only transformer, in plain PyTorch.

    import torch
    from lit_gpt.model import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=65))
    ids = torch.randint(65, (2, 16))
    logits = model(ids)  # (2, 16, 65)

Every option is a field of `GPTConfig` in config.py. Nothing here knows of Lightning, data or text.
Shape letters: B batch, T sequence length, C channels (n_embd), H query heads, H_kv key/value heads, D head size,
V vocabulary, K token ids that are asked for.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gpt.attention import (
    FLEX_BLOCK,
    FLEX_MIN_HEAD_SIZE,
    CosSin,
    KVCache,
    LayerCache,
    Mask,
    apply_rotary,
    attention,
    build_mask,
    dropout,
    position_ids,
    rotary_cos_sin,
)
from lit_gpt.bounds import check_memory
from lit_gpt.config import PRESETS, GPTConfig
from lit_gpt.fused_loss import LinearHead
from lit_gpt.protocols import Network

#: With `GPTConfig` and `PRESETS`, so that one import is enough to build a GPT.
__all__ = ["GPT", "MLP", "PRESETS", "Attention", "Block", "GPTConfig", "TokenEmbedding"]


def _build_norm(config: GPTConfig) -> nn.Module:
    eps = config.resolved_norm_eps
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=eps, elementwise_affine=config.norm_gain)
    return nn.LayerNorm(config.n_embd, eps=eps, elementwise_affine=config.norm_gain, bias=config.bias)


def _normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm of the residual stream, under autocast in float32 also where that stream is bfloat16."""
    y: Tensor = norm(x.float() if torch.is_autocast_enabled(x.device.type) else x)
    return y


def _build_layer_scale(config: GPTConfig) -> nn.Parameter | None:
    return None if config.layer_scale is None else nn.Parameter(torch.full((config.n_embd,), config.layer_scale))


class TokenEmbedding(nn.Embedding):
    """The token embedding; with `tied_head` its table is the LM head's weight too.

    A subclass may add to it, for example embeddings of n-grams. Those need the earlier tokens, and so `forward` is
    given the padding mask, the documents and the cache. A plain embedding uses none of them.
    """

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
        """Embeddings without context: of ids (...), (..., C); without ids the whole table, (padded_vocab_size, C)."""
        return self.weight if ids is None else super().forward(ids)

    def reset(self) -> None:
        """Initialise what a subclass adds, once `GPT.reset_parameters` has drawn all embeddings from N(0, 0.02)."""


class Attention(nn.Module):
    """Self-attention, optionally with grouped key/value heads, RoPE, QK-norm and a gate on each head's output."""

    def __init__(self, config: GPTConfig, causal: bool = True) -> None:
        """Build the layer.

        Args:
            config: Of the GPT.
            causal: False for an encoder, whose tokens also see those after them.
        """
        super().__init__()
        self.config = config
        self.causal = causal
        self.n_head, self.n_kv_head = config.n_head, config.resolved_n_kv_head
        # One matmul for all heads: first the queries, then the keys, then the values.
        width = (self.n_head + 2 * self.n_kv_head) * config.head_size
        self.qkv = nn.Linear(config.n_embd, width, bias=config.bias_qkv)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)  # the output projection
        self.gate = nn.Linear(config.n_embd, config.n_head, bias=False) if config.attention_gate else None

    def forward(self, x: Tensor, cos_sin: CosSin | None, mask: Mask, cache: LayerCache | None) -> Tensor:
        """(B, T, C) to (B, T, C).

        Args:
            x: The normalised residual stream.
            cos_sin: From `rotary_cos_sin`; None without RoPE.
            mask: From `build_mask`.
            cache: This layer's keys and values of earlier tokens, which is extended in place.
        """
        B, T, C = x.shape
        q, k, v = self.queries_keys_values(x, cos_sin)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H_kv, S, D), with those of earlier tokens
        dropout_p = self.config.resolved_attention_dropout if self.training else 0.0
        y = attention(q, k, v, mask=mask, dropout_p=dropout_p, causal=self.causal)
        y = y.transpose(1, 2)  # (B, T, H, D)
        if self.gate is not None:
            y = y * (2 * self.gate(x).sigmoid())[..., None]  # (B, T, H, 1); a gate weight of 0 gives the factor 1
        return self.proj(y.reshape(B, T, C))

    def queries_keys_values(self, x: Tensor, cos_sin: CosSin | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) to queries (B, H, T, D), keys and values (B, H_kv, T, D). Arguments are those of `forward`."""
        B, T, _ = x.shape
        n_head, n_kv_head = self.n_head, self.n_kv_head
        # Queries and keys stay together, because QK-norm and RoPE treat them alike: one call for both.
        qk, v = self.qkv(x).view(B, T, -1, self.config.head_size).split((n_head + n_kv_head, n_kv_head), dim=2)
        if self.config.qk_norm:
            qk = F.rms_norm(qk, (self.config.head_size,)).type_as(v)  # autocast makes the norm float32
        if cos_sin is not None:
            qk = apply_rotary(qk, cos_sin)
        q, k = qk.transpose(1, 2).split((n_head, n_kv_head), dim=1)
        return q, k, v.transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers around a non-linearity; swiglu adds a gate (Shazeer 2020), relu2 squares (So et al. 2021)."""

    def __init__(self, config: GPTConfig) -> None:
        """`fc` (and swiglu's `gate`) widen to the hidden width, `proj` returns to the residual stream."""
        super().__init__()
        width = config.resolved_mlp_width
        self.activation = config.activation
        self.fc = nn.Linear(config.n_embd, width, bias=config.bias)
        self.proj = nn.Linear(width, config.n_embd, bias=config.bias)
        if config.activation == "swiglu":
            self.gate = nn.Linear(config.n_embd, width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.proj(self._activate(self.fc(x), x))

    def _activate(self, h: Tensor, x: Tensor) -> Tensor:
        """The non-linearity of `fc`'s output h; swiglu's gate reads the input x. Shapes are (B, T, hidden width)."""
        match self.activation:
            case "swiglu":
                return F.silu(self.gate(x)) * h
            case "relu2":
                h = F.relu(h)
                return h * h  # autocast for CUDA computes square() in float32, at twice the memory of bfloat16
            case "relu":
                return F.relu(h)
            case "gelu":
                return F.gelu(h)
            case "gelu_tanh":
                return F.gelu(h, approximate="tanh")
        raise AssertionError(self.activation)


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: GPTConfig, causal: bool = True) -> None:
        """`scale1` and `scale2` are LayerScale (Touvron et al. 2021): a learned factor for each channel of what
        attention and MLP add. Dropout comes after it.
        """
        super().__init__()
        self.norm1 = _build_norm(config)
        self.attn = Attention(config, causal)
        self.norm2 = _build_norm(config)
        self.mlp = MLP(config)
        self.scale1, self.scale2 = _build_layer_scale(config), _build_layer_scale(config)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, cos_sin: CosSin | None = None, mask: Mask = None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, T, C) to (B, T, C). Arguments are those of `Attention.forward`; no mask means plain causality."""
        # type_as: a bfloat16 stream stays one where LayerScale, whose factors are float32, makes the outputs float32.
        x = (
            x + self._scale_and_drop(self.attn(_normalized(self.norm1, x), cos_sin, mask, cache), self.scale1)
        ).type_as(x)
        return (x + self._scale_and_drop(self.mlp(_normalized(self.norm2, x)), self.scale2)).type_as(x)

    def _scale_and_drop(self, y: Tensor, scale: Tensor | None) -> Tensor:
        return dropout(y if scale is None else y * scale, self.dropout, self.training)


class GPT(Network):
    """A decoder-only transformer: `hidden` computes hidden states, `head` turns them into logits."""

    #: What `new_cache` builds. A subclass whose embedding needs the earlier tokens has a cache that keeps them too.
    cache_class = KVCache

    def __init__(self, config: GPTConfig) -> None:
        """Build and initialise the model; `config.vocab_size` must be known.

        Raises:
            UserError: The weights in float32 need more memory than there is.
        """
        super().__init__()
        check_memory(config.matrix_parameters, lower="config.n_embd, config.n_layer or the vocabulary")
        self.config = config
        self.wte = self.build_embedding()
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.learned_positions else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = _build_norm(config)
        untied = not config.tied_head
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=config.bias_head) if untied else None
        # Set by `LitGPT`: matters of training, not of the architecture.
        self.activation_checkpointing = False
        self.compiled = False  # the kernel of the loss; blocks are compiled in place
        self.residual_dtype: torch.dtype | None = None  # of the residual stream under autocast; None: the embedding's
        self.reset_parameters()

    def build_embedding(self) -> TokenEmbedding:
        """The token embedding for ``self.config``; a subclass may build another."""
        return TokenEmbedding(self.config.padded_vocab_size, self.config.n_embd)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (B, T, C).

        Args:
            input_ids: Token ids, (B, T). T and the cached tokens together are at most block_size.
            attention_mask: The padding mask, (B, T), True for real tokens. Rows padded on the left need it. Rows
                padded on the right do not: causality already hides pads from real tokens, and without a mask attention
                is faster.
            document_ids: The id of each token's document in packed rows, (B, T). Neighbours with the same id
                are one document. A token sees its own document only, and learned positions start anew in each.
            cache: From `new_cache`. It holds the keys and values of earlier tokens; those of `input_ids` are added to
                it in place.
        """
        past_length, T = (0 if cache is None else cache.length), input_ids.size(1)
        length = past_length + T
        if length > self.config.block_size:
            raise ValueError(f"{length} tokens exceed the model's block_size {self.config.block_size}: pass fewer.")
        if cache is not None:
            attention_mask = cache.extend_mask(attention_mask, input_ids)  # (B, past_length + T)
        visibility: dict[str, Any] = {"attention_mask": attention_mask, "document_ids": document_ids}
        x = self.wte(input_ids, **visibility, cache=cache)  # only embeddings of n-grams look at more than the ids
        if self.wpe is not None:
            x = x + self.wpe(position_ids(input_ids, past_length, **visibility))
        x = dropout(x, self.config.dropout, self.training)
        if self.residual_dtype is not None and torch.is_autocast_enabled(x.device.type):
            x = x.to(self.residual_dtype)
        mask = build_mask(input_ids, past_length, **visibility, use_flex=self._can_use_flex(input_ids))
        return _normalized(self.norm, self._run_blocks(x, self._cos_sin(past_length, T, x.device), mask, cache))

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        """The LM head's weight, and its bias if it has one; with a tied head the token embedding is the weight.

        Args:
            ids: Token ids (K,) whose rows are returned, (K, C); None for all, (padded_vocab_size, C).
        """
        if self.lm_head is not None:
            return [p if ids is None else p[ids] for p in self.lm_head.parameters()]
        return [self.wte.rows(ids)]

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (..., V) of hidden states (..., C), softcapped, and cut to vocab_size where that is padded.

        Args:
            hidden: From `hidden`.
            weights: From `head_weights`, to compute the logits of some tokens only, or to look the weights up once for
                many calls.
        """
        if weights is None and self.lm_head is not None:
            # A call of the module, not F.linear: decode.py gives it a forward that is faster for small batches.
            logits = self.lm_head(hidden)
        else:
            logits = F.linear(hidden, *(self.head_weights() if weights is None else weights))
        logits, cap = logits[..., : self.config.vocab_size], self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def linear_head(self) -> LinearHead | None:
        """See `Network.linear_head`. None in a subclass that overrides `head`."""
        return LinearHead(self.config.softcap, self.compiled) if type(self).head is GPT.head else None

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty KV cache for `batch_size` rows of up to block_size tokens.

        It has the dtype of the weights. Under bf16-mixed that is float32, which holds bfloat16 keys exactly.
        """
        config, weight = self.config, self.wte.weight
        shape = batch_size, config.resolved_n_kv_head, config.block_size, config.head_size
        return self.cache_class(config.n_layer, shape, device=weight.device, dtype=weight.dtype)

    def num_parameters(self, *, embeddings: bool = True, positions: bool = True) -> int:
        """Number of parameters.

        Args:
            embeddings: False leaves the token embedding out, also where it is the LM head's weight.
            positions: False leaves learned positions out, as nanoGPT's ``get_num_params`` does.
        """
        total = sum(p.numel() for p in self.parameters())
        tables = (m.weight.numel() for m in self.wte.modules() if isinstance(m, nn.Embedding))
        embedding_parameters = 0 if embeddings else sum(tables)
        position_parameters = 0 if positions or self.wpe is None else self.wpe.weight.numel()
        return total - embedding_parameters - position_parameters

    def flops_per_token(self, T: int | None = None) -> int:
        """Floating-point operations of one forward and backward pass, per token of rows of T (default block_size).

        6 for each weight of a linear layer (2 forward, 4 backward), and 12 * n_layer * n_embd * T for queries with keys
        and attention weights with values: the convention of PaLM (Chowdhery et al. 2022, appendix B), which
        does not discount causality.
        """
        config = self.config
        weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear) and m is not self.lm_head)
        weights += config.padded_vocab_size * config.n_embd  # the LM head, of its own or tied
        return 6 * weights + 12 * config.n_layer * config.n_embd * (T or config.block_size)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial weights by `config.init`. The initial loss is near ln(V), the loss of equal logits."""
        if self.config.init == "torch":
            return  # every layer keeps torch's default; position_std and a gate of 1 do not apply
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.blocks.modules():
            if isinstance(module, Attention) and module.gate is not None:
                nn.init.zeros_(module.gate.weight)  # 2 * sigmoid(0) = 1: the gate has no effect yet
        self.wte.reset()
        if self.wpe is not None:
            nn.init.normal_(self.wpe.weight, std=self.config.position_std)
        self._scale_output_projections()

    def _scale_output_projections(self) -> None:
        """Shrink the output projections of attention and MLP, so that the residual stream's variance does not grow with
        depth (Radford et al. 2019): after 64 blocks it is 3.2 times that of the embedding, and 409 times without.
        """
        factor = {"gpt2": (2 * self.config.n_layer) ** -0.5, "normal": 1.0, "zero_proj": 0.0}[self.config.init]
        for module in self.blocks.modules():
            if isinstance(module, Attention | MLP):
                module.proj.weight.mul_(factor)
        if self.lm_head is not None and not factor:
            nn.init.zeros_(self.lm_head.weight)
        if self.lm_head is None and (not factor or self.config.layer_scale is not None):
            # Blocks add little or nothing yet, so the final norm returns the input token's own embedding e, divided by
            # its standard deviation std. A tied head then gives that token the logit e * e / std = n_embd * std, far
            # above all others (7.7 for 384 channels and 0.02). This std makes it 1.
            nn.init.normal_(self.wte.weight, std=1 / self.config.n_embd)

    def _can_use_flex(self, input_ids: Tensor) -> bool:
        """Whether FlexAttention may run: on CUDA, without dropout, which it lacks, for rows longer than one of its
        blocks and heads that are wide enough.
        """
        uses_dropout = self.training and self.config.resolved_attention_dropout > 0
        is_long, is_wide = input_ids.size(1) > FLEX_BLOCK, self.config.head_size >= FLEX_MIN_HEAD_SIZE
        return input_ids.is_cuda and is_long and is_wide and not uses_dropout

    def _cos_sin(self, past_length: int, T: int, device: torch.device) -> CosSin | None:
        if not self.config.rope:
            return None
        config = self.config
        return rotary_cos_sin(T, config.head_size, config.rope_base, past_length=past_length, device=device)

    def _run_blocks(self, x: Tensor, cos_sin: CosSin | None, mask: Mask, cache: KVCache | None) -> Tensor:
        # No checkpointing with a cache: a block that runs again in the backward pass would append its keys again.
        checkpointing = self.activation_checkpointing and self.training and cache is None
        for i, block in enumerate(self.blocks):
            if checkpointing:
                x = checkpoint(block, x, cos_sin, mask, use_reentrant=False)
            else:
                x = block(x, cos_sin, mask, None if cache is None else cache.layers[i])
        return x
