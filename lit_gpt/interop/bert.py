"""Converts configuration, tensors and vocabulary of a BERT to Hugging Face's and back.

``ours`` is a name or value of `BertConfig` and `Bert`, ``theirs`` is Hugging Face's. Both directions use the same
tables of names. An option of theirs that we lack is refused by name.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from datamodules.tokenizers import WordPieceTokenizer, load_tokenizer
from lit_gpt.bert.config import BertConfig
from lit_gpt.bert.model import INIT_STD, Bert
from lit_gpt.bounds import check_memory
from lit_gpt.config import format_value
from lit_gpt.integrity import WithoutInitialisation

Config = dict[str, Any]
State = dict[str, Tensor]

MODEL_TYPE = "bert"
MODULE = "lit_gpt.bert.module.LitBERT"
#: Our option for each of theirs.
OPTIONS = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "block_size",
    "vocab_size": "vocab_size",
    "type_vocab_size": "token_types",
    "layer_norm_eps": "norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
#: Values of an option that is missing in their config.json.
DEFAULTS: Config = {
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
}
#: Our non-linearity for each of theirs.
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
#: Options of theirs that we lack, with the value that turns each off.
ONLY: Config = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
}
#: Options that do not change what the network computes. Any other one is refused.
WITHOUT_EFFECT = frozenset(
    (
        *("model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "name"),
        *("initializer_range", "gradient_checkpointing", "use_cache", "chunk_size_feed_forward", "pruned_heads"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
        *("classifier_dropout", "id2label", "label2id", "problem_type", "finetuning_task", "num_labels", "language"),
        *("output_hidden_states", "output_attentions", "output_past", "return_dict", "torchscript", "use_bfloat16"),
        *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
        *("pooler_size_per_head", "pooler_type", "attn_implementation", "_attn_implementation_autoset"),
    )
)
#: Our module for each of theirs, outside of the blocks.
ENCODER = {
    "bert.embeddings.word_embeddings": "wte",
    "bert.embeddings.position_embeddings": "wpe",
    "bert.embeddings.token_type_embeddings": "wtt",
    "bert.embeddings.LayerNorm": "norm",
    "bert.pooler.dense": "pooler",
    "cls.predictions.transform.dense": "mlm_dense",
    "cls.predictions.transform.LayerNorm": "mlm_norm",
    "cls.seq_relationship": "pair_head",
}
#: The same inside of a block.
BLOCK = {
    "attention.self.query": "attn.query",
    "attention.self.key": "attn.key",
    "attention.self.value": "attn.value",
    "attention.output.dense": "attn.proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.fc",
    "output.dense": "mlp.proj",
    "output.LayerNorm": "norm2",
}
THEIR_BIAS, OUR_BIAS = "cls.predictions.bias", "mlm_bias"
#: A buffer of older files, and second copies of tied tensors.
COPIES = ("bert.embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
#: Parts that a model of theirs may lack, by the beginning of our names.
PARTS = {"mlm_": "MLM head", "pooler": "pooler", "pair_head": "next-sentence head"}


# theirs to ours


def from_huggingface(theirs: Config, tensors: State) -> tuple[BertConfig, State, list[str]]:
    """Our configuration, float32 tensors, and lines about what the file lacks.

    A model without a pooler becomes one without a next-sentence head. Other heads that it lacks are drawn at random.

    Args:
        theirs: The ``config.json`` of a BertForPreTraining, BertForMaskedLM or BertModel.
        tensors: Its tensors.

    Raises:
        UserError: We lack an option, or a tensor is missing or unknown.
    """
    tensors = _current_names(tensors)
    has_pooler = "bert.pooler.dense.weight" in tensors
    config = BertConfig(**_our_options(theirs), next_sentence=has_pooler)
    check_memory(config.matrix_parameters, lower="the sizes in config.json")
    state, new = {}, []
    for name, shape in shapes_of(config).items():
        their_name = _their_name(name)
        part = next((part for start, part in PARTS.items() if name.startswith(start)), None)
        if their_name not in tensors and part:
            state[name] = _new_tensor(name, shape)
            new += [part] if part not in new else []
            continue
        state[name] = _checked(tensors, their_name, shape)
    if tensors:
        raise UserError(f"the imported weights hold {min(tensors)}, which their config.json has no place for.")
    return config, state, _notes(new, has_pooler)


def _notes(new: list[str], has_pooler: bool) -> list[str]:
    notes = [f"the weights have no {part}: it begins with random ones, so train it before you use it" for part in new]
    return notes if has_pooler else [*notes, "the weights have no pooler, so there is no next-sentence head either"]


def _current_names(tensors: State) -> State:
    """Tensors with the names that `transformers` writes now. BertModel's lack the prefix, and Google's norms have
    gamma and beta.
    """
    named = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        full = f"{stem}.{ {'gamma': 'weight', 'beta': 'bias'}.get(kind, kind) }"
        named[full if full.startswith(("bert.", "cls.")) else f"bert.{full}"] = tensor
    return {name: tensor for name, tensor in named.items() if name not in COPIES}


def _our_options(theirs: Config) -> Config:
    theirs = DEFAULTS | ONLY | theirs
    if unknown := sorted(theirs.keys() - {*OPTIONS, *ONLY, *WITHOUT_EFFECT, "hidden_act"}):
        raise UserError(
            f"{unknown[0]} of the imported config.json is an option that lit_gpt's BERT does not have: import a model "
            "of model_type bert without it."
        )
    for name, values in {**{name: [value] for name, value in ONLY.items()}, "hidden_act": list(ACTIVATIONS)}.items():
        if theirs[name] not in values:
            raise UserError(
                f"{name} {theirs[name]} of the imported config.json has no counterpart here: import a model that has "
                f"{' or '.join(map(format_value, values))}."
            )
    if missing := sorted(OPTIONS.keys() - theirs.keys()):
        raise UserError(f"the imported config.json lacks {missing[0]!r}: use a complete copy.")
    ours = {name: theirs[their_name] for their_name, name in OPTIONS.items()}
    if ours["attention_dropout"] == ours["dropout"]:
        ours["attention_dropout"] = None
    return {**ours, "activation": ACTIVATIONS[theirs["hidden_act"]]}


def _checked(tensors: State, name: str, shape: torch.Size) -> Tensor:
    if name not in tensors:
        raise UserError(f"the imported weights lack {name}: use a complete copy.")
    tensor = tensors.pop(name).float()
    if tensor.shape != shape:
        raise UserError(f"{name} has another shape than the imported config.json says: use a matching pair.")
    return tensor.contiguous()


def _new_tensor(name: str, shape: torch.Size) -> Tensor:
    """Initial weights of a head that the file lacks: the same in every import."""
    if len(shape) > 1:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * INIT_STD
    return torch.ones(shape) if name == "mlm_norm.weight" else torch.zeros(shape)


# ours to theirs


def check_exportable(config: BertConfig) -> None:
    """Refuse a network that `transformers` has no class for."""
    if config.blocks != "bert" or config.activation not in ACTIVATIONS.values():
        option = "blocks" if config.blocks != "bert" else "activation"
        raise UserError(
            f"no BERT of Hugging Face has {option} {getattr(config, option)}: export with --format safetensors."
        )


def to_huggingface(config: BertConfig, state: State) -> tuple[Config, State]:
    """The ``config.json`` and tensors of a `BertForPreTraining`, or of a `BertForMaskedLM` without next_sentence.

    `transformers` also loads the folder as any of its other classes of BERT.
    """
    check_exportable(config)
    values = {name: getattr(config, f"resolved_{ours}", getattr(config, ours)) for name, ours in OPTIONS.items()}
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    architecture = "BertForPreTraining" if config.next_sentence else "BertForMaskedLM"
    head = {"model_type": MODEL_TYPE, "architectures": [architecture], "hidden_act": activation}
    return head | values, {_their_name(name): state[name].contiguous() for name in shapes_of(config)}


# names and shapes, for both directions


def shapes_of(config: BertConfig) -> dict[str, torch.Size]:
    """The shape of every tensor of a BERT, by its name."""
    with torch.device("meta"), WithoutInitialisation():
        return {name: tensor.shape for name, tensor in Bert(config).state_dict().items()}


def _their_name(name: str) -> str:
    """``blocks.3.mlp.fc.weight`` to ``bert.encoder.layer.3.intermediate.dense.weight``."""
    if name == OUR_BIAS:
        return THEIR_BIAS
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"{_key_of(ENCODER, module)}.{kind}"
    _, i, module = module.split(".", 2)
    return f"bert.encoder.layer.{i}.{_key_of(BLOCK, module)}.{kind}"


def _key_of(table: dict[str, str], value: str) -> str:
    return next(theirs for theirs, ours in table.items() if ours == value)


# the vocabulary


def read_tokenizer(folder: Path) -> WordPieceTokenizer:
    """The WordPiece tokenizer of a folder: its vocab.txt, or else its tokenizer.json.

    Raises:
        UserError: There is neither, or it splits text in another way than BERT's.
    """
    if not (folder / "vocab.txt").is_file():
        whole = folder / "tokenizer.json"
        tokenizer = load_tokenizer(whole) if whole.is_file() else None
        if isinstance(tokenizer, WordPieceTokenizer):
            return tokenizer
        raise UserError(f"{folder} holds neither vocab.txt nor the tokenizer.json of a WordPiece: put one there.")
    options: Config = {"do_lower_case": True} | _json_in(folder / "tokenizer_config.json")
    uncased = bool(options["do_lower_case"])
    for name, usual in (("strip_accents", uncased), ("tokenize_chinese_chars", True)):
        if options.get(name) not in (None, usual):
            raise UserError(
                f"{name} {format_value(options[name])} of the tokenizer in {folder} has no counterpart here: import a "
                f"model that has {format_value(usual)}."
            )
    return WordPieceTokenizer.from_file(folder / "vocab.txt", uncased)


def _json_in(path: Path) -> Config:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): use a complete copy.") from None
    return found if isinstance(found, dict) else {}


def tokenizer_files(tokenizer: Any, block_size: int) -> Iterator[tuple[str, Any]]:
    """The files of a WordPiece tokenizer by name: text, or a value for JSON. None for another kind of tokenizer."""
    if not isinstance(tokenizer, WordPieceTokenizer):
        return
    special: Config = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special |= {"mask_token": "[MASK]"}
    yield "vocab.txt", "".join(f"{token}\n" for token in tokenizer.vocab)
    yield "tokenizer.json", tokenizer.huggingface_state()
    options = {"tokenizer_class": "BertTokenizer", "do_lower_case": tokenizer.uncased, "model_max_length": block_size}
    yield "tokenizer_config.json", {**options, **special}
