"""Loads weights from a Hugging Face folder, a name on the hub, an export or a checkpoint.

    checkpoint = import_checkpoint("gpt2")  # what fit would have saved
    load_pretrained(net, "folder")           # a new run from these weights

Needs the ``hf`` extra.
"""

import importlib.metadata
import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from datamodules.errors import UserError
from datamodules.tokenizers import Tokenizer, load_tokenizer, open_tokenizer, tokenizer_from_dict
from lit_gpt.checkpoint import KEY, PREFIX, build_network, check, check_weights, is_own_checkpoint, read
from lit_gpt.compatibility import CHANGEABLE_FIELDS, differing_fields
from lit_gpt.config import format_value
from lit_gpt.distributed import copy_rows
from lit_gpt.interop import bert
from lit_gpt.interop.files import State, find_folder, read_config, read_metadata, read_tensors, weight_files
from lit_gpt.interop.gpt2_llama import Config, from_huggingface, without_padding
from lit_gpt.interop.own_code import MODEL_TYPE, from_own
from lit_gpt.model import GPT
from lit_gpt.protocols import Network
from lit_gpt.version import CHECKPOINT_FORMAT

#: Options of heads. A run may have one that the weights lack, or the other way round.
HEADS = ("next_sentence",)


def load_weights(source: str | Path) -> tuple[Config, State]:
    """Configuration (fields of `GPTConfig`) and tensors (names of `GPT.state_dict`) of a GPT.

    The vocabulary has no padding.

    Args:
        source: A checkpoint, a Hugging Face folder, a folder that `export` wrote, or the name of a model on the hub.

    Raises:
        UserError: The source does not exist, is damaged, or holds no GPT that lit_gpt has.
    """
    net, _, _ = _read(source)
    if not isinstance(net, GPT):
        raise UserError(f"{source} holds a {type(net).__name__}, and no GPT.")
    return asdict(replace(net.config, pad_vocab_to=1)), without_padding(net.config, net.state_dict())


@torch.no_grad()
def load_pretrained(net: Network, source: str | Path, tokenizer: Tokenizer | None = None) -> list[str]:
    """Copy the weights of `source` into `net`, a GPT or a BERT.

    If `net` has a smaller `block_size`, it gets the first of the learned positions. A BERT's heads may be missing on
    either side.

    Args:
        net: The network to change.
        source: As in `load_weights`.
        tokenizer: The data's tokenizer. If `source` has one too, every id must be the same token in both.

    Returns:
        Lines about parts that keep their initial weights, and parts that are left out.

    Raises:
        UserError: The architecture, the size or the tokenizer is another. The message names the first field.
    """
    theirs, source_tokenizer, notes = _read(source)
    if theirs.causal != net.causal:
        raise UserError(f"init_from {source} holds a {type(theirs).__name__}, which is no {type(net).__name__}.")
    fingerprints = {None if known is None else known.fingerprint for known in (source_tokenizer, tokenizer)}
    same_tokens = len(fingerprints) == 1 and None not in fingerprints
    _check_same(net.config, theirs.config, str(source), same_tokens)
    if source_tokenizer is not None and tokenizer is not None:
        _check_meanings(source_tokenizer, tokenizer, str(source))
    state, ours = without_padding(theirs.config, theirs.state_dict()), net.state_dict()
    for name in ours.keys() & state.keys():
        rows = min(len(ours[name]), len(state[name]))  # fewer if the vocabulary is padded or positions are left out
        copy_rows(state[name][:rows], ours[name])
    notes += [f"{name} keeps its initial weights: {source} has none" for name in _parts(ours.keys() - state.keys())]
    return notes + [f"{name} of {source} is left out" for name in _parts(state.keys() - ours.keys())]


def _parts(names: set[str]) -> list[str]:
    """The modules of some tensors."""
    return sorted({name.rpartition(".")[0] for name in names})


def import_checkpoint(source: str | Path) -> dict[str, Any]:
    """A checkpoint with only weights, in the form that `fit` saves, from a folder or the hub (see `load_weights`).

    Raises:
        UserError: As `load_weights`, or the tokenizer cannot be rebuilt with the same ids.
    """
    return imported(source)[0]


def imported(source: str | Path) -> tuple[dict[str, Any], list[str]]:
    """What `import_checkpoint` returns, and lines about what the weights lack."""
    folder = find_folder(str(source))
    entry, state, notes = _read_folder(folder)
    if entry["tokenizer"] is None:
        tokenizer = _read_tokenizer(folder, entry)
        entry |= {"tokenizer": tokenizer.to_dict(), "fingerprints": {"tokenizer": tokenizer.fingerprint}}
    checkpoint = {
        "pytorch-lightning_version": importlib.metadata.version("lightning"),
        "epoch": 0,
        "global_step": 0,
        "hyper_parameters": {"config": entry["config"]},
        **_checkpoint(entry, state),
    }
    return checkpoint, notes


def _checkpoint(entry: dict[str, Any], state: State) -> dict[str, Any]:
    return {KEY: entry, "state_dict": {PREFIX + name: tensor for name, tensor in state.items()}}


# reading


def _read(source: str | Path) -> tuple[Network, Tokenizer | None, list[str]]:
    """The network, the tokenizer (None if there is none that lit_gpt can read), and lines about what is missing."""
    notes: list[str] = []
    if is_own_checkpoint(source):
        checkpoint = read(source)
        tokenizer = _stored_tokenizer(checkpoint[KEY])
    else:
        folder = find_folder(str(source))
        entry, state, notes = _read_folder(folder)
        checkpoint = _checkpoint(entry, state)
        tokenizer = _stored_tokenizer(entry) or _tokenizer_in(folder, entry)
    net = build_network(checkpoint)
    nets = net.trained_nets()
    if len(nets) != 1 or not (isinstance(nets[0], GPT) or not nets[0].causal):
        raise UserError(f"{source} holds a {type(net).__name__}, and only one GPT can be started from.")
    return nets[0], tokenizer, notes


def _stored_tokenizer(entry: dict[str, Any]) -> Tokenizer | None:
    return None if entry["tokenizer"] is None else tokenizer_from_dict(entry["tokenizer"])


def _tokenizer_in(folder: Path, entry: dict[str, Any]) -> Tokenizer | None:
    with suppress(UserError):  # a kind that lit_gpt does not have
        return bert.read_tokenizer(folder) if _is_bert(entry) else load_tokenizer(folder / "tokenizer.json")
    return None


def _is_bert(entry: dict[str, Any]) -> bool:
    return bool(entry["module"] == bert.MODULE)


def _read_folder(folder: Path) -> tuple[dict[str, Any], State, list[str]]:
    """The entry of a checkpoint that describes the model, its tensors by our names, and lines about what is missing."""
    files = weight_files(folder)
    tensors: State = {}
    for file in files:
        tensors |= read_tensors(file)
    if ours := read_metadata(files[0]).get(KEY):
        return _our_entry(ours, tensors, files[0]), tensors, []
    module, config, state, notes = _translated(folder, tensors)
    entry = {"format": CHECKPOINT_FORMAT, "module": module, "config": asdict(config)}
    return {**entry, "tokenizer": None, "fingerprints": {}}, state, notes


def _our_entry(text: str, tensors: State, file: Path) -> dict[str, Any]:
    """The checkpoint entry in the metadata of an export. It must describe the tensors."""
    try:
        entry: dict[str, Any] = json.loads(text)
        check({KEY: entry}, file)
        check_weights(_checkpoint(entry, tensors), file)
    except UserError:
        raise
    except (ValueError, TypeError, RecursionError, AssertionError) as error:
        raise UserError(f"{file} is damaged (its metadata do not describe its tensors): export it again.") from error
    return entry


def _translated(folder: Path, tensors: State) -> tuple[str, Any, State, list[str]]:
    """The path of the LightningModule, its configuration, its tensors, and lines about what is missing."""
    config = read_config(folder)
    try:
        if config.get("model_type") == bert.MODEL_TYPE:
            return bert.MODULE, *bert.from_huggingface(config, tensors)
        translate = from_own if config.get("model_type") == MODEL_TYPE else from_huggingface
        return "lit_gpt.module.LitGPT", *translate(config, tensors), []
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, LookupError, AssertionError) as error:
        reason = type(error).__name__  # values or tensors of wrong types or shapes raise many kinds
        raise UserError(
            f"config.json or the weights in {folder} are damaged ({reason}): use a complete copy."
        ) from error


def _read_tokenizer(folder: Path, entry: dict[str, Any]) -> Tokenizer:
    """The tokenizer of the folder's tokenizer.json. For a GPT-2 without one, tiktoken has the same ids."""
    config: Config = entry["config"]
    tokenizer: Tokenizer
    if _is_bert(entry):
        tokenizer = bert.read_tokenizer(folder)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(folder / "tokenizer.json")
    elif config["vocab_size"] == 50257:
        tokenizer = open_tokenizer("gpt2")
    else:
        raise UserError(f"{folder} holds no tokenizer.json: put the model's there.")
    if tokenizer.vocab_size > config["vocab_size"]:
        sizes = f"{tokenizer.vocab_size} tokens, the model {config['vocab_size']}"
        raise UserError(f"the tokenizer in {folder} has {sizes}: use the model's own.")
    return tokenizer


# what a run that starts from weights must share with them


def _check_same(ours: Any, theirs: Any, source: str, same_tokens: bool) -> None:
    theirs = _as_class_of(ours, theirs, source)
    differing = [name for name in differing_fields(theirs, ours) if name not in (*CHANGEABLE_FIELDS, *HEADS)]
    if not differing and ours.learned_positions and ours.block_size > theirs.block_size:
        differing = ["block_size"]
    if not differing:
        return
    has = f"init_from {source} has {_as_option(theirs, differing[0])}, not {format_value(getattr(ours, differing[0]))}"
    fixes = {"block_size": f"it to {theirs.block_size} or less"}
    if differing == ["vocab_size"] and not same_tokens:  # else they have more rows than the vocabulary
        raise UserError(f"{has}: give the data the tokenizer of these weights.")
    flags = " ".join(f"--model.config.{_as_option(theirs, name)}" for name in differing)
    raise UserError(f"{has}: set {fixes.get(differing[0], flags)}.")


def _as_option(config: Any, name: str) -> str:
    return f"{name} {format_value(getattr(config, name))}"


def _as_class_of(ours: Any, theirs: Any, source: str) -> Any:
    """The configuration of the weights in the class of ours. It may have more or fewer options."""
    values = asdict(theirs)
    more = values.keys() - asdict(ours).keys()
    if used := [name for name in more if values[name] != getattr(type(theirs)(), name)]:
        raise UserError(
            f"init_from {source} has {_as_option(theirs, min(used))}, which a plain GPT lacks: "
            "set --model LitExtendedGPT."
        )
    return type(ours)(**{name: value for name, value in values.items() if name not in more})


def _check_meanings(theirs: Tokenizer, ours: Tokenizer, source: str) -> None:
    there, here = ([t.token_bytes(i) for i in range(t.vocab_size)] for t in (theirs, ours))
    if there != here:
        raise UserError(
            f"init_from {source} was trained with another tokenizer than the data's, so token ids would change their "
            "meaning: give the data that tokenizer, or leave init_from out."
        )
