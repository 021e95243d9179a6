"""Settings of jsonargparse."""

from functools import cache
from typing import Any

from jsonargparse import set_loader, set_parsing_settings
from jsonargparse._loaders_dumpers import loader_exceptions, loaders
from lightning.pytorch.cli import LightningArgumentParser


class StrictParser(LightningArgumentParser):
    """Accepts options by their full names only. The parsers of classes inside a command line are of this class too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


@cache
def prepare_parsing() -> None:
    """Show the docstring of a configuration's field as its help, and accept ``null`` for a field.

    jsonargparse 4.53 passes ``null`` on as the string None, which no type accepts. Both are settings of the process, so
    one call is enough.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usual = loaders["yaml"]
    set_loader("yaml", lambda text: None if text == "None" else usual(text), loader_exceptions["yaml"])
