"""BERT, a bidirectional transformer encoder (Devlin et al. 2018), in plain PyTorch.

    import torch
    from lit_gpt.bert.model import Bert, BertConfig

    model = Bert(BertConfig(vocab_size=100))
    ids = torch.randint(100, (2, 16))
    logits = model(ids)  # (2, 16, 100): which token belongs at each place

Nothing here knows of Lightning, data or text. Shape letters: B batch, T sequence length, C channels (n_embd), H heads,
D head size, V vocabulary.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gpt.attention import Mask, attention, build_mask, dropout, position_ids, rotary_cos_sin
from lit_gpt.bert.config import PRESETS, BertConfig
from lit_gpt.bounds import check_memory
from lit_gpt.loss import at_least_float32
from lit_gpt.model import MLP, Attention, Block
from lit_gpt.protocols import Network

__all__ = ["PRESETS", "Bert", "BertAttention", "BertBlock", "BertConfig"]

#: Standard deviation of every initial matrix, as in the original, which draws from a normal distribution cut at two
#: of them.
INIT_STD = 0.02
#: Share of the tokens that pass through the MLM head: about as many as are masked in the original.
MASKED_SHARE = 0.15


def _layer_norm(config: BertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps)


class BertAttention(nn.Module):
    """Self-attention of the original: queries, keys, values and output each have a matrix and a bias."""

    def __init__(self, config: BertConfig) -> None:
        """All four maps are C to C."""
        super().__init__()
        C = config.n_embd
        self.config = config
        self.query, self.key, self.value, self.proj = (nn.Linear(C, C) for _ in range(4))

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """(B, T, C) to (B, T, C). The mask is from `build_mask`; None: every token sees every other."""
        B, T, C = x.shape
        heads = (B, T, self.config.n_head, self.config.head_size)
        q, k, v = (f(x).view(heads).transpose(1, 2) for f in (self.query, self.key, self.value))  # (B, H, T, D)
        dropout_p = self.config.resolved_attention_dropout if self.training else 0.0
        y = attention(q, k, v, mask=mask, dropout_p=dropout_p, causal=False)  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class BertBlock(nn.Module):
    """A post-norm transformer block: norm(x + attention(x)), then norm(x + MLP(x))."""

    def __init__(self, config: BertConfig) -> None:
        """The MLP is the GPT's, with biases."""
        super().__init__()
        self.attn, self.norm1 = BertAttention(config), _layer_norm(config)
        self.mlp, self.norm2 = MLP(config.as_gpt()), _layer_norm(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, cos_sin: None, mask: Mask) -> Tensor:
        """(B, T, C) to (B, T, C). Without RoPE there is no ``cos_sin``; `Block` has the same arguments."""
        x = self.norm1(x + dropout(self.attn(x, mask), self.dropout, self.training))
        return self.norm2(x + dropout(self.mlp(x), self.dropout, self.training))


class Bert(Network):
    """An encoder: `hidden` computes hidden states, `head` the logits of the token at each place, and `pair_logits`
    whether sentence B follows A.
    """

    causal = False

    def __init__(self, config: BertConfig) -> None:
        """Build and initialise the model; `config.vocab_size` must be known.

        Raises:
            UserError: The weights in float32 need more memory than there is.
        """
        super().__init__()
        check_memory(config.matrix_parameters, lower="config.n_embd, config.n_layer or the vocabulary")
        assert config.vocab_size is not None
        C, is_bert = config.n_embd, config.blocks == "bert"
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, C)  # of tokens; the weight of the MLM head too
        self.wpe = nn.Embedding(config.block_size, C) if is_bert else None  # of positions
        self.wtt = nn.Embedding(config.token_types, C)  # of segments
        if is_bert:
            self.norm: nn.Module = _layer_norm(config)  # of the embedding
            self.blocks = nn.ModuleList(BertBlock(config) for _ in range(config.n_layer))
        else:
            self.norm = nn.RMSNorm(C, eps=1e-6, elementwise_affine=False)  # of the last block
            self.blocks = nn.ModuleList(Block(config.as_gpt(), causal=False) for _ in range(config.n_layer))
        self.pooler = nn.Linear(C, C) if config.next_sentence else None
        self.pair_head = nn.Linear(C, 2) if config.next_sentence else None
        self.mlm_dense, self.mlm_norm = nn.Linear(C, C), _layer_norm(config)
        self.mlm_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation_checkpointing = False  # set by the LightningModule: a matter of training
        self.reset_parameters()

    # ---- the encoder

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Any = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last block, (B, T, C).

        Args:
            input_ids: Token ids, (B, T), T at most block_size.
            attention_mask: The padding mask, (B, T), True for real tokens. Pads may be on either side.
            document_ids: The id of each token's document in packed rows, (B, T). A token sees its own document only,
                and learned positions start anew in each.
            cache: None: an encoder reads all tokens at once.
            token_type_ids: The segment of each token, (B, T); None: all are of the first.
        """
        assert cache is None, "an encoder has no cache"
        if input_ids.size(1) > self.config.block_size:
            raise ValueError(f"{input_ids.size(1)} tokens exceed block_size {self.config.block_size}: pass fewer.")
        visible: dict[str, Any] = {"attention_mask": attention_mask, "document_ids": document_ids}
        x = self._embed(input_ids, visible, token_type_ids)  # (B, T, C)
        mask = build_mask(input_ids, causal=False, **visible)
        if self.wpe is not None:
            return self._run_blocks(x, None, mask)
        cos_sin = rotary_cos_sin(
            input_ids.size(1), self.config.head_size, self.config.as_gpt().rope_base, device=x.device
        )
        return self.norm(self._run_blocks(x, cos_sin, mask))

    def hidden_of_batch(self, batch: dict[str, Tensor]) -> Tensor:
        """See `Network`; an encoder sees pads unless it is told which they are, and segments."""
        names = ("attention_mask", "document_ids", "token_type_ids")
        return self.hidden(batch["input_ids"], **{name: batch[name] for name in names if name in batch})

    def _embed(self, input_ids: Tensor, visible: dict[str, Any], token_type_ids: Tensor | None) -> Tensor:
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = self.wte(input_ids) + self.wtt(types)  # (B, T, C)
        if self.wpe is not None:
            x = self.norm(x + self.wpe(position_ids(input_ids, **visible)))
        return dropout(x, self.config.dropout, self.training)

    def _run_blocks(self, x: Tensor, cos_sin: Any, mask: Mask) -> Tensor:
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, cos_sin, mask, use_reentrant=False)
            else:
                x = block(x, cos_sin, mask)
        return x

    # ---- the heads

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        """All parameters of the MLM head: token embedding, bias of the logits, and those of the layers before.

        Args:
            ids: Token ids (K,) whose rows are returned; None: all.
        """
        rows = (self.wte.weight, self.mlm_bias)
        return [*(rows if ids is None else (w[ids] for w in rows)), *self._transform()]

    def _transform(self) -> list[Tensor]:
        return [*self.mlm_dense.parameters(), *self.mlm_norm.parameters()]

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (..., V) of the token at each place, of hidden states (..., C): a layer, LayerNorm, then the token
        embedding and a bias.
        """
        table, bias, dense, dense_bias, gain, shift = self.head_weights() if weights is None else weights
        h = _ACTIVATIONS[self.config.activation](F.linear(hidden, dense, dense_bias))  # (..., C)
        # Under autocast the norm computes in float32, whatever its weights were cast to.
        wide, gain, shift = map(at_least_float32, (h, gain, shift))
        h = F.layer_norm(wide, h.shape[-1:], gain, shift, self.config.norm_eps).to(h.dtype)
        return F.linear(h, table, bias)

    def pair_logits(self, hidden: Tensor) -> Tensor:
        """Logits (B, 2) of hidden states (B, T, C): index 0 says that B follows A, 1 that B is random."""
        assert self.pooler is not None, "config.next_sentence is false"
        assert self.pair_head is not None
        return self.pair_head(torch.tanh(self.pooler(hidden[:, 0])))  # the state of [CLS]

    # ---- size and initial weights

    def num_parameters(self, *, embeddings: bool = True, positions: bool = True) -> int:
        """See `GPT.num_parameters`."""
        total = sum(p.numel() for p in self.parameters())
        position_parameters = 0 if positions or self.wpe is None else self.wpe.weight.numel()
        return total - (0 if embeddings else self.wte.weight.numel()) - position_parameters

    def flops_per_token(self, T: int | None = None) -> int:
        """As `GPT.flops_per_token`, with the MLM head for `MASKED_SHARE` of the tokens."""
        config, C = self.config, self.config.n_embd
        blocks = sum(m.weight.numel() for m in self.blocks.modules() if isinstance(m, nn.Linear))
        head = int(MASKED_SHARE * C * (C + self.wte.num_embeddings))
        return 6 * (blocks + head) + 12 * config.n_layer * C * (T or config.block_size)

    def expected_initial_loss(self) -> float:
        """ln V, and ln 2 for the next sentence."""
        return math.log(self.wte.num_embeddings) + (math.log(2) if self.config.next_sentence else 0.0)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial weights as the original does; blocks gpt scale their output projections as a GPT does."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.blocks.modules():
            if isinstance(module, Attention | MLP) and self.config.blocks == "gpt":
                module.proj.weight.mul_((2 * self.config.n_layer) ** -0.5)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x) * F.relu(x)


_ACTIVATIONS: dict[str, Any] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": _relu2,
}
