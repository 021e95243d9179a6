"""The command line before it is parsed, which preset and which config files it names; and what to refuse after that."""

import itertools
import math
import os
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from datamodules.errors import UserError, check_at_least
from lit_gpt.cli.suggest import unknown
from lit_gpt.config import PRESETS

CONFIG = ("--config", "-c")
HERE = Path(__file__).parents[1]


def preset(arguments: list[str]) -> str | None:
    """The preset named by the command line or a config file; it sets defaults, so it is needed before parsing."""
    found = value_of("preset", arguments)
    if found is not None and str(found) not in PRESETS:
        raise unknown("preset", str(found), PRESETS)
    return found


def value_of(key: str, arguments: list[str]) -> Any:
    """What the command line or a config file gives for a key, before parsing; None where neither does."""
    found = None
    for name, value in pairs(arguments):
        if name == f"--{key}":
            found = value
        elif name in CONFIG and Path(value).is_file():
            loaded = _load_yaml(Path(value))
            found = loaded.get(key, found) if isinstance(loaded, dict) else found
    return found


def data_of_configs(arguments: list[str]) -> dict[str, Any]:
    """The ``data`` of the config files, what a later one gives over what an earlier one does."""
    found: dict[str, Any] = {}
    for name, value in pairs(arguments):
        if name in CONFIG and Path(value).is_file():
            loaded = _load_yaml(Path(value))
            data = loaded.get("data") if isinstance(loaded, dict) else None
            data = {"class_path": data} if isinstance(data, str) else dict(data or {})
            options = {**(found.get("init_args") or {}), **(data.pop("init_args", None) or {})}
            found |= {**data, "init_args": options}
    return found


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {str(path)!r} is not valid YAML: {' '.join(str(error).split())}.") from error


def pairs(arguments: list[str]) -> list[tuple[str, str]]:
    """(option, value) for both spellings, ``--option value`` and ``--option=value``."""
    found = []
    for argument, value in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, joined, own = argument.partition("=")
        found.append((name, own) if argument.startswith("-") and joined else (argument, value))
    return found


def with_packaged_configs(arguments: list[str]) -> list[str]:
    """Configs that are not found from the current folder come from the package."""
    found = list(arguments)
    for i, argument in enumerate(arguments):
        option, joined, value = argument.partition("=")
        if joined and option in CONFIG:
            found[i] = f"{option}={_found(value)}"
        elif argument in CONFIG and i + 1 < len(arguments):
            found[i + 1] = _found(arguments[i + 1])
    return found


def _found(config: str) -> str:
    return config if Path(config).exists() else str(_packaged(config) or config)


def _packaged(config: str) -> Path | None:
    """The file of that name that comes with us: a part of the installed package, or beside it in a clone."""
    paths = (home / "configs" / config.removeprefix("configs/") for home in (HERE, HERE.parent))
    return next((path for path in paths if path.is_file()), None)


def check_values(verb: str, config: Namespace) -> None:
    """Refuse values of a verb that have the right type and would end in a traceback, or mean nothing."""
    if config.trainer is None:
        raise UserError("trainer is null: leave it out, or give its options.")
    _check_seed(config.seed_everything)
    _check_processes(config)
    interval = config.trainer.val_check_interval
    if isinstance(interval, int | float) and not 0 < interval < math.inf:
        raise UserError(
            f"trainer.val_check_interval is {interval}: give at least 1 step, or --trainer.limit_val_batches 0 for no "
            "validation."
        )
    for name, value in vars(config.trainer).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"trainer.{name} is {value}: give a finite number.")
    check_at_least(1, "trainer.check_val_every_n_epoch", config.trainer.check_val_every_n_epoch)
    if verb == "fit":
        check_at_least(1, "early_stopping", config.early_stopping)


def _check_seed(seed: int | bool) -> None:
    if not 0 <= seed < 2**32:  # numpy's range
        raise UserError(f"seed_everything is {seed}: give 0 to {2**32 - 1}.")


def _check_processes(config: Namespace) -> None:
    """More than a machine can start would stop it."""
    trainer, most = config.trainer, max(64, 4 * (os.cpu_count() or 1))
    devices = int(trainer.devices) if str(trainer.devices).isdecimal() else 0
    for name, value, limit in (
        ("trainer.num_nodes", trainer.num_nodes, 2**16),
        ("trainer.devices", devices, most),
    ):
        if isinstance(value, int) and value > limit:
            raise UserError(f"{name} is {value}: give at most {limit} here.")
