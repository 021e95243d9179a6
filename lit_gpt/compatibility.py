"""Whether a checkpoint fits a run: its optimizer, its tokenizer, its network and its text."""

from dataclasses import asdict
from typing import Any

from torch import nn

from datamodules.errors import UserError
from lit_gpt import integrity
from lit_gpt.checkpoint import KEY, config_of, path_of, same_shapes
from lit_gpt.config import format_value
from lit_gpt.protocols import TextData

#: Fields in which a run may differ from the weights that it starts from. No weight depends on their value.
CHANGEABLE_FIELDS = (
    "block_size",
    "dropout",
    "attention_dropout",
    "init",
    "position_std",
    "pad_vocab_to",
    "kneser_ney_share",
)
#: Those of them on which the shape of a tensor may depend: learned positions, a padded vocabulary.
SHAPE_FIELDS = ("block_size", "pad_vocab_to")


def text_changed(checkpoint: dict[str, Any], data: TextData) -> bool:
    """Whether the data's text is another than that of the checkpoint's run. False if one of them is unknown."""
    stored, current = checkpoint[KEY]["fingerprints"].get("data"), data.fingerprints.get("data")
    return None not in (stored, current) and stored != current


def check_resumable(checkpoint: dict[str, Any], kind: str) -> None:
    """Raise a UserError unless a run with an optimizer of this kind can resume from ``checkpoint``.

    Our own algorithms can load each other's state. A class of torch can load its own only.
    """
    if not checkpoint.get("optimizer_states"):
        raise UserError(
            "the checkpoint holds weights alone, so there is no run to resume: start a new one from them with "
            "--model.init_from instead of --ckpt_path."
        )
    integrity.check_types(checkpoint, integrity.RUN_TYPES, "the checkpoint")
    stored = checkpoint.get("hyper_parameters", {}).get("optimizer", {}).get("kind")
    if stored not in (None, kind) and "." in stored + kind:
        raise UserError(
            f"the checkpoint's optimizer is {stored}, whose state means nothing to {kind}: set "
            f"--model.optimizer.kind {stored}, or start a new run from the weights with --model.init_from."
        )


def check_tokens(known: str | None, vocab_size: int, data: TextData) -> str | None:
    """Raise a UserError if the data's tokenizer is not the one that a network was trained with.

    Args:
        known: Fingerprint of the network's tokenizer. None: it has not been trained yet.
        vocab_size: The network's vocabulary size.
        data: What `lit_gpt.protocols.data_of` returned after the ``setup`` of the datamodule.

    Returns:
        The fingerprint of the network's tokenizer from now on.
    """
    current, tokens = data.fingerprints.get("tokenizer"), data.vocab_size or 0
    if current and known and current != known:
        raise UserError(
            "the data's tokenizer differs from the one that the network was trained with, so token ids would change "
            "their meaning: give the text and tokenizer of that training."
        )
    if tokens > vocab_size:
        raise UserError(
            f"the data has {tokens} tokens and the network knows {vocab_size}: give the data that it was trained "
            "with, or train a new one."
        )
    return known or current


def check_network(checkpoint: dict[str, Any], module: type, net: nn.Module, config: Any) -> None:
    """Raise a UserError that names the difference unless the checkpoint has the weights of ``net``.

    Args:
        checkpoint: What `read` returned.
        module: The class of the LightningModule that built ``net``.
        net: The network to load the weights into.
        config: Its configuration.
    """
    stored = checkpoint[KEY]
    if stored["module"] != path_of(module):
        raise UserError(
            f"the checkpoint is of {stored['module']}, not of {path_of(module)}: set --model {stored['module']}."
        )
    stored_config = config_of(type(config), stored["config"])
    differing = differing_fields(stored_config, config)
    wrong = [name for name in differing if name not in CHANGEABLE_FIELDS]
    if not wrong and not same_shapes(checkpoint["state_dict"], net):
        wrong = [name for name in differing if name in SHAPE_FIELDS]
    if wrong:
        raise _differs_error(wrong, asdict(stored_config), asdict(config))


def differing_fields(stored: Any, current: Any) -> list[str]:
    """The fields in which two configurations have different effective values (a null may equal a number)."""
    old, new = asdict(stored), asdict(current)
    return [
        name
        for name in new
        if new[name] != old[name] and _effective_value(stored, name) != _effective_value(current, name)
    ]


def _differs_error(names: list[str], stored: dict[str, Any], current: dict[str, Any]) -> UserError:
    has, wanted = (
        ", ".join(f"{name} {format_value(values[name])}" for name in names[:4]) for values in (stored, current)
    )
    flags = " ".join(f"--model.config.{name} {format_value(stored[name])}" for name in names)
    few = len(names) <= 4
    return UserError(
        f"the checkpoint has {has}, not {wanted}{'' if few else f', and {len(names) - 4} more fields differ'}: set "
        f"{flags if few else 'the configuration of its run'}, or start a new run without --ckpt_path."
    )


def _effective_value(config: Any, name: str) -> Any:
    """A field's value after its default is resolved, None for a field without effect."""
    if name == "rope_base" and not config.rope:
        return None
    resolved = {name: f"resolved_{name}" for name in ("n_kv_head", "mlp_width", "norm_eps")}
    return getattr(config, resolved.get(name, name))
