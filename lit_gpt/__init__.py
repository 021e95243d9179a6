"""Train GPTs from scratch on PyTorch Lightning. Names load on first use, so ``import lit_gpt`` costs nothing."""

import importlib
from typing import TYPE_CHECKING, Any

from lit_gpt.version import __version__

if TYPE_CHECKING:
    from lit_gpt.baselines.bigram import BigramConfig
    from lit_gpt.baselines.module import LitBigram
    from lit_gpt.bert.config import BertConfig
    from lit_gpt.bert.module import LitBERT
    from lit_gpt.checkpoint import load
    from lit_gpt.config import GPTConfig
    from lit_gpt.model import GPT
    from lit_gpt.module import LitGPT
    from lit_gpt.optim import OptimizerConfig

_HOMES = {
    "GPT": "model",
    "GPTConfig": "config",
    "BigramConfig": "baselines.bigram",
    "LitGPT": "module",
    "BertConfig": "bert.config",
    "LitBERT": "bert.module",
    "LitBigram": "baselines.module",
    "OptimizerConfig": "optim",
    "LitLanguageModel": "language_model",
    "Network": "protocols",
    "LitExtendedGPT": "methods.module",
    "ExtendedGPTConfig": "methods.config",
    "FSDP2": "strategies",
    "load": "checkpoint",
}

__all__ = [
    "GPT",
    "BertConfig",
    "BigramConfig",
    "GPTConfig",
    "LitBERT",
    "LitBigram",
    "LitGPT",
    "OptimizerConfig",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_gpt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_gpt.{_HOMES[name]}"), name)
