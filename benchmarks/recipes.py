"""The recipes of benchmarks.time_to_loss: its table, and the config that a row becomes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_gpt.muon import has_bfloat16

#: What all rows have in common: an ordinary config, which is also the recipe of nanoGPT's whole time.
BASE = Path("configs/speedrun_cpu.yaml")
TABLE = Path("benchmarks/time_to_loss.yaml")


@dataclass(frozen=True)
class Recipe:
    """A row of the table."""

    name: str
    at_most: float
    """More steps than these are not done with this row. If no other row has more, the rest of the time is not used."""
    options: dict[str, Any]
    """Dotted names and values, over those of the base."""

    def config(self, steps: int, more: dict[str, Any]) -> dict[str, Any]:
        """A config for `fit` with this number of steps, and with ``more`` options by their dotted names."""
        config = yaml.safe_load(BASE.read_text())
        precision = "bf16-mixed" if has_bfloat16(torch.device("cpu")) else "32-true"
        fixed: dict[str, Any] = {"trainer.max_steps": steps, "trainer.val_check_interval": steps}
        # nanoGPT's command is told to take the CPU too
        fixed |= {"trainer.accelerator": "cpu", "trainer.precision": precision}
        for name, value in (self.options | fixed | more).items():
            _set(config, name, value)
        return config

    def network(self) -> str:
        """What the time of a step depends on."""
        return str(sorted((name, value) for name, value in self.options.items() if "optimizer" not in name))


def recipes(part: str) -> list[Recipe]:
    """Rows of a part of the table, from few steps to many."""
    rows = yaml.safe_load(TABLE.read_text())[part]
    return [Recipe(row["name"], row.get("at_most", math.inf), row.get("options", {})) for row in rows]


def _set(config: dict[str, Any], name: str, value: Any) -> None:
    """Set an option by its dotted name. Those of a model or of data are below init_args."""
    *path, last = name.split(".")
    for i, key in enumerate(path):
        config = config.setdefault(key, {})
        if i == 0 and key in ("model", "data"):
            config = config.setdefault("init_args", {})
    config[last] = value
