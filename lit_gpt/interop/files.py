"""Finds a Hugging Face folder on this machine or on the hub, and reads its tensors, metadata and config.

Needs the ``hf`` extra.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from datamodules.reading import needs_hf_extra
from lit_gpt.integrity import is_damaged

State = dict[str, Tensor]

WEIGHTS = "model.safetensors"
#: The files of a model on the hub that are downloaded. Weights in other formats would double the size.
WANTED = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model*.safetensors"]


#: Errors of the hub's library, as the reason in a sentence.
HUB_ERRORS = {
    "GatedRepoError": "its owner must grant access",
    "RepositoryNotFoundError": "there is no such model, or it is private",
    "LocalEntryNotFoundError": "no connection, and no copy in the cache",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and there is no copy in the cache",
    "HFValidationError": "that is no OWNER/NAME",
}


def find_folder(source: str) -> Path:
    """The folder ``source`` on this machine, or a model of that name from the hub, in the cache of its library.

    Raises:
        UserError: There is neither.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise UserError(f"{source} does not exist: give a folder with config.json, or a name on the hub, such as gpt2.")
    return _download(source)


def _download(source: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise needs_hf_extra(f"the model {source}") from None
    try:
        folder = Path(huggingface_hub.snapshot_download(source, allow_patterns=WANTED))
        if not any(folder.glob("*.safetensors")):
            huggingface_hub.snapshot_download(source, allow_patterns=[*WANTED, "pytorch_model*.bin"])
    except Exception as error:  # the library raises many kinds
        raise UserError(
            f"{source} is no folder here and could not be had from the hub ({_reason(error)}): check its name and the "
            "network, or give a folder with config.json."
        ) from None
    return folder


def _reason(error: Exception) -> str:
    """Why the hub gave nothing, by the library's class of error, or else in its words."""
    kinds = (HUB_ERRORS.get(cls.__name__) for cls in type(error).__mro__)
    return next(filter(None, kinds), None) or (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder. Pickles only if there is no safetensors file.

    Raises:
        UserError: There is none.
    """
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{folder} holds neither {WEIGHTS} nor pytorch_model.bin: give a folder with weights.")
    return files


def read_tensors(file: Path) -> State:
    """The tensors of one file, by name.

    Raises:
        UserError: It is damaged, or holds something else.
    """
    try:
        tensors = _read_pickle(file) if file.suffix == ".bin" else _safetensors().load_file(file)
    except UserError:
        raise
    except Exception as error:  # both libraries raise many kinds
        raise UserError(f"{file} is damaged or cut short ({type(error).__name__}): use a complete copy.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{file} holds something other than tensors by name: use a complete copy.")
    return tensors


def _read_pickle(file: Path) -> Any:
    if zipfile.is_zipfile(file) and is_damaged(file):  # the old format is no zip and has no checksums
        raise zipfile.BadZipFile
    return torch.load(file, map_location="cpu", weights_only=True)


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Empty for a pickle."""
    if file.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def is_written_here(folder: Path) -> bool:
    """Whether lit_gpt's export wrote the weights in a folder."""
    try:
        return read_metadata(folder / WEIGHTS).get("written_by") == "lit_gpt"
    except Exception:  # a damaged file raises errors of many kinds
        return False


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
        UserError: There is none, or it is no dictionary.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): use a complete copy.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no names with values: use a complete copy.")
    return config


def safetensors_bytes(state: State, metadata: dict[str, str]) -> bytes:
    """The content of a ``model.safetensors`` file that `is_written_here` recognises."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    return _safetensors().save(contiguous, {"format": "pt", "written_by": "lit_gpt", **metadata})


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise needs_hf_extra(f"the file {WEIGHTS}") from None
    return safetensors.torch
