"""GPT, a decoder-only transformer, in plain PyTorch.

    import torch
    from lit_gpt.model import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=65))
    ids = torch.randint(65, (2, 16))
    logits = model(ids)  # (2, 16, 65)

Every option is a field of `GPTConfig`; `PRESETS` names the combinations that people know. The defaults are the modern
recipe at a laptop's size. Shape letters: B rows, T time, C channels, H heads, D head size, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

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
    positions,
    rotate,
    rotation,
)

GPT2 = {
    "block_size": 1024,
    "norm": "layernorm",
    "norm_gain": True,
    "activation": "gelu_tanh",
    "learned_positions": True,
    "rope": False,
    "bias_qkv": True,
    "bias": True,
    "tied_head": True,
    "qk_norm": False,
    "softcap": None,
    "init": "gpt2",
}
SMALL = {"block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768}

#: Architectures by name; `GPTConfig.from_preset` applies them. The vocabulary is the data's (GPT-2's own has 50257
#: tokens). `llama` and `modern` have the depth and width of GPT-2's smallest, so that the three compare.
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | SMALL,
    "gpt2-medium": GPT2 | {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": GPT2 | {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": GPT2 | {"n_layer": 48, "n_head": 25, "n_embd": 1600},
    "llama": SMALL
    | {"n_kv_head": 4, "norm_gain": True, "activation": "swiglu", "qk_norm": False, "softcap": None, "init": "gpt2"},
    "modern": SMALL,
}


@dataclass
class GPTConfig:
    """Size and architecture of a GPT. Raises ValueError for a combination that makes no model."""

    block_size: int = 256
    """Longest context, in tokens."""
    vocab_size: int | None = None
    """Number of tokens in the vocabulary; left out, the data decides."""
    n_layer: int = 6
    """Number of transformer blocks."""
    n_head: int = 6
    """Number of attention heads; each is n_embd / n_head channels wide."""
    n_kv_head: int | None = None
    """Number of key/value heads, each shared by n_head / n_kv_head query heads; left out, one for each head."""
    n_embd: int = 384
    """Width of the residual stream, in channels."""
    mlp_width: int | None = None
    """Hidden width of the MLP; left out, 4 * n_embd (swiglu: 8/3 * n_embd, rounded up to a multiple of 64)."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Normalisation before attention, MLP and head."""
    norm_gain: bool = False
    """Learn a gain for each channel of a norm (and a bias, with layernorm and bias)."""
    activation: Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu"] = "relu2"
    """Non-linearity of the MLP; gelu_tanh is GPT-2's approximation, relu2 the square of relu, swiglu a gated SiLU."""
    learned_positions: bool = False
    """Add a learned vector for each position to the token's."""
    rope: bool = True
    """Rotate queries and keys by their position (RoPE)."""
    rope_base: float = 10000.0
    """Wavelength of RoPE's slowest pair of channels, in tokens / 2 pi."""
    bias_qkv: bool = False
    """Give the query, key and value projections a bias."""
    bias: bool = False
    """Give the attention output, the MLP and layernorms a bias."""
    bias_head: bool = False
    """Give the head a bias."""
    tied_head: bool = False
    """Use the token embedding as the head's weight: pays when the vocabulary dominates the model's size."""
    qk_norm: bool = True
    """Normalise queries and keys to unit root mean square, which bounds the attention scores."""
    softcap: float | None = 15.0
    """Bound logits smoothly to +-softcap by softcap * tanh(logits / softcap)."""
    dropout: float = 0.0
    """Probability of dropping a channel of the embedding or of a block's outputs, or an attention weight."""
    init: Literal["gpt2", "normal", "zero_proj", "torch"] = "zero_proj"
    """Initial weights. normal: N(0, 0.02), biases 0. gpt2: the same, with outputs of blocks divided by sqrt(2 n_layer).
    zero_proj: the same, with outputs of blocks and an untied head 0. torch: the layers' own default."""
    position_std: float = 0.02
    """Standard deviation of the initial learned positions (not with init torch)."""
    pad_vocab_to: int = 1
    """Round the rows of embedding and head up to a multiple of this; a GPU likes 64. Logits have no extra rows."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass instead of keeping their activations: a third more time, less memory."""

    @classmethod
    def from_preset(cls, name: str, **explicit: Any) -> Self:
        """The architecture called `name` in `PRESETS`, with fields overridden by explicit values."""
        if name not in PRESETS:
            raise ValueError(f"preset '{name}' is unknown: choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **explicit})

    @property
    def head_size(self) -> int:
        """Channels of one attention head (D)."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads (H_kv)."""
        return self.n_kv_head or self.n_head

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of the MLP in channels."""
        if self.mlp_width is not None:
            return self.mlp_width
        return math.ceil(self.n_embd * 8 / 3 / 64) * 64 if self.activation == "swiglu" else 4 * self.n_embd

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and of the head: the vocabulary, padded."""
        assert self.vocab_size is not None, "GPTConfig.vocab_size is not set: the data's tokenizer decides it"
        return math.ceil(self.vocab_size / self.pad_vocab_to) * self.pad_vocab_to

    def __post_init__(self) -> None:
        for problem in (*self._wrong_values(), *self._wrong_combinations()):
            raise ValueError(problem)

    def _wrong_values(self) -> Iterator[str]:
        for name, hint in get_type_hints(type(self)).items():
            choices, value = get_args(hint), getattr(self, name)
            if get_origin(hint) is Literal and value not in choices:
                yield f"{name} {value!r} is unknown: choose one of {', '.join(choices)}."
        for name in (
            "block_size",
            "vocab_size",
            "n_layer",
            "n_head",
            "n_kv_head",
            "n_embd",
            "mlp_width",
            "pad_vocab_to",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} is {value}: give at least 1."
        if not 0 <= self.dropout < 1:
            yield f"dropout is {self.dropout}: give a probability, at least 0 and below 1."
        if self.softcap is not None and self.softcap <= 0:
            yield f"softcap is {self.softcap}: give a positive number, or null for none."
        if self.rope_base <= 1:
            yield f"rope_base is {self.rope_base}: give more than 1, usually 10000."
        if self.position_std < 0:
            yield f"position_std is {self.position_std}: give 0 or more."

    def _wrong_combinations(self) -> Iterator[str]:
        if self.n_embd % self.n_head:
            fits = math.ceil(self.n_embd / self.n_head) * self.n_head
            yield f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}: try n_embd {fits}."
        if self.n_head % self.kv_heads:
            yield f"n_head {self.n_head} is not divisible by n_kv_head {self.n_kv_head}: choose a divisor."
        if not (self.learned_positions or self.rope):
            yield "the model would not know the order of its tokens: set rope or learned_positions to true."
        if self.rope and self.head_size % 2:
            yield f"rope turns pairs of channels, but n_embd / n_head is {self.head_size}: make it even or rope false."
        if self.tied_head and self.bias_head:
            yield "a tied head has no bias of its own: set bias_head or tied_head to false."
        if self.tied_head and self.init == "torch":
            yield "init torch draws embeddings from N(0, 1), too large for a tied head: choose init gpt2."


def _norm(config: GPTConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=1e-6, elementwise_affine=config.norm_gain)
    return nn.LayerNorm(config.n_embd, eps=1e-5, elementwise_affine=config.norm_gain, bias=config.bias)


class Linear(nn.Linear):
    """`nn.Linear` that decodes faster on a CPU, where BLAS is slow for the few rows that decoding has.

    For 1 or 2 rows the product runs as a batch of 4 slices of the weight: 2 to 4 times as fast. For more there is
    `pack`: 1.7 to 2.3 times as fast at 16 rows (24 layers of 384 channels, 1 and 2 threads).
    """

    packed: Tensor | None = None

    def pack(self, rows: int) -> None:
        """Keep a copy of the weight in oneDNN's own layout for `rows` rows, used until `packed` is None again."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), rows)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        rows = x.numel() // self.in_features
        if torch.is_grad_enabled() or x.is_cuda or rows > 2 or self.out_features % 4:
            return super().forward(x)
        columns = x.reshape(1, rows, self.in_features).mT.expand(4, -1, -1)
        y = torch.bmm(self.weight.view(4, -1, self.in_features), columns).view(self.out_features, rows).t()
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], self.out_features)


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads, RoPE and QK-norm."""

    def __init__(self, config: GPTConfig) -> None:
        """One projection `qkv` gives H query, H_kv key and H_kv value heads, in this order; `proj` mixes the result."""
        super().__init__()
        self.config = config
        self.heads = config.n_head, config.kv_heads, config.kv_heads
        self.qkv = Linear(config.n_embd, sum(self.heads) * config.head_size, bias=config.bias_qkv)
        self.proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, by: Rotation | None, mask: Mask, cache: LayerCache | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        n_head, n_kv_head, _ = self.heads
        qk, v = self.qkv(x).view(B, T, -1, self.config.head_size).split((n_head + n_kv_head, n_kv_head), dim=2)
        if self.config.qk_norm:
            qk = F.rms_norm(qk, (self.config.head_size,))
        if by is not None:
            qk = rotate(qk, by)
        q, k = qk.transpose(1, 2).split((n_head, n_kv_head), dim=1)  # (B, H, T, D)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k, v)
        y = attention(q, k, v, mask=mask, dropout=self.config.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two linear layers around a non-linearity; swiglu adds a gate (Shazeer 2020), relu2 squares (So et al. 2021)."""

    def __init__(self, config: GPTConfig) -> None:
        """`fc` (and `gate`) widen to the hidden width, `proj` returns to the stream."""
        super().__init__()
        self.activation = config.activation
        self.fc = Linear(config.n_embd, config.mlp_hidden, bias=config.bias)
        self.proj = Linear(config.mlp_hidden, config.n_embd, bias=config.bias)
        if config.activation == "swiglu":
            self.gate = Linear(config.n_embd, config.mlp_hidden, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.proj(self._activate(self.fc(x), x))

    def _activate(self, h: Tensor, x: Tensor) -> Tensor:
        match self.activation:
            case "swiglu":
                return F.silu(self.gate(x)) * h
            case "relu2":
                return F.relu(h).square()
            case "relu":
                return F.relu(h)
            case "gelu":
                return F.gelu(h)
            case _:
                return F.gelu(h, approximate="tanh")


class Block(nn.Module):
    """Attention, then MLP, each on the normalised stream and added to it."""

    def __init__(self, config: GPTConfig) -> None:
        """Dropout applies to what each half adds."""
        super().__init__()
        self.norm1 = _norm(config)
        self.attn = Attention(config)
        self.norm2 = _norm(config)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, by: Rotation | None = None, mask: Mask = None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + F.dropout(self.attn(self.norm1(x), by, mask, cache), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), self.dropout, self.training)


class GPT(nn.Module):
    """A decoder-only transformer: `hidden` computes features, `head` turns them into logits."""

    def __init__(self, config: GPTConfig) -> None:
        """Build and initialise the model; `config.vocab_size` must be known."""
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_rows, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.learned_positions else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = _norm(config)
        untied = not config.tied_head
        self.lm_head = nn.Linear(config.n_embd, config.vocab_rows, bias=config.bias_head) if untied else None
        self.reset_parameters()

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits of the next token at every position, (B, T, V). Arguments are those of `hidden`."""
        return self.head(self.hidden(input_ids, attention_mask=attention_mask, document_ids=document_ids, cache=cache))

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
            attention_mask = cache.remember(attention_mask, input_ids)
        masks = {"attention_mask": attention_mask, "document_ids": document_ids}
        x = self.wte(input_ids)
        if self.wpe is not None:
            x = x + self.wpe(positions(input_ids, past, **masks))
        x = F.dropout(x, self.config.dropout, self.training)
        mask = attention_mask_for(input_ids, past, **masks, flex=self._flex_allowed(input_ids))
        return self.norm(self._run_blocks(x, self._rotation(past, T, x.device), mask, cache))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C): softcapped, without the rows that pad the vocabulary."""
        weight, bias = (self.wte.weight, None) if self.lm_head is None else (self.lm_head.weight, self.lm_head.bias)
        logits = F.linear(hidden, weight, bias)[..., : self.config.vocab_size]
        cap = self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty key/value cache for `batch_size` rows of up to block_size tokens, in the model's dtype."""
        config, weight = self.config, self.wte.weight
        shape = batch_size, config.kv_heads, config.block_size, config.head_size
        return KVCache(config.n_layer, shape, device=weight.device, dtype=weight.dtype)

    def num_parameters(self, *, embeddings: bool = True, positions: bool = True) -> int:
        """Number of parameters, without the token table or the learned positions where asked.

        A tied table is the head as well; without embeddings it is not counted in either place.
        """
        total = sum(p.numel() for p in self.parameters())
        tokens = 0 if embeddings else self.wte.weight.numel()
        places = 0 if positions or self.wpe is None else self.wpe.weight.numel()
        return total - tokens - places

    def flops_per_token(self, T: int | None = None) -> int:
        """Floating-point operations of one forward and backward pass, per token of rows of T (default block_size).

        6 for each weight that multiplies a token (the head's too when tied) and 12 * n_layer * n_embd * T for scores
        and mixing: the convention of PaLM (Chowdhery et al. 2022, appendix B), which does not discount causality.
        """
        config = self.config
        weights = sum(m.weight.numel() for m in self.blocks.modules() if isinstance(m, nn.Linear))
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
        if self.wpe is not None:
            nn.init.normal_(self.wpe.weight, std=self.config.position_std)
        self._scale_outputs()

    def _scale_outputs(self) -> None:
        """Shrink what writes to the stream, so that its variance does not grow with depth (Radford et al. 2019)."""
        factor = {"gpt2": (2 * self.config.n_layer) ** -0.5, "normal": 1.0, "zero_proj": 0.0}[self.config.init]
        for module in self.blocks.modules():
            if isinstance(module, Attention | MLP):
                module.proj.weight.mul_(factor)
        if self.config.init != "zero_proj":
            return
        if self.lm_head is not None:
            nn.init.zeros_(self.lm_head.weight)
        else:
            # Blocks add nothing yet, so a tied head scores the token itself std * n_embd: keep that at 1.
            nn.init.normal_(self.wte.weight, std=1 / self.config.n_embd)

    def _flex_allowed(self, input_ids: Tensor) -> bool:
        return input_ids.is_cuda and not (self.training and self.config.dropout > 0)

    def _rotation(self, past: int, T: int, device: torch.device) -> Rotation | None:
        if not self.config.rope:
            return None
        return rotation(T, self.config.head_size, self.config.rope_base, past=past, device=device)

    def _run_blocks(self, x: Tensor, by: Rotation | None, mask: Mask, cache: KVCache | None) -> Tensor:
        recompute = self.config.activation_checkpointing and self.training
        for i, block in enumerate(self.blocks):
            if recompute:
                x = checkpoint(block, x, by, mask, use_reentrant=False)
            else:
                x = block(x, by, mask, None if cache is None else cache.layers[i])
        return x
