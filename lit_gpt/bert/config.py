"""The options of a BERT: the fields of `BertConfig`, and `PRESETS`, the published sizes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lit_gpt.config import MAX_VALUES, GPTConfig, TransformerConfig

#: Sizes by name: base and large of Devlin et al. (2018), tiny of Turc et al. (2019). The vocabulary is the data's.
PRESETS: dict[str, dict[str, Any]] = {
    "bert-base": {"block_size": 512, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "bert-large": {"block_size": 512, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "bert-tiny": {"block_size": 512, "n_layer": 2, "n_head": 2, "n_embd": 128},
}
MIN_VALUES = dict.fromkeys(("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "mlp_width", "token_types"), 1)


@dataclass
class BertConfig(TransformerConfig):
    """Size and architecture of a BERT. Raises a UserError for a value out of range or an invalid combination.

    Fields that `GPTConfig` has too mean the same there.
    """

    presets = PRESETS

    block_size: int = 128
    """Longest row, in tokens, [CLS] and [SEP] included."""
    vocab_size: int | None = None
    """Number of tokens in the vocabulary; null takes that of the data's tokenizer."""
    n_layer: int = 4
    """Number of transformer blocks."""
    n_head: int = 4
    """Number of attention heads; each is n_embd / n_head channels wide."""
    n_embd: int = 256
    """Width of the residual stream, in channels."""
    mlp_width: int | None = None
    """Hidden width of the MLP; null is 4 * n_embd."""
    blocks: Literal["bert", "gpt"] = "bert"
    """bert: the original's, with LayerNorm after attention and MLP, biases, and learned positions. gpt: the GPT's own,
    with RMSNorm before attention and MLP, RoPE, QK-norm and no biases, so that encoder and decoder compare."""
    activation: Literal["gelu", "gelu_tanh", "relu", "relu2"] = "gelu"
    """Non-linearity of the MLP and of the MLM head. gelu is Hugging Face's BERT, gelu_tanh Google's own."""
    token_types: int = 2
    """Number of segments that token_type_ids may name: the two sentences of a pair."""
    next_sentence: bool = True
    """Build the pooler and the head that tells whether B follows A. Their data are pairs of sentences."""
    norm_eps: float = 1e-12
    """Epsilon of the LayerNorms, which avoids a division by zero. RMSNorms of blocks gpt have their usual one."""
    dropout: float = 0.1
    """Probability of dropping an element of the embedding and of the outputs of attention and MLP, and an attention
    weight where attention_dropout is null."""
    attention_dropout: float | None = None
    """Probability of dropping an attention weight; null is the value of `dropout`."""

    @property
    def learned_positions(self) -> bool:
        """Whether positions have embeddings, block_size of them."""
        return self.blocks == "bert"

    @property
    def resolved_mlp_width(self) -> int:
        """Hidden width of the MLP in channels: mlp_width, or 4 * n_embd."""
        return self.mlp_width or 4 * self.n_embd

    @property
    def resolved_norm_eps(self) -> float:
        """Epsilon of the LayerNorms."""
        return self.norm_eps

    @property
    def matrix_parameters(self) -> int:
        """Number of parameters without biases and norms, for a check of the memory before anything is built."""
        assert self.vocab_size is not None, "BertConfig.vocab_size is not set: the data's tokenizer decides it"
        C = self.n_embd
        tables = self.vocab_size + self.token_types + self.block_size * (self.blocks == "bert")
        block = 4 * C + 2 * self.resolved_mlp_width
        return C * (tables + self.n_layer * block + C + C * self.next_sentence)

    def as_gpt(self) -> GPTConfig:
        """The configuration of the GPT's parts that the blocks are made of: the MLP, or all of blocks gpt."""
        is_bert = self.blocks == "bert"
        return GPTConfig(
            block_size=self.block_size,
            vocab_size=self.vocab_size,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            mlp_width=self.resolved_mlp_width,
            activation=self.activation,
            learned_positions=is_bert,
            rope=not is_bert,
            qk_norm=not is_bert,
            bias=is_bert,
            bias_qkv=is_bert,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
        )

    def _limits(self) -> tuple[dict[str, int], dict[str, int]]:
        return MIN_VALUES, MAX_VALUES

    def _invalid_values(self) -> Iterator[str]:
        yield from super()._invalid_values()
        if self.norm_eps <= 0:
            yield f"norm_eps is {self.norm_eps}: give a positive number, such as 1e-12."

    def _invalid_combinations(self) -> Iterator[str]:
        yield from super()._invalid_combinations()
        if self.blocks == "gpt" and self.head_size % 2:
            yield f"blocks gpt rotate pairs of channels, but n_embd / n_head is {self.head_size}: make it even."
