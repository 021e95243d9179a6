"""What a checkpoint of ours holds, and how to read one with torch alone.

One file is enough: Lightning's own keys, and under ``lit_gpt`` a format number, the network's class and
configuration, the tokenizer and the fingerprints of the data. Everything in it is a primitive or a tensor, so it
loads under ``weights_only=True``.
"""

import importlib
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from datamodules.errors import UserError
from lit_gpt.version import CHECKPOINT_FORMAT

if TYPE_CHECKING:
    from lit_gpt.generate import TextModel

KEY = "lit_gpt"

BIGRAM = ("lit_gpt.bigram", "bigram", "BigramConfig", "lit_gpt.LitBigram")

#: Networks a checkpoint may name: where they are, what builds them, from which configuration, and the module of `fit`.
NETWORKS = {
    "GPT": ("lit_gpt.model", "GPT", "GPTConfig", "lit_gpt.LitGPT"),
    "NeuralBigram": BIGRAM,
    "CountBigram": BIGRAM,
}

PREFIX = "net."


def describe(net: nn.Module, config: dict[str, Any], data: Any) -> dict[str, Any]:
    """The entry under ``KEY``.

    Args:
        net: The network, whose class name is stored.
        config: Its configuration as plain values.
        data: The datamodule; its ``tokenizer`` and ``fingerprints`` are stored when it has them.
    """
    tokenizer = getattr(data, "tokenizer", None)
    return {
        "format": CHECKPOINT_FORMAT,
        "network": type(net).__name__,
        "config": config,
        "tokenizer": None if tokenizer is None else tokenizer.to_dict(),
        "fingerprints": dict(getattr(data, "fingerprints", {})),
    }


def read(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read and check a checkpoint file.

    Raises:
        UserError: When the file is missing, cut short, not ours or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"checkpoint {str(path)!r} does not exist: check --ckpt_path, or list logs/*/version_*/checkpoints."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, LookupError) as error:
        reason = "is cut short or damaged" if zipfile.is_zipfile(path) or _starts_like_zip(path) else "is no checkpoint"
        raise UserError(f"file {str(path)!r} {reason}: use another one, such as last.ckpt beside it.") from error
    check(checkpoint, path)
    return checkpoint


def check(checkpoint: Any, path: str | Path = "the checkpoint") -> None:
    """Raise a UserError unless ``checkpoint`` is ours and of a format that this version reads."""
    ours = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "format" not in ours:
        raise UserError(f"checkpoint {str(path)!r} was not written by lit_gpt: give a file that `fit` saved.")
    if ours["format"] > CHECKPOINT_FORMAT:
        raise UserError(
            f"checkpoint {str(path)!r} has format {ours['format']} and this version reads up to {CHECKPOINT_FORMAT}: "
            "upgrade lit-gpt."
        )


def _starts_like_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def load(path: str | Path, device: str = "cpu") -> "TextModel":
    """The network and tokenizer of a checkpoint, ready to generate: needs no configuration, data or network.

    Args:
        path: A ``.ckpt`` file that ``fit`` saved.
        device: Where to put the network, such as ``cuda``.

    Raises:
        UserError: When the file cannot be used (see ``read``).
    """
    from datamodules.tokenizers import tokenizer_from_dict
    from lit_gpt.generate import TextModel

    checkpoint = read(path, mmap=True)
    tokenizer = checkpoint[KEY]["tokenizer"]
    if tokenizer is None:
        raise UserError(f"checkpoint {str(path)!r} holds no tokenizer: it was trained on ready-made token ids.")
    return TextModel(build_network(checkpoint).to(device), tokenizer_from_dict(tokenizer))


def build_network(checkpoint: dict[str, Any]) -> nn.Module:
    """The network of a checkpoint with its weights, in eval mode."""
    ours = checkpoint[KEY]
    module, builder, config, _ = NETWORKS[ours["network"]]
    home = importlib.import_module(module)
    net: nn.Module = getattr(home, builder)(getattr(home, config)(**ours["config"]))
    weights = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    net.load_state_dict(weights)
    return net.eval()
