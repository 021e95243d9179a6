"""The values of ``--preset``: named architectures, each of one class of the model."""

from typing import Any

from datamodules.errors import UserError
from lit_gpt.bert.config import PRESETS as BERT_PRESETS
from lit_gpt.cli.options import CLASS_OF_PRESET, CLASSES
from lit_gpt.config import PRESETS as GPT_PRESETS

PRESETS: dict[str, dict[str, Any]] = GPT_PRESETS | BERT_PRESETS


def default_model(preset: str | None) -> dict[str, Any]:
    """The model that a command line has before its options are read: the class of the preset with its sizes."""
    classes = CLASSES["model"]
    name = CLASS_OF_PRESET.get(preset or "", next(iter(classes)))
    return {"class_path": classes[name], "init_args": {"config": PRESETS.get(preset or "", {})}}


def check_class(preset: str | None, model: Any) -> None:
    """Refuse a preset of another class of the model than the one that is typed. Classes of your own take any."""
    chosen = str(model.get("class_path", "") if isinstance(model, dict) else model or "").rpartition(".")[2]
    wanted = CLASS_OF_PRESET.get(preset or "")
    if preset is None or chosen not in CLASSES["model"] or (chosen in CLASS_OF_PRESET.values()) == (wanted is not None):
        return
    fitting = [name for name in PRESETS if CLASS_OF_PRESET.get(name) == (None if wanted else chosen)]
    raise UserError(f"preset {preset} is no architecture of {chosen}: choose one of {', '.join(fitting)}.")
