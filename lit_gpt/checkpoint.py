"""What a checkpoint of ours holds, and how to read one with torch alone.

One file is enough: Lightning's own keys, and under ``lit_gpt`` a format number, the network's class and
configuration, the tokenizer and the fingerprints of the data. Everything in it is a primitive or a tensor, so it
loads under ``weights_only=True``.
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
from lit_gpt.config import format_value
from lit_gpt.protocols import Network, TextData
from lit_gpt.version import CHECKPOINT_FORMAT, LAST_WITH_FORMAT_1

if TYPE_CHECKING:
    from lit_gpt.generate import TextModel

KEY = "lit_gpt"

#: LightningModules that a checkpoint may name: what builds their network, and from which configuration. Both need torch
#: alone, so that ``generate`` never imports Lightning. Any other module has to be named by the person who loads the
#: file, because a file must not choose what is imported.
MODULES = {
    "lit_gpt.module.LitGPT": ("lit_gpt.model:GPT", "lit_gpt.config:GPTConfig"),
    "lit_gpt.methods.module.LitExtendedGPT": (
        "lit_gpt.methods.extended_gpt:build_network",
        "lit_gpt.methods.config:ExtendedGPTConfig",
    ),
    "lit_gpt.baselines.module.LitBigram": (
        "lit_gpt.baselines.bigram:bigram",
        "lit_gpt.baselines.bigram:BigramConfig",
    ),
}

PREFIX = "net."

#: Fields in which a run may differ from the weights it starts from: they change what no weight means.
CHANGEABLE_FIELDS = (
    "block_size",
    "dropout",
    "attention_dropout",
    "init",
    "position_std",
    "pad_vocab_to",
    "kneser_ney_share",
)
#: Those of them on which the shapes of a checkpoint may depend: learned positions, a padded vocabulary.
SHAPING = ("block_size", "pad_vocab_to")


def path_of(module: type) -> str:
    """The dotted path of the class that builds the network of a LightningModule: a subclass that overrides a loss or a
    metric alone has the network of its base.
    """
    builder = next(base for base in module.__mro__ if "build_network" in vars(base))
    return f"{builder.__module__}.{builder.__qualname__}"


def module_of(stored: dict[str, Any], given: str) -> str:
    """The dotted path of the LightningModule to rebuild: ``given`` where that has the checkpoint's network.

    Raises:
        UserError: The checkpoint is of a module that is not in `MODULES`, and ``given`` is another one.
    """
    path: str = stored["module"]
    module = resolve_name(given)
    if "build_network" in dir(module) and path_of(module) == path:
        return given
    if path not in MODULES:
        raise UserError(f"the checkpoint is of {path}, which is not one of lit-gpt's: add --model {path}.")
    return path


def describe(module: type, config: dict[str, Any], data: TextData) -> dict[str, Any]:
    """The entry under ``KEY``.

    Args:
        module: The class of the LightningModule.
        config: Its network's configuration as plain values.
        data: The datamodule; its class and options are stored, and its tokenizer and fingerprints when it has them.
    """
    # Imported here: before Lightning, the modules behind it decide the order in a Union that Python caches, and then
    # `--trainer.limit_val_batches 1` is read as 1.0, all batches.
    from datamodules.options import described

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
        mmap: Leave tensors on the disk until they are used.

    Raises:
        UserError: When the file is missing, damaged (its checksums are compared), not ours or of a newer format.
    """
    path = file_of(path)
    if not path.is_file():
        raise UserError(
            f"checkpoint {str(path)!r} does not exist: check --ckpt_path, or list logs/*/version_*/checkpoints."
        )
    checkpoint: dict[str, Any] = integrity.load(path, mmap)
    check(checkpoint, path)
    integrity.check_kinds(checkpoint, integrity.FILE, path)
    check_weights(checkpoint, path)
    return checkpoint


def file_of(path: str | Path, names: Sequence[str] = ("best.ckpt", "last.ckpt")) -> Path:
    """The checkpoint that ``path`` names: itself, or in a run's folder the first of ``names`` that is there."""
    path = expanded(path)
    found = [path / part / name for name in names for part in ("checkpoints", "") if (path / part / name).is_file()]
    if path.is_dir() and not found:
        raise UserError(f"folder {str(path)!r} holds no checkpoint: {_advice_on_runs(path)}.")
    return found[0] if found else path


def _advice_on_runs(folder: Path) -> str:
    """The newest run below a folder that holds several, such as ``logs/char`` or ``logs``."""
    files = [file for depth in ("*", "*/*") for file in folder.glob(f"{depth}/checkpoints/*.ckpt")]
    if not files:
        return "give the folder of a run, logs/NAME/version_N"
    return f"give the folder of a run, such as {max(files, key=lambda file: file.stat().st_mtime).parents[1]}"


def is_ours(source: str | Path) -> bool:
    """Whether ``source`` is a file or a run's folder, not a folder of Hugging Face's or a name on its hub."""
    path = expanded(source)
    return path.is_file() or (path / "checkpoints").is_dir()


def check(checkpoint: Any, path: str | Path = "the checkpoint") -> None:
    """Raise a UserError unless ``checkpoint`` is ours and of a format that this version reads."""
    ours = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not isinstance(ours.get("format"), int):
        raise _foreign(path)
    if ours["format"] == 1:
        raise UserError(f"checkpoint {str(path)!r} has format 1, which lit-gpt at commit {LAST_WITH_FORMAT_1} reads.")
    if ours["format"] > CHECKPOINT_FORMAT:
        raise UserError(
            f"checkpoint {str(path)!r} has format {ours['format']} and this version reads up to {CHECKPOINT_FORMAT}: "
            "upgrade lit-gpt."
        )
    integrity.check_kinds(ours, integrity.ENTRY, path)


def check_weights(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Refuse weights that do not fit the stored configuration, before memory is taken for what it says; and NaNs."""
    state, ours = checkpoint["state_dict"], checkpoint[KEY]
    integrity.check_kinds(state, dict.fromkeys(state, Tensor), path)
    if ours["module"] not in MODULES:
        return
    net = _on_paper(ours, len(state), path)
    if not _same_shapes(state, net):
        raise UserError(
            f"checkpoint {str(path)!r} has other weights than its configuration describes: give one that `fit` saved."
        )
    for name, _ in net.named_parameters():
        if not all(end.isfinite() for end in state[PREFIX + name].aminmax()):  # no copy, one pass
            raise UserError(
                f"checkpoint {str(path)!r} has weights that are not finite, in {name}: give an earlier one of its run."
            )


def _on_paper(ours: dict[str, Any], tensors: int, path: str | Path) -> nn.Module:
    """The network that a configuration describes, without memory for its weights."""
    builder, kind = _builder(ours)
    _check_options(kind, ours["config"])
    try:
        if max(ours["config"].get(name) or 0 for name in ("n_layer", "members")) > tensors:
            raise ValueError(f"more layers than the file's {tensors} tensors")
        with torch.device("meta"), integrity.WithoutInitialisation():
            net: nn.Module = builder(kind(**ours["config"]))
            return net
    except Exception as error:  # values of every kind end in errors of every kind
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(
            f"checkpoint {str(path)!r} has a configuration that describes no network ({reason}): give a file that "
            "`fit` saved."
        ) from error


def text_changed(checkpoint: dict[str, Any], data: TextData) -> bool:
    """Whether the data's text is another than that of the run so far, where both are known."""
    there, here = checkpoint[KEY]["fingerprints"].get("data"), data.fingerprints.get("data")
    return None not in (there, here) and there != here


def config_of(kind: type[Any], value: Any) -> Any:
    """A fresh configuration of the class ``kind`` from an instance, or from the dict that a checkpoint stores.

    Raises:
        UserError: The dict has an option that this version does not know.
    """
    values = value if isinstance(value, dict) else asdict(value)
    _check_options(kind, values)
    return kind(**values)


def _check_options(kind: type[Any], values: dict[str, Any]) -> None:
    unknown = sorted(values.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise UserError(f"the checkpoint was written by a newer lit-gpt (option {unknown[0]}): upgrade lit-gpt.")


def _foreign(path: str | Path) -> UserError:
    return UserError(f"checkpoint {str(path)!r} was not written by lit_gpt: give a file that `fit` saved.")


def check_resumable(checkpoint: dict[str, Any], kind: str) -> None:
    """Raise a UserError unless a run with an optimizer of this kind can go on: our own rules take up each other's
    state, a class of torch's knows its own alone.
    """
    if "optimizer_states" not in checkpoint:
        raise UserError(
            "the checkpoint holds weights alone, so there is no run to go on with: start a new one from them with "
            "--model.init_from instead of --ckpt_path."
        )
    integrity.check_kinds(checkpoint, integrity.RUN, "the checkpoint")
    stored = checkpoint.get("hyper_parameters", {}).get("optimizer", {}).get("kind")
    if stored not in (None, kind) and "." in stored + kind:
        raise UserError(
            f"the checkpoint's optimizer is {stored}, whose state means nothing to {kind}: set "
            f"--model.optimizer.kind {stored}, or start a new run from the weights with --model.init_from."
        )


def check_tokens(known: str | None, vocab_size: int, data: TextData) -> str | None:
    """Raise a UserError where data has other tokens than a network knows.

    Args:
        known: Fingerprint of the tokenizer that the network was trained with; None where it has seen none yet.
        vocab_size: The network's.
        data: What `lit_gpt.protocols.data_of` returned after the ``setup`` of the datamodule.

    Returns:
        The fingerprint that the network knows from now on.
    """
    here, symbols = data.fingerprints.get("tokenizer"), data.vocab_size or 0
    if here and known and here != known:
        raise UserError(
            "the data's tokenizer differs from the one that the network was trained with, so token ids would change "
            "their meaning: give the text and tokenizer of that training."
        )
    if symbols > vocab_size:
        raise UserError(
            f"the data has {symbols} symbols and the network knows {vocab_size}: give the data that it was trained "
            "with, or train a new one."
        )
    return known or here


def check_network(checkpoint: dict[str, Any], module: type, net: nn.Module, config: Any) -> None:
    """Raise a UserError that names what differs unless the checkpoint's network is ``net``, which a LightningModule of
    class ``module`` built from ``config``.
    """
    stored = checkpoint[KEY]
    if stored["module"] != path_of(module):
        raise UserError(
            f"the checkpoint is of {stored['module']}, not of {path_of(module)}: set --model {stored['module']}."
        )
    before = config_of(type(config), stored["config"])
    differing = differing_fields(before, config)
    wrong = [name for name in differing if name not in CHANGEABLE_FIELDS]
    if not wrong and not _same_shapes(checkpoint["state_dict"], net):
        wrong = [name for name in differing if name in SHAPING]
    if wrong:
        raise _differs(wrong, asdict(before), asdict(config))


def differing_fields(before: Any, now: Any) -> list[str]:
    """The fields in which two configurations of a network do not mean the same."""
    there, here = asdict(before), asdict(now)
    return [name for name in here if here[name] != there[name] and _meant(before, name) != _meant(now, name)]


def _differs(names: list[str], there: dict[str, Any], here: dict[str, Any]) -> UserError:
    has, wanted = (", ".join(f"{name} {format_value(values[name])}" for name in names[:4]) for values in (there, here))
    flags = " ".join(f"--model.config.{name} {format_value(there[name])}" for name in names)
    few = len(names) <= 4
    return UserError(
        f"the checkpoint has {has}, not {wanted}{'' if few else f', and {len(names) - 4} more fields differ'}: set "
        f"{flags if few else 'the configuration of its run'}, or start a new run without --ckpt_path."
    )


def _meant(config: Any, name: str) -> Any:
    """A field's value, or what follows from other fields where it is left out or has no effect."""
    if name == "rope_base" and not config.rope:
        return None
    resolved = {name: f"resolved_{name}" for name in ("n_kv_head", "mlp_width", "norm_eps")}
    return getattr(config, resolved.get(name, name))


def _same_shapes(state: dict[str, Tensor], net: nn.Module) -> bool:
    return all(PREFIX + name in state and state[PREFIX + name].shape == p.shape for name, p in net.named_parameters())


def load(path: str | Path, device: str = "cpu", model: str | type | None = None) -> "TextModel":
    """The network and tokenizer of a checkpoint, ready to generate: needs no configuration, data or network.

    Args:
        path: A ``.ckpt`` file that ``fit`` saved, or the folder of a run, whose best it takes.
        device: Where to put the network, such as ``cuda``.
        model: The LightningModule of a checkpoint that is not of one of ours, or its dotted path.

    Raises:
        UserError: When the file cannot be used (see ``read``).
    """
    from datamodules.tokenizers import tokenizer_from_dict
    from lit_gpt.generate import TextModel

    checkpoint = read(path, mmap=True)
    if checkpoint[KEY]["tokenizer"] is None:
        raise UserError(f"checkpoint {str(path)!r} holds no tokenizer: it was trained on ready-made token ids.")
    tokenizer = tokenizer_from_dict(checkpoint[KEY]["tokenizer"])
    if tokenizer.vocab_size > (known := checkpoint[KEY]["config"]["vocab_size"]):
        have = f"a tokenizer of {tokenizer.vocab_size} tokens and a network that knows {known}"
        raise UserError(f"checkpoint {str(path)!r} has {have}: give a file that `fit` saved.")
    net = build_network(checkpoint, model).fold()
    return TextModel(net.to(device), tokenizer)


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
    builder, kind = _builder(stored)
    net: Network = builder(config_of(kind, stored["config"]))
    return net


def _builder(stored: dict[str, Any]) -> tuple[Any, type[Any]]:
    """What makes the network of a checkpoint, and the class of its configuration."""
    path = stored["module"]
    if path not in MODULES:
        raise UserError(f"the checkpoint is of {path}, which is not one of lit-gpt's: add --model {path}.")
    try:
        builder, kind = map(resolve_name, MODULES[path])
    except ModuleNotFoundError as error:
        raise UserError(f"the checkpoint needs {error.name}, which is not installed: install lit-gpt whole.") from error
    return builder, kind


def _network_of(model: str | type, stored: dict[str, Any]) -> Network:
    """The network that a LightningModule of the user's own builds."""
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
    """The LightningModule class that a person names by its dotted path.

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
