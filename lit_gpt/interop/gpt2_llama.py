"""Our configuration and tensors as those of Hugging Face's GPT-2 and Llama, and back: dictionaries only, no files.

Both directions walk over the same table of names. What is the same function in other clothes is translated (a missing
bias is a bias of zeros, a norm without a gain has gains of one); what would be another function is refused by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from lit_gpt.bounds import check_fits
from lit_gpt.config import as_typed
from lit_gpt.model import GPT, GPTConfig

Config = dict[str, Any]
State = dict[str, Tensor]

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}


@dataclass(frozen=True)
class Family:
    """One architecture there: its names, and the values that our options must have to be it."""

    model_type: str
    architecture: str
    prefix: str
    """What every name but the head's starts with; GPT-2's first files lack it."""
    blocks: str
    names: dict[str, tuple[str, ...]]
    """Their module, or the modules whose rows ours stacks, for each module of ours."""
    needs: dict[str, tuple[Any, ...]]
    transposed: bool = False
    """Weights of blocks are (in, out): GPT-2's Conv1D."""


SAME: dict[str, tuple[Any, ...]] = {
    "qk_norm": (False,),
    "softcap": (None,),
    "bias_head": (False,),
    "attention_gate": (False,),
    "layer_scale": (None,),
}
GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    blocks="h",
    names={
        "wte": ("transformer.wte",),
        "wpe": ("transformer.wpe",),
        "norm1": ("ln_1",),
        "attn.qkv": ("attn.c_attn",),
        "attn.proj": ("attn.c_proj",),
        "norm2": ("ln_2",),
        "mlp.fc": ("mlp.c_fc",),
        "mlp.proj": ("mlp.c_proj",),
        "norm": ("transformer.ln_f",),
        "lm_head": ("lm_head",),
    },
    needs={"norm": ("layernorm",), "rope": (False,), "activation": tuple(ACTIVATIONS), "n_kv_head": (None,), **SAME},
    transposed=True,
)
LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    blocks="layers",
    names={
        "wte": ("model.embed_tokens",),
        "norm1": ("input_layernorm",),
        "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": ("self_attn.o_proj",),
        "norm2": ("post_attention_layernorm",),
        "mlp.fc": ("mlp.up_proj",),
        "mlp.gate": ("mlp.gate_proj",),
        "mlp.proj": ("mlp.down_proj",),
        "norm": ("model.norm",),
        "lm_head": ("lm_head",),
    },
    needs={"norm": ("rmsnorm",), "learned_positions": (False,), "activation": ("swiglu",), **SAME},
)
FAMILIES = {family.model_type: family for family in (GPT2, LLAMA)}


# ours to theirs


def to_huggingface(config: GPTConfig, state: State, eos_id: int | None) -> tuple[Config, State]:
    """The ``config.json`` and tensors of a GPT, as `GPT2LMHeadModel` (without RoPE) or `LlamaForCausalLM` (with it).

    Args:
        config: Its configuration.
        state: Its tensors by the names of `GPT.state_dict`.
        eos_id: The end mark, with which documents begin, too.

    Raises:
        UserError: Options that the architecture does not have; each is named.
    """
    family = LLAMA if config.rope else GPT2
    _check_options(family, config)
    full = _with_every_tensor(family, config)
    theirs = _gpt2_config(full) if family is GPT2 else _llama_config(full)
    marks = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": None}
    dtype = str(state["wte.weight"].dtype).removeprefix("torch.")
    head = {"model_type": family.model_type, "architectures": [family.architecture], "dtype": dtype}
    return {**head, **theirs, **marks}, dict(_their_tensors(family, full, without_padding(config, state)))


def _check_options(family: Family, config: GPTConfig) -> None:
    config = replace(config, n_kv_head=None) if config.kv_heads == config.n_head else config
    wrong = {name: good for name, good in family.needs.items() if getattr(config, name) not in good}
    if wrong:
        have = ", ".join(f"{name} {as_typed(getattr(config, name))}" for name in wrong)
        need = ", ".join(f"{name} {' or '.join(map(as_typed, good))}" for name, good in wrong.items())
        raise UserError(
            f"{have} cannot be expressed in Hugging Face's {family.architecture}, which needs {need}: train with that, "
            "or export with --format safetensors."
        )


def _with_every_tensor(family: Family, config: GPTConfig) -> GPTConfig:
    """The same function with each tensor that theirs has: their biases come all or none."""
    biased = family is GPT2 or config.bias or config.bias_qkv
    return replace(config, pad_vocab_to=1, norm_gain=True, bias=biased, bias_qkv=biased)


def without_padding(config: GPTConfig, state: State) -> State:
    """Tensors without the rows that pad the vocabulary."""
    rows = {"wte.weight", "lm_head.weight", "lm_head.bias", "wte.parts.table"}
    return {name: tensor[: config.vocab_size] if name in rows else tensor for name, tensor in state.items()}


def _their_tensors(family: Family, config: GPTConfig, state: State) -> Iterator[tuple[str, Tensor]]:
    dtype = state["wte.weight"].dtype
    for name, shape in shapes_of(config).items():
        fill = torch.zeros if name.endswith("bias") else torch.ones
        tensor = state[name] if name in state else fill(shape, dtype=dtype)
        parts = tensor.split(_rows(family, config, name, shape))
        for theirs, part in zip(_their_names(family, name), parts, strict=True):
            yield theirs, (part.t() if _is_transposed(family, name) else part).contiguous()


def _gpt2_config(config: GPTConfig) -> Config:
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.mlp_hidden,
        "n_positions": config.block_size,
        "vocab_size": config.vocab_size,
        "activation_function": ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tied_head,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.score_dropout,
    }


def _llama_config(config: GPTConfig) -> Config:
    return {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "hidden_size": config.n_embd,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_hidden,
        "max_position_embeddings": config.block_size,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "attention_bias": config.bias_qkv,
        "mlp_bias": config.bias,
        "attention_dropout": config.score_dropout,
        "tie_word_embeddings": config.tied_head,
    }


# theirs to ours


def from_huggingface(theirs: Config, tensors: State) -> tuple[GPTConfig, State]:
    """Our configuration and float32 tensors of a GPT-2 or Llama.

    Args:
        theirs: Its ``config.json``.
        tensors: Its tensors, with or without the prefix that GPT-2's first files lack.

    Raises:
        UserError: An architecture or option that we do not have, a tensor that is missing or too many.
    """
    family = FAMILIES.get(str(theirs.get("model_type")))
    if family is None:
        raise UserError(f"model_type {theirs.get('model_type')!r} cannot be imported: {' and '.join(FAMILIES)} can.")
    _check_theirs(family, theirs)
    try:
        config = GPTConfig(**(_from_gpt2(theirs) if family is GPT2 else _from_llama(theirs)))
    except KeyError as error:
        raise UserError(f"the imported config.json lacks {error}: use a complete copy.") from None
    check_fits(config.matrix_parameters, "the sizes in config.json")
    return config, _our_tensors(family, config, _canonical(family, tensors))


def _check_theirs(family: Family, theirs: Config) -> None:
    rope = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
    width = theirs.get("hidden_size", 0) // theirs.get("num_attention_heads", 1)
    need: dict[str, tuple[Any, Any]] = {
        "scale_attn_weights": (theirs.get("scale_attn_weights", True), True),
        "scale_attn_by_inverse_layer_idx": (theirs.get("scale_attn_by_inverse_layer_idx", False), False),
        "add_cross_attention": (theirs.get("add_cross_attention", False), False),
    }
    if family is LLAMA:
        need = {
            "hidden_act": (theirs.get("hidden_act", "silu"), "silu"),
            "head_dim": (theirs.get("head_dim") or width, width),
            "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        }
    for name, (value, wanted) in need.items():
        if value != wanted:
            raise UserError(f"{name} {value} of the imported config.json has no counterpart here, only {wanted} has.")


def _from_gpt2(theirs: Config) -> Config:
    activation = theirs.get("activation_function", "gelu_new").replace("gelu_pytorch_tanh", "gelu_new")
    ours = {name: mine for mine, name in ACTIVATIONS.items()}
    if activation not in ours:
        raise UserError(f"activation_function {activation} has no counterpart here, only {', '.join(ours)} have.")
    dropout = theirs.get("resid_pdrop", 0.1)
    return {
        **_fixed(GPT2),
        **{name: theirs[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")},
        "block_size": theirs.get("n_positions", theirs.get("n_ctx")),
        "mlp_width": theirs.get("n_inner"),
        "activation": ours[activation],
        "norm_eps": _unless(theirs.get("layer_norm_epsilon", 1e-5), 1e-5),
        "learned_positions": True,
        "bias": True,
        "bias_qkv": True,
        "tied_head": theirs.get("tie_word_embeddings", True),
        "dropout": dropout,
        "attention_dropout": _unless(theirs.get("attn_pdrop", 0.1), dropout),
    }


def _from_llama(theirs: Config) -> Config:
    rope = theirs.get("rope_parameters") or {}
    biased = theirs.get("attention_bias", False) or theirs.get("mlp_bias", False)
    return {
        **_fixed(LLAMA),
        "n_layer": theirs["num_hidden_layers"],
        "n_head": theirs["num_attention_heads"],
        "n_kv_head": theirs.get("num_key_value_heads"),
        "n_embd": theirs["hidden_size"],
        "mlp_width": theirs["intermediate_size"],
        "block_size": theirs["max_position_embeddings"],
        "vocab_size": theirs["vocab_size"],
        "norm_eps": _unless(theirs.get("rms_norm_eps", 1e-6), 1e-6),
        "rope_base": rope.get("rope_theta") or theirs.get("rope_theta") or 10000.0,
        "bias": biased,
        "bias_qkv": biased,
        "tied_head": theirs.get("tie_word_embeddings", False),
        "dropout": 0.0,
        "attention_dropout": _unless(theirs.get("attention_dropout", 0.0), 0.0),
    }


def _unless(value: float, same: float) -> float | None:
    return None if value == same else value


def _fixed(family: Family) -> Config:
    """Values of options that the family leaves no choice about."""
    return {**{name: good[0] for name, good in family.needs.items()}, "norm_gain": True, "init": "gpt2"}


def _canonical(family: Family, tensors: State) -> State:
    """Names as `transformers` writes them now, without the buffers that older files hold."""
    buffers = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(buffers)}
    whole = (family.prefix, "lm_head.")
    return {name if name.startswith(whole) else family.prefix + name: tensor for name, tensor in kept.items()}


def _our_tensors(family: Family, config: GPTConfig, tensors: State) -> State:
    if config.tied_head:
        tensors.pop("lm_head.weight", None)  # a second copy in some files
    state = {name: _our_tensor(family, name, shape, tensors) for name, shape in shapes_of(config).items()}
    if tensors:
        raise UserError(f"the imported weights hold {min(tensors)}, which their config.json has no place for.")
    return state


def _our_tensor(family: Family, name: str, shape: torch.Size, tensors: State) -> Tensor:
    names = _their_names(family, name)
    if family is LLAMA and name.endswith("bias") and names[0] not in tensors:
        return torch.zeros(shape)  # theirs may have biases in half of the layers
    if missing := [theirs for theirs in names if theirs not in tensors]:
        raise UserError(f"the imported weights lack {missing[0]}: use a complete copy.")
    parts = [tensors.pop(theirs) for theirs in names]
    tensor = torch.cat([part.t() if _is_transposed(family, name) else part for part in parts]).float()
    if tensor.shape != shape:
        raise UserError(f"{names[0]} has another shape than the imported config.json says: use a matching pair.")
    return tensor.contiguous()


# names and shapes, for both directions


def shapes_of(config: GPTConfig) -> dict[str, torch.Size]:
    """The shape of every tensor of a GPT, by its name."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}


def _their_names(family: Family, name: str) -> list[str]:
    """``blocks.3.attn.proj.weight`` to ``transformer.h.3.attn.c_proj.weight``; three names for Llama's qkv."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return [f"{theirs}.{kind}" for theirs in family.names[module]]
    _, i, module = module.split(".", 2)
    return [f"{family.prefix}{family.blocks}.{i}.{theirs}.{kind}" for theirs in family.names[module]]


def _rows(family: Family, config: GPTConfig, name: str, shape: torch.Size) -> list[int]:
    """How many of our rows go to each of their tensors."""
    if len(_their_names(family, name)) == 1:
        return [shape[0]]
    return [heads * config.head_size for heads in (config.n_head, config.kv_heads, config.kv_heads)]


def _is_transposed(family: Family, name: str) -> bool:
    return family.transposed and name.startswith("blocks.") and name.endswith("weight") and "norm" not in name
