"""What can be chosen about a GPT: the fields of `GPTConfig`, and `PRESETS`, the combinations that people know.

Each field is one idea and combines with the others. The defaults are the modern recipe at a laptop's size.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from datamodules.errors import UserError
from lit_gpt.bounds import wrong_numbers

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


#: Counts that start at 1; others may be 0.
LEAST = dict.fromkeys(
    ("block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "mlp_width", "pad_vocab_to"), 1
)
#: Counts of things that Python makes one after another, beyond what anybody has trained.
MOST = {"n_layer": 10_000}


def as_typed(value: Any) -> str:
    """A value as people type it in YAML and on the command line: null, true, 0.5, gelu."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass
class GPTConfig:
    """Size and architecture of a GPT. Raises a UserError for a combination that makes no model."""

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
    norm_eps: float | None = None
    """Added to the variance or mean square before its root; null is 1e-6 for rmsnorm and 1e-5 for layernorm."""
    norm_gain: bool = False
    """Learn a gain for each channel of a norm (and a bias, with layernorm and bias)."""
    activation: Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu"] = "relu2"
    """Non-linearity of the MLP; gelu_tanh is GPT-2's approximation, relu2 the square of relu, swiglu a gated SiLU."""
    learned_positions: bool = False
    """Add a learned vector for each position to the token's."""
    rope: bool = True
    """Rotate queries and keys by their position (RoPE)."""
    rope_base: float = 10000.0
    """Base of RoPE's frequencies: the slowest pair of channels turns once in nearly 2 pi times as many tokens."""
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
    attention_gate: bool = False
    """Scale what each attention head found by 2 * sigmoid of a learned function of the token, so that a head can stay
    silent (Qiu et al. 2025). The gate starts at 1, where the model is the one without it (not with init torch)."""
    layer_scale: float | None = None
    """Learn a factor for each channel of what attention and MLP add, from this initial value, such as 0.1 (Touvron et
    al. 2021); null for none."""
    softcap: float | None = 15.0
    """Bound logits smoothly to +-softcap by softcap * tanh(logits / softcap)."""
    dropout: float = 0.0
    """Probability of dropping a channel of the embedding or of a block's outputs, or an attention weight."""
    attention_dropout: float | None = None
    """Probability of dropping an attention weight; null is that of `dropout`. At 0 kernels serve that have no
    dropout: packed rows train two fifths faster on a CPU, and with FlexAttention on a GPU."""
    init: Literal["gpt2", "normal", "zero_proj", "torch"] = "gpt2"
    """Initial weights. normal: N(0, 0.02), biases 0. gpt2: the same, with outputs of blocks divided by sqrt(2 n_layer).
    zero_proj: the same, with outputs of blocks and an untied head 0, from which AdamW starts slowly. torch: the layers'
    own default."""
    position_std: float = 0.02
    """Standard deviation of the initial learned positions (not with init torch)."""
    pad_vocab_to: int = 1
    """Round the rows of embedding and head up to a multiple of this; a GPU likes 64. Logits have no extra rows."""

    @classmethod
    def from_preset(cls, name: str, **explicit: Any) -> Self:
        """The architecture called `name` in `PRESETS`, with fields overridden by explicit values."""
        if name not in PRESETS:
            raise UserError(f"preset '{name}' is unknown: choose one of {', '.join(PRESETS)}.")
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
    def norm_epsilon(self) -> float:
        """What is added to the variance or mean square of a norm."""
        return {"rmsnorm": 1e-6, "layernorm": 1e-5}[self.norm] if self.norm_eps is None else self.norm_eps

    @property
    def score_dropout(self) -> float:
        """Probability of dropping an attention weight."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and of the head: the vocabulary, padded."""
        assert self.vocab_size is not None, "GPTConfig.vocab_size is not set: the data's tokenizer decides it"
        return math.ceil(self.vocab_size / self.pad_vocab_to) * self.pad_vocab_to

    @property
    def matrix_parameters(self) -> int:
        """Parameters in the matrices of the network: all but biases, gains and scales."""
        C = self.n_embd
        tokens = self.vocab_rows * C * (1 if self.tied_head else 2)
        attention = C * self.head_size * (2 * self.n_head + 2 * self.kv_heads) + C * self.n_head * self.attention_gate
        mlp = C * self.mlp_hidden * (3 if self.activation == "swiglu" else 2)
        positions = self.block_size * C * self.learned_positions
        return tokens + positions + self.n_layer * (attention + mlp)

    def __post_init__(self) -> None:
        for problems in (self._unknown_values, self._wrong_values, self._wrong_combinations):
            for problem in problems():  # each takes for granted what the one before has found right
                raise UserError(problem)

    def _bounds(self) -> tuple[dict[str, int], dict[str, int]]:
        """The smallest and the largest values of the fields that have such."""
        return LEAST, MOST

    def _unknown_values(self) -> Iterator[str]:
        for name, hint in get_type_hints(type(self)).items():
            choices, value = get_args(hint), getattr(self, name)
            if get_origin(hint) is Literal and value not in choices:
                yield f"{name} {value!r} is unknown: choose one of {', '.join(choices)}."

    def _wrong_values(self) -> Iterator[str]:
        yield from wrong_numbers(self, *self._bounds())
        for name, probability in (("dropout", self.dropout), ("attention_dropout", self.score_dropout)):
            if not 0 <= probability < 1:
                yield f"{name} is {probability}: give a probability, at least 0 and below 1."
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


def vocabulary(wanted: int | None, found: int | None) -> int:
    """The size that a configuration wants for its vocabulary, or that of the data that was found."""
    size = wanted or found
    if size is None:
        raise UserError(
            "the vocabulary is unknown: set model.config.vocab_size, or fit with a datamodule that has vocab_size."
        )
    if found is not None and size < found:
        raise UserError(
            f"model.config.vocab_size {size} is smaller than the data's {found} symbols: leave it out, or raise it."
        )
    return size
