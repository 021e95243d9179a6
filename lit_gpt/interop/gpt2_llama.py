"""Converts configuration and tensors of a GPT to Hugging Face's GPT-2 or Llama and back. It reads and writes no files.

In this file ``ours`` is a name or value of `GPTConfig` and `GPT`, and ``theirs`` is Hugging Face's. Both directions use
the same tables of names. Different forms of the same function are converted (a missing bias is a bias of zeros, a norm
without a gain has gains of one). An option of theirs that we lack is refused by name. A GPT with an option that they
lack has no counterpart.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from lit_gpt.bounds import check_memory
from lit_gpt.config import format_value
from lit_gpt.model import GPT, GPTConfig

Config = dict[str, Any]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """An architecture of Hugging Face. Each field of `GPTConfig` is in exactly one of `mapped`, `needs` and
    `irrelevant`.
    """

    model_type: str
    architecture: str
    prefix: str
    """The prefix of every tensor's name except the LM head's. GPT-2's first files lack it."""
    blocks: str
    names: dict[str, tuple[str, ...]]
    """For each module of ours, their module, or their modules whose rows ours stacks."""
    mapped: dict[str, tuple[str, ...]]
    """For each field of ours, its names in their config.json. Empty if the tensors show the value."""
    needs: dict[str, Any]
    """Fields of ours that must have this value, or the GPT is not of this architecture."""
    irrelevant: frozenset[str]
    """Fields of ours that change neither the function in evaluation nor its tensors."""
    activations: dict[str, str]
    """Their name for each of our activations that they have."""
    defaults: dict[str, Any]
    """The value of an option that is missing in their config.json."""
    only: dict[str, Any]
    """Options of theirs that we lack, with the value that turns each off."""
    transposed: bool = False
    """Whether weights of blocks are stored as (in, out), as in GPT-2's Conv1D."""


IN_NEITHER: dict[str, Any] = dict.fromkeys(("qk_norm", "bias_head", "attention_gate"), False) | dict.fromkeys(
    ("softcap", "layer_scale")
)
UNUSED = frozenset(("init", "position_std", "pad_vocab_to"))
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
    mapped={
        "n_layer": ("n_layer",),
        "n_head": ("n_head",),
        "n_embd": ("n_embd",),
        "mlp_width": ("n_inner",),
        "block_size": ("n_positions",),
        "vocab_size": ("vocab_size",),
        "activation": ("activation_function",),
        "norm_eps": ("layer_norm_epsilon",),
        "norm_gain": (),
        "bias": (),
        "bias_qkv": (),
        "tied_head": ("tie_word_embeddings",),
        "dropout": ("resid_pdrop", "embd_pdrop"),
        "attention_dropout": ("attn_pdrop",),
    },
    needs={"norm": "layernorm", "learned_positions": True, "rope": False, "n_kv_head": None, **IN_NEITHER},
    irrelevant=UNUSED | {"rope_base"},
    activations={"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"},
    defaults={
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
    },
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
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
    mapped={
        "n_layer": ("num_hidden_layers",),
        "n_head": ("num_attention_heads",),
        "n_kv_head": ("num_key_value_heads",),
        "n_embd": ("hidden_size",),
        "mlp_width": ("intermediate_size",),
        "block_size": ("max_position_embeddings",),
        "vocab_size": ("vocab_size",),
        "activation": ("hidden_act",),
        "norm_eps": ("rms_norm_eps",),
        "norm_gain": (),
        "rope_base": ("rope_theta",),
        "bias": ("mlp_bias",),
        "bias_qkv": ("attention_bias",),
        "tied_head": ("tie_word_embeddings",),
        "attention_dropout": ("attention_dropout",),
    },
    needs={"norm": "rmsnorm", "learned_positions": False, "rope": True, **IN_NEITHER},
    irrelevant=UNUSED | {"dropout"},
    activations={"swiglu": "silu"},
    defaults={
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "mlp_bias": False,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
    },
    only={"head_dim": None, "rope_type": "default"},
)
FAMILIES = {family.model_type: family for family in (GPT2, LLAMA)}
#: The property with a field's value after null is resolved.
RESOLVED = {
    "n_kv_head": "resolved_n_kv_head",
    "mlp_width": "resolved_mlp_width",
    "norm_eps": "resolved_norm_eps",
    "attention_dropout": "resolved_attention_dropout",
}


# ours to theirs


def family_of(config: GPTConfig) -> Family:
    """The architecture that is nearest to a configuration: Llama with RoPE, else GPT-2."""
    return LLAMA if config.rope else GPT2


def without_counterpart(config: GPTConfig) -> list[str]:
    """The options, such as ``softcap 15.0``, for which `family_of` has no counterpart; none where it is the same."""
    family = family_of(config)
    config = replace(config, n_kv_head=None) if config.resolved_n_kv_head == config.n_head else config
    lacking = [name for name, value in family.needs.items() if getattr(config, name) != value]
    lacking += [] if config.activation in family.activations else ["activation"]
    return [f"{name} {format_value(getattr(config, name))}" for name in lacking]


def to_huggingface(config: GPTConfig, state: State) -> tuple[Config, State]:
    """The ``config.json`` and tensors of a GPT, as `GPT2LMHeadModel` (without RoPE) or `LlamaForCausalLM` (with it).

    Args:
        config: Its configuration, for which `without_counterpart` is empty.
        state: Its tensors by the names of `GPT.state_dict`.
    """
    family = family_of(config)
    full = _with_every_tensor(family, config)
    theirs = {name: _hf_value(family, full, ours) for ours, names in family.mapped.items() for name in names}
    head = {"model_type": family.model_type, "architectures": [family.architecture]}
    return head | theirs, dict(_hf_tensors(family, full, without_padding(config, state)))


def _hf_value(family: Family, config: GPTConfig, ours: str) -> Any:
    value = getattr(config, RESOLVED.get(ours, ours))
    return family.activations[value] if ours == "activation" else value


def _with_every_tensor(family: Family, config: GPTConfig) -> GPTConfig:
    """The configuration of the same function with every tensor that theirs has. They have all biases or none."""
    biased = family is GPT2 or config.bias or config.bias_qkv
    return replace(config, pad_vocab_to=1, norm_gain=True, bias=biased, bias_qkv=biased)


def without_padding(config: GPTConfig, state: State) -> State:
    """The tensors without the rows that pad the vocabulary."""
    rows = {"wte.weight", "lm_head.weight", "lm_head.bias", "wte.parts.table"}
    return {name: tensor[: config.vocab_size] if name in rows else tensor for name, tensor in state.items()}


def _hf_tensors(family: Family, config: GPTConfig, state: State) -> Iterator[tuple[str, Tensor]]:
    dtype = state["wte.weight"].dtype
    for name, shape in shapes_of(config).items():
        fill = torch.zeros if name.endswith("bias") else torch.ones
        tensor = state[name] if name in state else fill(shape, dtype=dtype)
        parts = tensor.split(_rows(family, config, name, shape))
        for theirs, part in zip(_hf_names(family, name), parts, strict=True):
            yield theirs, (part.t() if _is_transposed(family, name) else part).contiguous()


# theirs to ours


def from_huggingface(theirs: Config, tensors: State) -> tuple[GPTConfig, State]:
    """Our configuration and float32 tensors of a GPT-2 or Llama.

    Args:
        theirs: Its ``config.json``.
        tensors: Its tensors, with or without the prefix that GPT-2's first files lack.

    Raises:
        UserError: We lack the architecture or an option, or a tensor is missing or unknown.
    """
    family = FAMILIES.get(str(theirs.get("model_type")))
    if family is None:
        raise UserError(
            f"model_type {theirs.get('model_type')!r} cannot be imported: {', '.join(FAMILIES)} and bert can."
        )
    theirs = family.defaults | family.only | _normalised_names(theirs)
    _check_options(family, theirs)
    try:
        config = GPTConfig(**_our_options(family, theirs))
    except KeyError as error:
        raise UserError(f"the imported config.json lacks {error}: use a complete copy.") from None
    check_memory(config.matrix_parameters, lower="the sizes in config.json")
    return config, _our_tensors(family, config, _current_names(family, tensors))


def _normalised_names(theirs: Config) -> Config:
    """Their configuration with one name for each option. Older and newer files have different ones."""
    rope = {**(theirs.get("rope_parameters") or {}), **(theirs.get("rope_scaling") or {})}
    options: Config = {"n_positions": theirs.get("n_ctx")} | theirs | {"rope_type": rope.get("type", "default")}
    options |= {name: rope[name] for name in ("rope_type", "rope_theta") if rope.get(name) is not None}
    if options.get("activation_function") == "gelu_pytorch_tanh":
        options["activation_function"] = "gelu_new"
    if options.get("head_dim") == options.get("hidden_size", 0) // options.get("num_attention_heads", 1):
        options["head_dim"] = None
    return options


def _check_options(family: Family, theirs: Config) -> None:
    (activation,) = family.mapped["activation"]
    allowed = {name: [value] for name, value in family.only.items()} | {activation: list(family.activations.values())}
    for name, values in allowed.items():
        if theirs[name] not in values:
            raise UserError(
                f"{name} {theirs[name]} of the imported config.json has no counterpart here: import a model that has "
                f"{' or '.join(map(format_value, values))}."
            )


def _our_options(family: Family, theirs: Config) -> Config:
    ours = {"dropout": 0.0} | {name: theirs[names[0]] for name, names in family.mapped.items() if names}
    biased = family is GPT2 or bool(ours["bias"] or ours["bias_qkv"])
    ours |= {**family.needs, "norm_gain": True, "bias": biased, "bias_qkv": biased, "init": "gpt2"}
    ours["activation"] = next(name for name, value in family.activations.items() if value == ours["activation"])
    null = {"norm_eps": GPTConfig(norm=family.needs["norm"]).resolved_norm_eps, "attention_dropout": ours["dropout"]}
    return ours | {name: None for name, value in null.items() if ours[name] == value}


def _current_names(family: Family, tensors: State) -> State:
    """Tensors with the names that `transformers` writes now, without the buffers of older files."""
    buffers = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(buffers)}
    prefixes = (family.prefix, "lm_head.")
    return {name if name.startswith(prefixes) else family.prefix + name: tensor for name, tensor in kept.items()}


def _our_tensors(family: Family, config: GPTConfig, tensors: State) -> State:
    if config.tied_head:
        tensors.pop("lm_head.weight", None)  # a second copy in some files
    state = {name: _our_tensor(family, name, shape, tensors) for name, shape in shapes_of(config).items()}
    if tensors:
        raise UserError(f"the imported weights hold {min(tensors)}, which their config.json has no place for.")
    return state


def _our_tensor(family: Family, name: str, shape: torch.Size, tensors: State) -> Tensor:
    names = _hf_names(family, name)
    if family is LLAMA and name.endswith("bias") and names[0] not in tensors:
        return torch.zeros(shape)  # theirs may have biases in some of the modules
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


def _hf_names(family: Family, name: str) -> list[str]:
    """``blocks.3.attn.proj.weight`` to ``transformer.h.3.attn.c_proj.weight``; three names for Llama's qkv."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return [f"{theirs}.{kind}" for theirs in family.names[module]]
    _, i, module = module.split(".", 2)
    return [f"{family.prefix}{family.blocks}.{i}.{theirs}.{kind}" for theirs in family.names[module]]


def _rows(family: Family, config: GPTConfig, name: str, shape: torch.Size) -> list[int]:
    """The number of rows of our tensor in each of their tensors."""
    if len(_hf_names(family, name)) == 1:
        return [shape[0]]
    return [heads * config.head_size for heads in (config.n_head, config.resolved_n_kv_head, config.resolved_n_kv_head)]


def _is_transposed(family: Family, name: str) -> bool:
    return family.transposed and name.startswith("blocks.") and name.endswith("weight") and "norm" not in name
