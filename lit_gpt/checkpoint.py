"""The content of a checkpoint, and how to read one with torch alone.

A checkpoint is one file with all that is needed: Lightning's own keys, and under ``lit_gpt`` a format number, the
network's class and configuration, the tokenizer and the fingerprints of the data. All values are primitives or tensors,
so it loads with ``weights_only=True``.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from datamodules.files import expanded
from lit_gpt import integrity
from lit_gpt.protocols import Network, TextData
from lit_gpt.runs import advice_on_folder, advice_on_missing
from lit_gpt.version import CHECKPOINT_FORMAT, LAST_WITH_FORMAT_1

if TYPE_CHECKING:
    from lit_gpt.generate import TextModel

KEY = "lit_gpt"

#: LightningModules that a checkpoint may name: the function that builds their network, and the class of its
#: configuration. Both import torch alone, so that ``generate`` need not import Lightning. Any other module must be
#: named by the person who loads the file, because a file must not choose what is imported.
MODULES = {
    "lit_gpt.module.LitGPT": ("lit_gpt.model:GPT", "lit_gpt.config:GPTConfig"),
    "lit_gpt.methods.module.LitExtendedGPT": (
        "lit_gpt.methods.extended_gpt:build_network",
        "lit_gpt.methods.config:ExtendedGPTConfig",
    ),
    "lit_gpt.baselines.module.LitBigram": (
        "lit_gpt.baselines.bigram:build_bigram",
        "lit_gpt.baselines.bigram:BigramConfig",
    ),
    "lit_gpt.bert.module.LitBERT": ("lit_gpt.bert.model:Bert", "lit_gpt.bert.config:BertConfig"),
}

PREFIX = "net."


def path_of(module: type) -> str:
    """The dotted path of the class in a LightningModule's hierarchy that defines ``build_network``.

    A subclass that overrides only a loss or a metric has the network of its base, and so the same path.
    """
    builder = next(base for base in module.__mro__ if "build_network" in vars(base))
    return f"{builder.__module__}.{builder.__qualname__}"


def module_of(stored: dict[str, Any], chosen: str) -> str:
    """The dotted path of the LightningModule to rebuild: ``chosen`` if it builds the checkpoint's network.

    Raises:
        UserError: The checkpoint's module is not in `MODULES`, and ``chosen`` is another one.
    """
    path: str = stored["module"]
    module = resolve_name(chosen)
    if "build_network" in dir(module) and path_of(module) == path:
        return chosen
    if path not in MODULES:
        raise _foreign_module(path)
    return path


def _foreign_module(path: str) -> UserError:
    return UserError(
        f"the checkpoint is of {path}, which is not one of lit-gpt's: add --model {path}, or in Python "
        f"load(..., model={path!r})."
    )


def describe(module: type, config: dict[str, Any], data: TextData) -> dict[str, Any]:
    """The entry of a checkpoint under ``KEY``.

    Args:
        module: The class of the LightningModule.
        config: Its network's configuration as plain values.
        data: The datamodule. Its class and options are stored, and its tokenizer and fingerprints if it has them.
    """
    from datamodules.options import described  # not before a checkpoint is written: it imports all that reads a text

    return {
        "format": CHECKPOINT_FORMAT,
        "module": path_of(module),
        "config": config,
        "tokenizer": None if data.tokenizer is None else data.tokenizer.to_dict(),
        "fingerprints": dict(data.fingerprints),
        "data": described(data.datamodule),
    }


def read(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read and check a checkpoint file.

    Args:
        path: A file, or a run's folder (see ``file_of``).
        mmap: Map the file into memory, so that tensors are read when they are used.

    Raises:
        UserError: The file is missing, damaged (its checksums are compared), of another program or of a newer format.
    """
    path = file_of(path)
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r} does not exist: {advice_on_missing(path)}")
    checkpoint: dict[str, Any] = integrity.load(path, mmap)
    check(checkpoint, path)
    integrity.check_types(checkpoint, integrity.FILE_TYPES, path)
    if checkpoint["global_step"] < 0:
        raise _foreign_error(path)
    check_weights(checkpoint, path)
    return checkpoint


def file_of(path: str | Path, names: Sequence[str] = ("best.ckpt", "last.ckpt")) -> Path:
    """The checkpoint that ``path`` names: the file itself, or in a run's folder the first of ``names`` that exists."""
    path = expanded(path)
    files = [path / part / name for name in names for part in ("checkpoints", "") if (path / part / name).is_file()]
    if path.is_dir() and not files:
        raise UserError(f"folder {str(path)!r} holds no checkpoint: {advice_on_folder(path)}.")
    return files[0] if files else path


def is_own_checkpoint(source: str | Path) -> bool:
    """Whether ``source`` is a checkpoint or a run's folder, rather than a Hugging Face folder or a name on the hub."""
    path = expanded(source)
    return path.is_file() or (path / "checkpoints").is_dir()


def check(checkpoint: Any, path: str | Path = "the checkpoint") -> None:
    """Raise a UserError unless lit_gpt wrote ``checkpoint``, in a format that this version reads."""
    entry = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("format"), int) or entry["format"] < 1:
        raise _foreign_error(path)
    if entry["format"] == 1:
        raise UserError(f"checkpoint {str(path)!r} has format 1, which lit-gpt at commit {LAST_WITH_FORMAT_1} reads.")
    if entry["format"] > CHECKPOINT_FORMAT:
        raise UserError(
            f"checkpoint {str(path)!r} has format {entry['format']} and this version reads up to {CHECKPOINT_FORMAT}: "
            "upgrade lit-gpt."
        )
    integrity.check_types(entry, integrity.ENTRY_TYPES, path)


def check_weights(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Refuse weights that do not fit the stored configuration, and weights that are not finite.

    No memory is allocated for the network, so that a damaged configuration cannot ask for terabytes.
    """
    state, entry = checkpoint["state_dict"], checkpoint[KEY]
    integrity.check_types(state, dict.fromkeys(state, Tensor), path)
    if entry["module"] not in MODULES:
        return
    net = _meta_network(entry, len(state), path)
    floats = (state[PREFIX + name].is_floating_point() for name, _ in net.named_parameters() if PREFIX + name in state)
    if not same_shapes(state, net) or not all(floats):
        raise UserError(
            f"checkpoint {str(path)!r} has other weights than its configuration describes: give one that `fit` saved."
        )
    for name, _ in net.named_parameters():
        if not all(extreme.isfinite() for extreme in state[PREFIX + name].aminmax()):  # one pass, without a copy
            raise UserError(
                f"checkpoint {str(path)!r} has weights that are not finite, in {name}: give an earlier one of its run."
            )


def _meta_network(entry: dict[str, Any], tensors: int, path: str | Path) -> nn.Module:
    """The network of a checkpoint's configuration on the meta device, where weights take no memory.

    Args:
        entry: The checkpoint's entry under `KEY`.
        tensors: The number of its tensors. A configuration with more layers is wrong, and building them could take
            hours.
        path: The checkpoint, for the message.
    """
    builder, config_class = _builder(entry)
    _check_options(config_class, entry["config"])
    try:
        if max(entry["config"].get(name) or 0 for name in ("n_layer", "members")) > tensors:
            raise ValueError(f"more layers than the file's {tensors} tensors")
        with torch.device("meta"), integrity.WithoutInitialisation():
            net: nn.Module = builder(config_class(**entry["config"]))
            return net
    except Exception as error:  # wrong values raise errors of many kinds
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(
            f"checkpoint {str(path)!r} has a configuration that describes no network ({reason}): give a file that "
            "`fit` saved."
        ) from error


def config_of(config_class: type[Any], value: Any) -> Any:
    """A new configuration of ``config_class``, from an instance or from the dict that a checkpoint stores.

    Raises:
        UserError: The dict has an option that this version does not know.
    """
    values = value if isinstance(value, dict) else asdict(value)
    _check_options(config_class, values)
    return config_class(**values)


def _check_options(config_class: type[Any], values: dict[str, Any]) -> None:
    unknown = sorted(values.keys() - {field.name for field in fields(config_class)})
    if unknown:
        raise UserError(f"the checkpoint was written by a newer lit-gpt (option {unknown[0]}): upgrade lit-gpt.")


def _foreign_error(path: str | Path) -> UserError:
    return UserError(f"checkpoint {str(path)!r} was not written by lit_gpt: give a file that `fit` saved.")


def same_shapes(state: dict[str, Tensor], net: nn.Module) -> bool:
    """Whether the weights of a checkpoint have the names and shapes of a network's parameters."""
    return all(PREFIX + name in state and state[PREFIX + name].shape == p.shape for name, p in net.named_parameters())


def load(path: str | Path, device: str = "cpu", model: str | type | None = None) -> "TextModel":
    """Load a checkpoint for generation: its network and tokenizer. The file is all that is needed.

    Args:
        path: A ``.ckpt`` file that ``fit`` saved, or the folder of a run, whose best.ckpt is loaded.
        device: The device of the network, such as ``cuda``.
        model: The LightningModule that was trained, or its dotted path, if it is a class of your own.

    Raises:
        UserError: The file cannot be used (see ``read``), or its network is an encoder, which continues no text.
    """
    from lit_gpt.generate import TextModel

    net, tokenizer = load_network(path, device, model)
    if not net.causal:
        raise UserError(
            f"checkpoint {str(path)!r} is of a {type(net).__name__}, which predicts masked tokens from both sides and "
            "not the next token: use python -m lit_gpt fill-mask."
        )
    return TextModel(net, tokenizer)


def load_network(path: str | Path, device: str = "cpu", model: str | type | None = None) -> tuple[Network, Any]:
    """The network of a checkpoint, causal or not, and its tokenizer. See `load`."""
    from datamodules.tokenizers import tokenizer_from_dict

    checkpoint = read(path, mmap=True)
    if checkpoint[KEY]["tokenizer"] is None:
        raise UserError(f"checkpoint {str(path)!r} holds no tokenizer: it was trained on ready-made token ids.")
    tokenizer = tokenizer_from_dict(checkpoint[KEY]["tokenizer"])
    if tokenizer.vocab_size > (known := checkpoint[KEY]["config"]["vocab_size"]):
        sizes = f"a tokenizer of {tokenizer.vocab_size} tokens and a network that knows {known}"
        raise UserError(f"checkpoint {str(path)!r} has {sizes}: give a file that `fit` saved.")
    return build_network(checkpoint, model).fold().to(device), tokenizer


def build_network(checkpoint: dict[str, Any], model: str | type | None = None) -> Network:
    """The network of a checkpoint with its weights, in eval mode. See `load` for ``model``."""
    stored = checkpoint[KEY]
    net = _new_network(stored) if model is None else _network_of(model, stored)
    weights = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError("the checkpoint has other tensors than its network: give a file that `fit` saved.") from error
    return net.eval()


def _new_network(stored: dict[str, Any]) -> Network:
    builder, config_class = _builder(stored)
    net: Network = builder(config_of(config_class, stored["config"]))
    return net


def _builder(stored: dict[str, Any]) -> tuple[Any, type[Any]]:
    """The function that builds the network of a checkpoint, and the class of its configuration."""
    path = stored["module"]
    if path not in MODULES:
        raise _foreign_module(path)
    try:
        builder, config_class = map(resolve_name, MODULES[path])
    except ModuleNotFoundError as error:
        raise UserError(f"the checkpoint needs {error.name}, which is not installed: install lit-gpt whole.") from error
    return builder, config_class


def _network_of(model: str | type, stored: dict[str, Any]) -> Network:
    """The network of a checkpoint, built by a LightningModule class that the user named."""
    module: Any = resolve_named(model) if isinstance(model, str) else model
    if path_of(module) != stored["module"]:
        raise UserError(f"the checkpoint is of {stored['module']}, not of {path_of(module)}: give that as --model.")
    config = config_of(module.config_class, stored["config"])
    try:
        return module(config=config).build_network()
    except TypeError as error:
        if "__init__()" not in str(error):
            raise
        raise UserError(f"{path_of(module)} cannot be made from its config alone ({error}): give a default.") from error


def resolve_named(path: str) -> type:
    """Import a LightningModule class by its dotted path, as the user typed it.

    Raises:
        UserError: There is no such class, or it is no LitLanguageModel.
    """
    from lit_gpt.language_model import LitLanguageModel

    try:
        module = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--model {path!r} cannot be imported ({error}): check its spelling and folder.") from error
    if not (isinstance(module, type) and issubclass(module, LitLanguageModel)):
        raise UserError(f"--model {path!r} is no LitLanguageModel: give the class that was trained.")
    return module
