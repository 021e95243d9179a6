"""Checks the values of a command line that the parser accepts."""

import math

from jsonargparse import Namespace

from datamodules.errors import UserError, check_at_least
from lit_gpt.cli.arguments import value_of
from lit_gpt.cli.options import GROUPS, OPTIONS_OF_ONE_VERB
from lit_gpt.cli.presets import PRESETS, check_class
from lit_gpt.cli.processes import check_processes
from lit_gpt.cli.suggest import unknown
from lit_gpt.config import format_value

#: Options of one verb alone that have a value.
VALUES = {"fit": ("name", "logs_dir")}


def preset(arguments: list[str]) -> str | None:
    """The preset that the command line or a config file names. It sets defaults, so it is needed before parsing."""
    name = value_of("preset", arguments)
    if name is not None and str(name) not in PRESETS:
        raise unknown("preset", str(name), PRESETS)
    check_class(name, value_of("model", arguments))
    return name


def check_values(verb: str, config: Namespace) -> None:
    """Refuse values that have the right type, but are meaningless or would end in a traceback."""
    _check_given(verb, config)
    _check_seed(config.seed_everything)
    check_processes(config.trainer)
    interval = config.trainer.val_check_interval
    if isinstance(interval, int | float) and not 0 < interval < math.inf:
        raise UserError(
            f"trainer.val_check_interval is {interval}: give at least 1 step, or --trainer.limit_val_batches 0 for no "
            "validation."
        )
    for name, value in vars(config.trainer).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"trainer.{name} is {value}: give a finite number.")
    for name in ("max_steps", "max_epochs"):
        if (config.trainer[name] or 0) < -1:
            raise UserError(f"trainer.{name} is {config.trainer[name]}: give at least 1, or -1 for no limit.")
    check_at_least(1, "trainer.check_val_every_n_epoch", config.trainer.check_val_every_n_epoch)
    if verb == "fit":
        check_at_least(1, "early_stopping", config.early_stopping)


def _check_given(verb: str, config: Namespace) -> None:
    """jsonargparse takes null for a value of any type, and any value for a group of options."""
    groups = (name for name in OPTIONS_OF_ONE_VERB.get(verb, ()) if name in GROUPS)
    values = VALUES.get(verb, ())
    for name in ("trainer", "progress", *groups):
        if not isinstance(config[name], Namespace):
            raise UserError(f"{name} is {format_value(config[name])}: leave it out, or give its options.")
    for name in ("seed_everything", "float32_matmul", *values):
        if config[name] is None:
            raise UserError(f"{name} is null: leave it out, or give a value.")


def _check_seed(seed: int | bool) -> None:
    if not 0 <= seed < 2**32:  # numpy's range
        raise UserError(f"seed_everything is {seed}: give 0 to {2**32 - 1}.")
