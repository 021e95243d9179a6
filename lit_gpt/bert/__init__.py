"""BERT: an encoder that is trained to fill masked tokens. Names load on first use, so importing this costs nothing."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_gpt.bert.config import BertConfig
    from lit_gpt.bert.filling import MaskFiller, load
    from lit_gpt.bert.model import Bert
    from lit_gpt.bert.module import LitBERT

_HOMES = {"Bert": "model", "BertConfig": "config", "LitBERT": "module", "MaskFiller": "filling", "load": "filling"}

__all__ = ["Bert", "BertConfig", "LitBERT", "MaskFiller", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_gpt.bert' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_gpt.bert.{_HOMES[name]}"), name)
