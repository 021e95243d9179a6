"""Reads preset and config files from a command line before it is parsed, and checks values after that."""

import itertools
import math
import os
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from datamodules.errors import UserError, check_at_least
from lit_gpt.cli.suggest import unknown
from lit_gpt.config import PRESETS, format_value

CONFIG = ("--config", "-c")
#: Options of one verb alone that are groups, and that have a value.
GROUPS = {"fit": ("checkpoint", "samples"), "predict": ("predictions",)}
VALUES = {"fit": ("name", "logs_dir")}
PACKAGE = Path(__file__).parents[1]


def preset(arguments: list[str]) -> str | None:
    """The preset that the command line or a config file names. It sets defaults, so it is needed before parsing."""
    name = value_of("preset", arguments)
    if name is not None and str(name) not in PRESETS:
        raise unknown("preset", str(name), PRESETS)
    return name


def value_of(key: str, arguments: list[str]) -> Any:
    """The value of a key on the command line or in a config file, before parsing. None: neither has it."""
    result = None
    for name, value in pairs(arguments):
        if name == f"--{key}":
            result = value
        elif name in CONFIG and Path(value).is_file():
            loaded = _load_yaml(Path(value))
            result = loaded.get(key, result) if isinstance(loaded, dict) else result
    return result


def wants_plan(arguments: list[str]) -> bool:
    """Whether the command line or a config file has ``plan``."""
    return "--plan" in arguments or value_of("plan", arguments) in (True, "true")


def data_of_configs(arguments: list[str]) -> dict[str, Any]:
    """The ``data`` of all config files. A later file overrides an earlier one."""
    merged: dict[str, Any] = {}
    for name, value in pairs(arguments):
        if name in CONFIG and Path(value).is_file():
            loaded = _load_yaml(Path(value))
            data = loaded.get("data") if isinstance(loaded, dict) else None
            data = {"class_path": data} if isinstance(data, str) else dict(data or {})
            options = {**(merged.get("init_args") or {}), **(data.pop("init_args", None) or {})}
            merged |= {**data, "init_args": options}
    return merged


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {str(path)!r} is not valid YAML: {' '.join(str(error).split())}.") from error


def pairs(arguments: list[str]) -> list[tuple[str, str]]:
    """(option, value) of each argument, for both forms: ``--option value`` and ``--option=value``."""
    result = []
    for argument, value in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, joined, own = argument.partition("=")
        result.append((name, own) if argument.startswith("-") and joined else (argument, value))
    return result


def with_packaged_configs(arguments: list[str]) -> list[str]:
    """The arguments, with each config that does not exist in the current folder replaced by the package's."""
    result = list(arguments)
    for i, argument in enumerate(arguments):
        option, joined, value = argument.partition("=")
        if joined and option in CONFIG:
            result[i] = f"{option}={_existing_or_packaged(value)}"
        elif argument in CONFIG and i + 1 < len(arguments):
            result[i + 1] = _existing_or_packaged(arguments[i + 1])
    return result


def _existing_or_packaged(config: str) -> str:
    return config if Path(config).exists() else str(_packaged(config) or config)


def _packaged(config: str) -> Path | None:
    """The packaged config of that name: in the installed package, or beside it in a clone."""
    paths = (home / "configs" / config.removeprefix("configs/") for home in (PACKAGE, PACKAGE.parent))
    return next((path for path in paths if path.is_file()), None)


def check_values(verb: str, config: Namespace) -> None:
    """Refuse values that have the right type, but are meaningless or would end in a traceback."""
    _check_given(verb, config)
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


def _check_given(verb: str, config: Namespace) -> None:
    """jsonargparse takes null for a value of any type, and any value for a group of options."""
    groups, values = GROUPS.get(verb, ()), VALUES.get(verb, ())
    for name in ("trainer", "progress", *groups):
        if not isinstance(config[name], Namespace):
            raise UserError(f"{name} is {format_value(config[name])}: leave it out, or give its options.")
    for name in ("seed_everything", "float32_matmul", *values):
        if config[name] is None:
            raise UserError(f"{name} is null: leave it out, or give a value.")


def _check_seed(seed: int | bool) -> None:
    if not 0 <= seed < 2**32:  # numpy's range
        raise UserError(f"seed_everything is {seed}: give 0 to {2**32 - 1}.")


def _check_processes(config: Namespace) -> None:
    """Refuse more processes than a machine can start: they would make it unusable."""
    trainer, most = config.trainer, max(64, 4 * (os.cpu_count() or 1))
    devices = int(trainer.devices) if str(trainer.devices).isdecimal() else 0
    for name, value, limit in (
        ("trainer.num_nodes", trainer.num_nodes, 2**16),
        ("trainer.devices", devices, most),
    ):
        if isinstance(value, int) and value > limit:
            raise UserError(f"{name} is {value}: give at most {limit} here.")
