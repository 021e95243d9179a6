"""The options of a GPT: the fields of `GPTConfig`, and `PRESETS`, named architectures.

The defaults are those of preset ``modern`` at a laptop's size: RMSNorm without gains, RoPE, QK-norm, squared ReLU,
no biases, an untied LM head and softcapped logits, as in nanochat (Karpathy 2025).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from datamodules.errors import UserError
from lit_gpt.bounds import invalid_numbers

#: What GPT-2's four sizes have in common.
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
#: Size of the smallest GPT-2.
GPT2_SMALL_SIZE = {"block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768}

#: Architectures by name; `GPTConfig.from_preset` applies them. The vocabulary is the data's (GPT-2's own has 50257
#: tokens). `llama` and `modern` have the depth and width of the smallest GPT-2, so that the three can be compared.
#: `llama` is Llama's architecture (RMSNorm with gains, SwiGLU, RoPE of base 10000) with grouped key/value heads, as
#: Llama 2's largest sizes have. `modern` is this project's: every field but the size keeps its default.
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | GPT2_SMALL_SIZE,
    "gpt2-medium": GPT2 | {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": GPT2 | {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": GPT2 | {"n_layer": 48, "n_head": 25, "n_embd": 1600},
    "llama": GPT2_SMALL_SIZE
    | {"n_kv_head": 4, "norm_gain": True, "activation": "swiglu", "qk_norm": False, "softcap": None, "init": "gpt2"},
    "modern": GPT2_SMALL_SIZE,
}


#: Smallest values. Fields that are not listed have no lower limit here.
MIN_VALUES = dict.fromkeys(
    ("block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "mlp_width", "pad_vocab_to"), 1
)
#: Largest values, so that a typo is refused at once. Without this one, torch would build layers for hours.
MAX_VALUES = {"n_layer": 10_000}


def format_value(value: Any) -> str:
    """A value as it is written in YAML and on the command line: null, true, 0.5, gelu."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass  # without fields, because jsonargparse takes a class for a dataclass only if its bases are dataclasses
class TransformerConfig:
    """What the dataclasses `GPTConfig` and `BertConfig` have in common: presets, and the checks of their fields."""

    if TYPE_CHECKING:  # not when it runs: fields are checked in the order of a subclass's own annotations
        presets: ClassVar[dict[str, dict[str, Any]]]
        n_head: int
        n_embd: int
        dropout: float
        attention_dropout: float | None

    @classmethod
    def from_preset(cls, name: str, **explicit: Any) -> Self:
        """The architecture called `name` in `presets`, with fields overridden by explicit values."""
        if name not in cls.presets:
            raise UserError(f"preset '{name}' is unknown: choose one of {', '.join(cls.presets)}.")
        return cls(**{**cls.presets[name], **explicit})

    @property
    def head_size(self) -> int:
        """Channels of one attention head (D)."""
        return self.n_embd // self.n_head

    @property
    def resolved_attention_dropout(self) -> float:
        """Probability of dropping an attention weight: attention_dropout, or dropout."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    def __post_init__(self) -> None:
        # In this order: a later check divides by numbers that an earlier one has found to be positive.
        for check in (self._unknown_choices, self._invalid_values, self._invalid_combinations):
            for problem in check():
                raise UserError(problem)

    def _limits(self) -> tuple[dict[str, int], dict[str, int]]:
        """The smallest and the largest values of fields, by name; a subclass adds those of its own fields."""
        return {}, {}

    def _unknown_choices(self) -> Iterator[str]:
        for name, hint in get_type_hints(type(self)).items():
            choices, value = get_args(hint), getattr(self, name)
            if get_origin(hint) is Literal and value not in choices:
                yield f"{name} {value!r} is unknown: choose one of {', '.join(choices)}."

    def _invalid_values(self) -> Iterator[str]:
        yield from invalid_numbers(self, *self._limits())
        for name, probability in (("dropout", self.dropout), ("attention_dropout", self.resolved_attention_dropout)):
            if not 0 <= probability < 1:
                yield f"{name} is {probability}: give a probability, at least 0 and below 1."

    def _invalid_combinations(self) -> Iterator[str]:
        if self.n_embd % self.n_head:
            divisible = math.ceil(self.n_embd / self.n_head) * self.n_head
            yield f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}: try n_embd {divisible}."


@dataclass
class GPTConfig(TransformerConfig):
    """Size and architecture of a GPT. Raises a UserError for a value out of range or an invalid combination.

    In YAML and on the command line `null` stands for None. The properties called ``resolved_NAME`` are the values of
    fields that may be null.
    """

    presets = PRESETS

    block_size: int = 256
    """Longest context, in tokens."""
    vocab_size: int | None = None
    """Number of tokens in the vocabulary; null takes that of the data's tokenizer."""
    n_layer: int = 6
    """Number of transformer blocks."""
    n_head: int = 6
    """Number of attention heads; each is n_embd / n_head channels wide."""
    n_kv_head: int | None = None
    """Number of key/value heads, each shared by n_head / n_kv_head query heads (grouped-query attention); null is
    n_head."""
    n_embd: int = 384
    """Width of the residual stream, in channels."""
    mlp_width: int | None = None
    """Hidden width of the MLP; null is 4 * n_embd (swiglu: 8/3 * n_embd, rounded up to a multiple of 64)."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Normalisation before attention, MLP and LM head."""
    norm_eps: float | None = None
    """Epsilon of the norms, which avoids a division by zero; null is 1e-6 for rmsnorm and 1e-5 for layernorm."""
    norm_gain: bool = False
    """Learn a gain for each channel of a norm. With norm layernorm and `bias` true, a norm has a bias as well."""
    activation: Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu"] = "relu2"
    """Non-linearity of the MLP; gelu_tanh is GPT-2's approximation, relu2 the square of relu, swiglu a gated SiLU."""
    learned_positions: bool = False
    """Add a learned position embedding to the token embedding."""
    rope: bool = True
    """Rotate queries and keys by their position (RoPE)."""
    rope_base: float = 10000.0
    """Base of RoPE's frequencies: the longest wavelength is about 2 * pi * rope_base tokens."""
    bias_qkv: bool = False
    """Give the query, key and value projections a bias."""
    bias: bool = False
    """Give the attention output, the MLP and layernorms a bias."""
    bias_head: bool = False
    """Give the LM head a bias."""
    tied_head: bool = False
    """Use the token embedding as the LM head's weight. This saves vocab_size * n_embd parameters, which are most of a
    small model with a large vocabulary."""
    qk_norm: bool = True
    """Normalise queries and keys to a root mean square of 1 (QK-norm), which bounds the attention scores."""
    attention_gate: bool = False
    """Multiply each attention head's output by 2 * sigmoid of a learned linear function of the block's normalised
    input, so that a head can be switched off (Qiu et al. 2025). The factor starts at 1, without effect (not with init
    torch)."""
    layer_scale: float | None = None
    """LayerScale (Touvron et al. 2021): learn a factor for each channel of the outputs of attention and MLP. This is
    the initial value of the factors, such as 0.1; null for none."""
    softcap: float | None = 15.0
    """Bound logits smoothly to +-softcap by softcap * tanh(logits / softcap); null for none. Gemma 2 has 30, nanochat
    15."""
    dropout: float = 0.0
    """Probability of dropping an element of the embedding and of the outputs of attention and MLP, and an attention
    weight where attention_dropout is null."""
    attention_dropout: float | None = None
    """Probability of dropping an attention weight; null is the value of `dropout`. 0 allows faster attention kernels,
    which have no dropout: FlexAttention for packed rows on a GPU, and 1.4 times the tokens per second on a CPU."""
    init: Literal["gpt2", "normal", "zero_proj", "torch"] = "gpt2"
    """Initial weights. normal: N(0, 0.02), biases 0. gpt2: the same, with the output projections of attention and MLP
    divided by sqrt(2 * n_layer). zero_proj: the same, with these projections and an untied LM head at 0. In a small
    model val/loss after 300 steps is then 2.38 instead of gpt2's 1.83 under AdamW, and the same under Muon. torch: the
    default of each torch layer."""
    position_std: float = 0.02
    """Standard deviation of the initial position embeddings (not with init torch)."""
    pad_vocab_to: int = 1
    """Round the vocabulary of embedding and LM head up to a multiple of this; with 64, matmuls are faster on a GPU. The
    logits still have vocab_size columns."""

    @property
    def resolved_n_kv_head(self) -> int:
        """Number of key/value heads (H_kv): n_kv_head, or n_head."""
        return self.n_kv_head or self.n_head

    @property
    def resolved_mlp_width(self) -> int:
        """Hidden width of the MLP in channels: mlp_width, or that of the activation."""
        if self.mlp_width is not None:
            return self.mlp_width
        return math.ceil(self.n_embd * 8 / 3 / 64) * 64 if self.activation == "swiglu" else 4 * self.n_embd

    @property
    def resolved_norm_eps(self) -> float:
        """Epsilon of the norms: norm_eps, or the usual one."""
        return {"rmsnorm": 1e-6, "layernorm": 1e-5}[self.norm] if self.norm_eps is None else self.norm_eps

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the LM head: vocab_size, rounded up to a multiple of pad_vocab_to."""
        assert self.vocab_size is not None, "GPTConfig.vocab_size is not set: the data's tokenizer decides it"
        return math.ceil(self.vocab_size / self.pad_vocab_to) * self.pad_vocab_to

    @property
    def matrix_parameters(self) -> int:
        """Number of parameters without biases, gains and scales, for a check of the memory before anything is built."""
        C = self.n_embd
        embedding_and_head = self.padded_vocab_size * C * (1 if self.tied_head else 2)
        heads = 2 * self.n_head + 2 * self.resolved_n_kv_head  # queries and output; keys and values
        attention = C * self.head_size * heads + C * self.n_head * self.attention_gate
        mlp = C * self.resolved_mlp_width * (3 if self.activation == "swiglu" else 2)
        positions = self.block_size * C * self.learned_positions
        return embedding_and_head + positions + self.n_layer * (attention + mlp)

    def _limits(self) -> tuple[dict[str, int], dict[str, int]]:
        return MIN_VALUES, MAX_VALUES

    def _invalid_values(self) -> Iterator[str]:
        yield from super()._invalid_values()
        if self.softcap is not None and self.softcap <= 0:
            yield f"softcap is {self.softcap}: give a positive number, or null for none."
        if self.layer_scale is not None and self.layer_scale <= 0:
            yield f"layer_scale is {self.layer_scale}: give a positive number, such as 0.1, or null for none."
        if self.norm_eps is not None and self.norm_eps <= 0:
            yield f"norm_eps is {self.norm_eps}: give a positive number, such as 1e-5, or null for the usual one."
        if self.rope_base <= 1:
            yield f"rope_base is {self.rope_base}: give more than 1, usually 10000."
        if self.position_std < 0:
            yield f"position_std is {self.position_std}: give 0 or more."

    def _invalid_combinations(self) -> Iterator[str]:
        yield from super()._invalid_combinations()
        if self.n_head % self.resolved_n_kv_head:
            yield f"n_head {self.n_head} is not divisible by n_kv_head {self.n_kv_head}: choose a divisor."
        if not (self.learned_positions or self.rope):
            yield "the model would not know the order of its tokens: set rope or learned_positions to true."
        if self.rope and self.head_size % 2:
            yield (
                f"rope rotates pairs of channels, but n_embd / n_head is {self.head_size}: make it even, or set rope "
                "to false."
            )
        if self.tied_head and self.bias_head:
            yield "a tied head has no bias of its own: set bias_head or tied_head to false."
        if self.tied_head and self.init == "torch":
            yield "init torch draws embeddings from N(0, 1), too large for a tied head: choose init gpt2."


def resolve_vocab_size(configured: int | None, from_data: int | None) -> int:
    """The vocabulary size of a configuration, or else that of the data."""
    size = configured or from_data
    if size is None:
        raise UserError(
            "the vocabulary is unknown: set model.config.vocab_size, or fit with a datamodule that has vocab_size."
        )
    if from_data is not None and size < from_data:
        raise UserError(
            f"model.config.vocab_size {size} is smaller than the data's {from_data} tokens: leave it out, or raise it."
        )
    return size
