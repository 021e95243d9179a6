"""Weights from elsewhere and for elsewhere: Hugging Face folders and names, plain safetensors, our own checkpoints.

    checkpoint = import_checkpoint("gpt2")           # what fit would have saved
    export_huggingface(read("best.ckpt"), "folder")  # for AutoModelForCausalLM and AutoTokenizer
    initialise(net, "folder")                        # a fresh run from these weights

Needs the ``hf`` extra. What their architectures have to do with ours is in huggingface.py.
"""

import importlib.metadata
import json
import zipfile
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from datamodules.files import write_atomically, write_json
from datamodules.reading import needs_hf_extra
from datamodules.tokenizers import Tokenizer, load_tokenizer, open_tokenizer, tokenizer_from_dict
from datamodules.tokenizers import to_huggingface as tokenizer_to_huggingface
from lit_gpt.checkpoint import (
    CHANGEABLE_FIELDS,
    KEY,
    PREFIX,
    build_network,
    check,
    check_weights,
    differing_fields,
    is_ours,
    read,
)
from lit_gpt.config import as_typed
from lit_gpt.integrity import is_damaged
from lit_gpt.interop.gpt2_llama import Config, State, from_huggingface, to_huggingface, without_padding
from lit_gpt.model import GPT, GPTConfig
from lit_gpt.protocols import Network
from lit_gpt.version import CHECKPOINT_FORMAT

WEIGHTS = "model.safetensors"
#: What an export writes.
FILES = (WEIGHTS, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
#: What of a model on the hub is downloaded; files of weights in other formats would double the size.
WANTED = ["config.json", "tokenizer.json", "model*.safetensors"]


# in


def load_weights(source: str | Path) -> tuple[Config, State]:
    """Configuration (fields of `GPTConfig`) and tensors (names of `GPT.state_dict`) of a GPT, no vocabulary padded.

    Args:
        source: A checkpoint of ours, a folder of Hugging Face's or of our `export`, or the name of a model on the hub.

    Raises:
        UserError: When there is no such thing, it is damaged, or it holds no GPT of ours.
    """
    config, state, _ = _read_gpt(source)
    return asdict(replace(config, pad_vocab_to=1)), state


def _read_gpt(source: str | Path) -> tuple[GPTConfig, State, Tokenizer | None]:
    """Configuration, tensors without a padded vocabulary, and the tokenizer where there is one that we can read."""
    tokenizer, folder = None, None if is_ours(source) else _folder(str(source))
    entry, state = _parts(read(source)) if folder is None else _read_folder(folder)
    if entry["tokenizer"] is not None:
        tokenizer = tokenizer_from_dict(entry["tokenizer"])
    elif folder is not None and (folder / "tokenizer.json").is_file():
        with suppress(UserError):  # of a kind that we have not
            tokenizer = load_tokenizer(folder / "tokenizer.json")
    whole = _network(entry, state)
    nets = whole.trained_nets()
    if len(nets) != 1 or not isinstance(nets[0], GPT):
        raise UserError(f"{source} holds a {type(whole).__name__}, and only one GPT can be started from.")
    return nets[0].config, without_padding(nets[0].config, nets[0].state_dict()), tokenizer


@torch.no_grad()
def initialise(net: GPT, source: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Put the weights of `source` (see `load_weights`) into `net`.

    A smaller `block_size` than theirs takes the first of their learned positions.

    Args:
        net: The network.
        source: As in `load_weights`.
        tokenizer: The data's; where `source` stores its own, both must mean the same by every id.

    Raises:
        UserError: When they are of another architecture or size (the first field that differs is named) or tokenizer.
    """
    config, state, theirs = _read_gpt(source)
    _check_same(net.config, config, str(source))
    if theirs is not None and tokenizer is not None:
        _check_meanings(theirs, tokenizer, str(source))
    for name, tensor in net.state_dict().items():
        rows = min(len(tensor), len(state[name]))  # fewer only where a vocabulary is padded or positions are left out
        tensor[:rows] = state[name][:rows]


def import_checkpoint(source: str | Path) -> dict[str, Any]:
    """A checkpoint of ours, as `fit` would have saved it, from a folder or a name on the hub (see `load_weights`).

    Raises:
        UserError: As `load_weights`, and when its tokenizer cannot be given the same ids here.
    """
    folder = _folder(str(source))
    entry, state = _read_folder(folder)
    if entry["tokenizer"] is None:
        tokenizer = _read_tokenizer(folder, entry["config"])
        entry |= {"tokenizer": tokenizer.to_dict(), "fingerprints": {"tokenizer": tokenizer.fingerprint}}
    return {
        "pytorch-lightning_version": importlib.metadata.version("lightning"),
        "epoch": 0,
        "global_step": 0,
        "hyper_parameters": {"config": entry["config"]},
        "state_dict": {PREFIX + name: tensor for name, tensor in state.items()},
        KEY: entry,
    }


def _folder(source: str) -> Path:
    """A folder on this machine: the one named, or the hub's, downloaded to its library's cache."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise UserError(f"{source} does not exist: give a folder with config.json, or a name on the hub, such as gpt2.")
    try:
        import huggingface_hub
    except ImportError:
        raise needs_hf_extra(f"The model {source}") from None
    try:
        folder = Path(huggingface_hub.snapshot_download(source, allow_patterns=WANTED))
        if not any(folder.glob("*.safetensors")):
            huggingface_hub.snapshot_download(source, allow_patterns=[*WANTED, "pytorch_model*.bin"])
    except Exception as error:  # its errors have nothing else in common
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{source} is no folder here and could not be had from the hub ({reason}).") from None
    return folder


def _read_folder(folder: Path) -> tuple[dict[str, Any], State]:
    """The entry of a checkpoint that describes the model, and its tensors by our names."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{folder} holds neither {WEIGHTS} nor pytorch_model.bin: give a folder with weights.")
    tensors: State = {}
    for file in files:
        tensors |= _read_tensors(file)
    if ours := _read_metadata(files[0]).get(KEY):
        return _our_entry(ours, tensors, files[0]), tensors
    config, state = _translated(folder, tensors)
    entry = {"format": CHECKPOINT_FORMAT, "module": "lit_gpt.module.LitGPT", "config": asdict(config)}
    return {**entry, "tokenizer": None, "fingerprints": {}}, state


def _translated(folder: Path, tensors: State) -> tuple[GPTConfig, State]:
    try:
        return from_huggingface(_read_config(folder), tensors)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, LookupError, AssertionError) as error:
        reason = type(error).__name__  # values or tensors of other types and shapes than such files have
        raise UserError(
            f"config.json or the weights in {folder} are damaged ({reason}): use a complete copy."
        ) from error


def _read_tensors(file: Path) -> State:
    try:
        if file.suffix == ".bin":
            if zipfile.is_zipfile(file) and is_damaged(file):  # an old one is no zip, and has no checksums
                raise zipfile.BadZipFile
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        else:
            tensors = _safetensors().load_file(file)
    except UserError:
        raise
    except Exception as error:  # the two libraries' own have nothing else in common
        raise UserError(f"{file} is damaged or cut short ({type(error).__name__}): use a complete copy.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{file} holds something other than tensors by name: use a complete copy.")
    return tensors


def _our_entry(text: str, tensors: State, file: Path) -> dict[str, Any]:
    """The entry of a checkpoint in the metadata of our export; its tensors must be those that it describes."""
    damaged = UserError(f"{file} is damaged (its metadata do not describe its tensors): export it again.")
    try:
        entry = json.loads(text)
        check({KEY: entry}, file)
        check_weights({KEY: entry, "state_dict": {PREFIX + name: t for name, t in tensors.items()}}, file)
    except UserError:
        raise
    except (ValueError, TypeError, RecursionError, AssertionError) as error:
        raise damaged from error
    return entry


def _read_metadata(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def written_here(folder: Path) -> bool:
    """Whether the weights in a folder are of an export of ours."""
    try:
        return _read_metadata(folder / WEIGHTS).get("written_by") == "lit_gpt"
    except Exception:  # damaged; the library's errors have nothing else in common
        return False


def _read_config(folder: Path) -> Config:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder / 'config.json'} cannot be read ({type(error).__name__}): use a whole copy."
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} holds no names with values: use a whole copy.")
    return config


def _read_tokenizer(folder: Path, config: Config) -> Tokenizer:
    """Its tokenizer.json; copies of GPT-2 may lack one, and tiktoken has the same ids."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(folder / "tokenizer.json")
    elif config["vocab_size"] == 50257:
        tokenizer = open_tokenizer("gpt2")
    else:
        raise UserError(f"{folder} holds no tokenizer.json: put the model's there.")
    if tokenizer.vocab_size > config["vocab_size"]:
        have = f"{tokenizer.vocab_size} tokens, the model {config['vocab_size']}"
        raise UserError(f"the tokenizer in {folder} has {have}: use the model's own.")
    return tokenizer


def _check_same(ours: GPTConfig, theirs: GPTConfig, source: str) -> None:
    known = {field.name for field in fields(ours)}
    for name, value in asdict(theirs).items():
        if name not in known and value != getattr(type(theirs)(), name):
            raise UserError(
                f"init_from {source} has {name} {as_typed(value)}, which a plain GPT lacks: set --model LitExtendedGPT."
            )
    theirs = type(ours)(**{name: value for name, value in asdict(theirs).items() if name in known})
    differing = [name for name in differing_fields(theirs, ours) if name not in CHANGEABLE_FIELDS]
    if differing == ["vocab_size"] or (ours.learned_positions and ours.block_size > theirs.block_size):
        name = (differing or ["block_size"])[0]
        fix = "give the data the tokenizer of these weights" if differing else f"set it to {theirs.block_size} or less"
        raise UserError(f"init_from {source} has {name} {getattr(theirs, name)}, not {getattr(ours, name)}: {fix}.")
    if differing:
        name, there, here = differing[0], asdict(theirs), asdict(ours)
        fix = " ".join(f"--model.config.{n} {as_typed(there[n])}" for n in differing)
        raise UserError(
            f"init_from {source} has {name} {as_typed(there[name])}, not {as_typed(here[name])}: set {fix}."
        )


def _check_meanings(theirs: Tokenizer, ours: Tokenizer, source: str) -> None:
    there, here = ([t.token_bytes(i) for i in range(t.vocab_size)] for t in (theirs, ours))
    if there != here:
        raise UserError(
            f"init_from {source} was trained with another tokenizer than the data's, so token ids would change their "
            "meaning: give the data that tokenizer, or leave init_from out."
        )


# out


def export_huggingface(checkpoint: dict[str, Any], out: str | Path) -> str:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load without code of ours.

    Args:
        checkpoint: What `lit_gpt.checkpoint.read` returned.
        out: The folder.

    Returns:
        The name of the architecture there.

    Raises:
        UserError: For an option that has no counterpart there; it is named.
    """
    out, (entry, state) = Path(out), _parts(checkpoint)
    net = _plain_gpt(entry, state)
    tokenizer = None if entry["tokenizer"] is None else tokenizer_from_dict(entry["tokenizer"])
    eos_id = None if tokenizer is None else tokenizer.eos_id
    config, tensors = to_huggingface(net.config, net.state_dict(), eos_id)
    if tokenizer is not None:
        _write_tokenizer(tokenizer, entry["config"]["block_size"], out)
    marks = {name: value for name, value in config.items() if name.endswith("_token_id") and value is not None}
    _write_tensors(tensors, {}, out)
    write_json(out / "generation_config.json", marks)
    write_json(out / "config.json", config)
    return str(config["architectures"][0])


def export_safetensors(checkpoint: dict[str, Any], out: str | Path) -> None:
    """Write ``model.safetensors``: the tensors of any network by our names, and in its metadata, under ``lit_gpt``, the
    configuration and the tokenizer as JSON.

    Args:
        checkpoint: What `lit_gpt.checkpoint.read` returned.
        out: The folder.
    """
    entry, state = _parts(checkpoint)
    _write_tensors(state, {KEY: json.dumps(entry)}, Path(out))


def _plain_gpt(entry: dict[str, Any], state: State) -> GPT:
    """The GPT of a checkpoint, with methods folded into it where that is possible."""
    net = _network(entry, state).fold()
    if type(net) is not GPT:
        raise UserError(f"{_a(net)} has no counterpart at Hugging Face: export with --format safetensors.")
    return net


def _a(net: Network) -> str:
    name = type(net).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _network(entry: dict[str, Any], state: State) -> Network:
    return build_network({KEY: entry, "state_dict": {PREFIX + name: tensor for name, tensor in state.items()}})


def _parts(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], State]:
    tensors = checkpoint["state_dict"].items()
    return checkpoint[KEY], {name.removeprefix(PREFIX): value for name, value in tensors if name.startswith(PREFIX)}


def _write_tensors(state: State, metadata: dict[str, str], out: Path) -> None:
    data = _safetensors().save(
        {name: tensor.contiguous() for name, tensor in state.items()},
        {"format": "pt", "written_by": "lit_gpt", **metadata},
    )
    write_atomically(out / WEIGHTS, lambda file: file.write(data))


def _write_tokenizer(tokenizer: Tokenizer, block_size: int, out: Path) -> None:
    state = tokenizer_to_huggingface(tokenizer)
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size}
    names = {token["id"]: token["content"] for token in state["added_tokens"]}
    if tokenizer.eos_id is not None:
        options |= dict.fromkeys(("bos_token", "eos_token"), names[tokenizer.eos_id])
    write_json(out / "tokenizer.json", state)
    write_json(out / "tokenizer_config.json", {**options, "clean_up_tokenization_spaces": False})


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise needs_hf_extra("The file model.safetensors") from None
    return safetensors.torch
