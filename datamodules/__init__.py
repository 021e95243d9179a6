"""Datamodules from text of any size to batches of fixed shape. A name imports its module on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datamodules.errors import UserError

if TYPE_CHECKING:
    from datamodules.base import TextDataModule
    from datamodules.bert import BertDataModule
    from datamodules.bpe import BPEDataModule
    from datamodules.char import CharDataModule
    from datamodules.headlines import HeadlinesDataModule
    from datamodules.scoring import ScoredText
    from datamodules.token_data import TokensDataModule

_HOME = {
    "BPEDataModule": "datamodules.bpe",
    "BertDataModule": "datamodules.bert",
    "CharDataModule": "datamodules.char",
    "HeadlinesDataModule": "datamodules.headlines",
    "ScoredText": "datamodules.scoring",
    "TextDataModule": "datamodules.base",
    "TokensDataModule": "datamodules.token_data",
}

__all__ = [
    "BPEDataModule",
    "BertDataModule",
    "CharDataModule",
    "HeadlinesDataModule",
    "ScoredText",
    "TextDataModule",
    "TokensDataModule",
    "UserError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
