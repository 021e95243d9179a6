"""Exports a checkpoint: as a folder for `transformers`, or as plain safetensors.

    export_huggingface(read("best.ckpt"), "folder")  # for AutoModelForCausalLM and AutoTokenizer

Needs the ``hf`` extra.
"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any

from datamodules.errors import UserError
from datamodules.files import write_atomically
from datamodules.tokenizers import Tokenizer, tokenizer_from_dict
from datamodules.tokenizers import to_huggingface as tokenizer_to_huggingface
from lit_gpt.checkpoint import KEY, MODULES, PREFIX, build_network
from lit_gpt.interop import bert, own_code
from lit_gpt.interop.files import WEIGHTS, safetensors_bytes
from lit_gpt.interop.gpt2_llama import Config, to_huggingface, without_counterpart
from lit_gpt.model import GPT
from lit_gpt.protocols import Network

#: The content of each file by its name, in the order of writing. The weights are first, because a later export
#: recognises its own folder by them. config.json is last, because a folder without it is no model.
Files = dict[str, bytes]


def huggingface_files(checkpoint: dict[str, Any]) -> Files:
    """The files of a folder that `AutoModelForCausalLM` and `AutoTokenizer` load, or `AutoModelForMaskedLM` for a BERT.

    If the network is a GPT-2 or Llama, `transformers` has its code. For any other GPT the folder includes the code,
    which `transformers` runs with ``trust_remote_code=True``.

    Args:
        checkpoint: What `lit_gpt.checkpoint.read` returned.

    Raises:
        UserError: The network is neither a BERT nor, even after `fold`, a GPT.
    """
    entry = checkpoint[KEY]
    tokenizer = None if entry["tokenizer"] is None else tokenizer_from_dict(entry["tokenizer"])
    if entry["module"] == bert.MODULE:
        return _bert_files(build_network(checkpoint), tokenizer)
    net = _plain_gpt(checkpoint)
    is_own = bool(without_counterpart(net.config))
    config, files = _own_files(net, entry) if is_own else _known_files(net)
    files |= _tokenizer_files(tokenizer, net.config.block_size, is_own)
    # Llama does not train the embedding of its config's pad token. That is the EOS token here, so config.json has none.
    special = _special_ids(tokenizer)
    config |= {"dtype": str(net.wte.weight.dtype).removeprefix("torch."), **special, "pad_token_id": None}
    return {**files, "generation_config.json": _json(special), "config.json": _json(config)}


def _bert_files(net: Network, tokenizer: Tokenizer | None) -> Files:
    """The files of a BERT, which `transformers` has the code of."""
    config, tensors = bert.to_huggingface(net.config, net.state_dict())
    config |= {"dtype": str(tensors["bert.embeddings.word_embeddings.weight"].dtype).removeprefix("torch.")}
    files = {WEIGHTS: safetensors_bytes(tensors, {})}
    for name, content in bert.tokenizer_files(tokenizer, net.config.block_size):
        files[name] = content.encode() if isinstance(content, str) else _json(content)
    if tokenizer is not None:
        config |= {"pad_token_id": getattr(tokenizer, "pad_id", None)}
    return {**files, "config.json": _json(config)}


def _special_ids(tokenizer: Tokenizer | None) -> Config:
    if tokenizer is None or tokenizer.eos_id is None:
        return {}
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_id)


def export_huggingface(checkpoint: dict[str, Any], out: str | Path) -> None:
    """Write `huggingface_files` to the folder ``out``."""
    write_files(huggingface_files(checkpoint), out)


def safetensors_files(checkpoint: dict[str, Any]) -> Files:
    """``model.safetensors``: the tensors of any network, by the names in its state_dict.

    Its metadata hold, under ``lit_gpt``, the configuration and the tokenizer as JSON.

    Args:
        checkpoint: What `lit_gpt.checkpoint.read` returned.
    """
    tensors = checkpoint["state_dict"].items()
    state = {name.removeprefix(PREFIX): tensor for name, tensor in tensors if name.startswith(PREFIX)}
    return {WEIGHTS: safetensors_bytes(state, {KEY: json.dumps(checkpoint[KEY])})}


def export_safetensors(checkpoint: dict[str, Any], out: str | Path) -> None:
    """Write `safetensors_files` to the folder ``out``."""
    write_files(safetensors_files(checkpoint), out)


def write_files(files: Files, out: str | Path) -> None:
    """Write each file atomically."""
    for name, content in files.items():
        write_atomically(Path(out) / name, partial(_write, content))


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _plain_gpt(checkpoint: dict[str, Any]) -> GPT:
    """The GPT of a checkpoint after `fold`, which merges some methods into plain weights."""
    module = checkpoint[KEY]["module"]
    if module not in MODULES:
        raise UserError(f"a network of {module} has no counterpart at Hugging Face: export with --format safetensors.")
    net = build_network(checkpoint).fold()
    if type(net) is not GPT:
        raise UserError(f"{_with_article(net)} has no counterpart at Hugging Face: export with --format safetensors.")
    return net


def _with_article(net: Network) -> str:
    name = type(net).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _known_files(net: GPT) -> tuple[Config, Files]:
    config, tensors = to_huggingface(net.config, net.state_dict())
    return config, {WEIGHTS: safetensors_bytes(tensors, {})}


def _own_files(net: GPT, entry: dict[str, Any]) -> tuple[Config, Files]:
    """Config and files of a folder with our own code. A run that starts from the weights reads their metadata."""
    plain = {**entry, "module": "lit_gpt.module.LitGPT", "config": asdict(net.config)}
    code = {name: text.encode() for name, text in own_code.code_files().items()}
    weights = safetensors_bytes(net.state_dict(), {KEY: json.dumps(plain)})
    return own_code.config_of(net.config), {WEIGHTS: weights, **code}


def _tokenizer_files(tokenizer: Tokenizer | None, block_size: int, is_own: bool) -> Files:
    """The tokenizer's files. It pads with the EOS token, on the left, so that a text to be continued ends at its last
    token.

    A vocabulary without EOS token has no id for a pad token. For our own code `transformers` adds the next id, which
    that code handles. GPT-2 and Llama would look up its embedding, so they have no pad token.
    """
    if tokenizer is None:
        return {}
    state = tokenizer_to_huggingface(tokenizer)
    options: Config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size}
    options |= {"clean_up_tokenization_spaces": False, "padding_side": "left"}
    names = {token["id"]: token["content"] for token in state["added_tokens"]}
    if tokenizer.eos_id is not None:
        options |= dict.fromkeys(("bos_token", "eos_token", "pad_token"), names[tokenizer.eos_id])
    elif is_own:
        options["pad_token"] = "<pad>"
    return {"tokenizer.json": _json(state), "tokenizer_config.json": _json(options)}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
