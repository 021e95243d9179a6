"""Folders as Hugging Face lays them out: found here or on the hub, and the tensors, metadata and config in them.

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
#: What of a model on the hub is downloaded; files of weights in other formats would double the size.
WANTED = ["config.json", "tokenizer.json", "model*.safetensors"]


def find_folder(source: str) -> Path:
    """A folder on this machine: the one named, or the hub's, downloaded to its library's cache.

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
        raise needs_hf_extra(f"The model {source}") from None
    try:
        folder = Path(huggingface_hub.snapshot_download(source, allow_patterns=WANTED))
        if not any(folder.glob("*.safetensors")):
            huggingface_hub.snapshot_download(source, allow_patterns=[*WANTED, "pytorch_model*.bin"])
    except Exception as error:  # its errors have nothing else in common
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{source} is no folder here and could not be had from the hub ({reason}).") from None
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder; pickles only where there is no safetensors.

    Raises:
        UserError: There is none.
    """
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{folder} holds neither {WEIGHTS} nor pytorch_model.bin: give a folder with weights.")
    return files


def read_tensors(file: Path) -> State:
    """The tensors of one file, by the names in it.

    Raises:
        UserError: It is damaged, or holds something else.
    """
    try:
        tensors = _read_pickle(file) if file.suffix == ".bin" else _safetensors().load_file(file)
    except UserError:
        raise
    except Exception as error:  # the two libraries' own have nothing else in common
        raise UserError(f"{file} is damaged or cut short ({type(error).__name__}): use a complete copy.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{file} holds something other than tensors by name: use a complete copy.")
    return tensors


def _read_pickle(file: Path) -> Any:
    if zipfile.is_zipfile(file) and is_damaged(file):  # an old one is no zip, and has no checksums
        raise zipfile.BadZipFile
    return torch.load(file, map_location="cpu", weights_only=True)


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says about itself; nothing for a pickle."""
    if file.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def is_written_here(folder: Path) -> bool:
    """Whether the weights in a folder are of an export of ours."""
    try:
        return read_metadata(folder / WEIGHTS).get("written_by") == "lit_gpt"
    except Exception:  # damaged; the library's errors have nothing else in common
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
        raise UserError(f"{path} cannot be read ({type(error).__name__}): use a whole copy.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no names with values: use a whole copy.")
    return config


def safetensors_bytes(state: State, metadata: dict[str, str]) -> bytes:
    """The content of a ``model.safetensors`` that `is_written_here` knows again."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    return _safetensors().save(contiguous, {"format": "pt", "written_by": "lit_gpt", **metadata})


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise needs_hf_extra(f"The file {WEIGHTS}") from None
    return safetensors.torch
