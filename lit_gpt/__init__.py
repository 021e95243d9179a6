"""Train GPTs from scratch on PyTorch Lightning. Names load on first use, so ``import lit_gpt`` costs nothing."""

import importlib
from typing import TYPE_CHECKING, Any

from lit_gpt.version import __version__

if TYPE_CHECKING:
    from lit_gpt.checkpoint import load
    from lit_gpt.model import GPT, GPTConfig
    from lit_gpt.module import LitGPT
    from lit_gpt.optim import OptimizerConfig

__all__ = ["GPT", "GPTConfig", "LitGPT", "OptimizerConfig", "__version__", "load"]

_HOMES = {"GPT": "model", "GPTConfig": "model", "LitGPT": "module", "OptimizerConfig": "optim", "load": "checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_gpt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_gpt.{_HOMES[name]}"), name)
