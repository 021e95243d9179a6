"""Settings of jsonargparse."""

from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import set_loader, set_parsing_settings
from jsonargparse._loaders_dumpers import loader_exceptions, loaders
from lightning.pytorch.cli import LightningArgumentParser

from lit_gpt.cli.help import shown


class StrictParser(LightningArgumentParser):
    """Accepts options by their full names only. The parsers of classes inside a command line are of this class too."""

    arranged: list[Any] | None = None  # the groups of the help, see `lit_gpt.cli.help.arrange`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help, in the groups that were arranged for it."""
        with shown(self):
            return str(super().format_help(*args, **kwargs))

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """Add the options of a class. One that takes int or float reads ``1`` as an int, whatever was imported before.

        jsonargparse tries the types in their order, and Python keeps one order for each union of a process: where
        ``Union[float, int]`` was made first, ``Union[int, float]`` of Lightning's Trainer is that object too. Then
        ``--trainer.limit_val_batches 1`` would be 1.0, which is all batches.
        """
        added = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if hasattr(action, "_typehint"):
                action._typehint = _with_int_first(action._typehint)
        return added


class DescribedParser(StrictParser):
    """The same where descriptions of options are shown.

    A class of its own, because jsonargparse keeps the parsers of classes by the class of the parser that has them.
    """


def parser_class(arguments: list[str]) -> type[StrictParser]:
    """The parser of a command line.

    Only `--help` and `--print_config` show descriptions. To read those of attributes, jsonargparse parses the source of
    every class: 0.3 s of a start.
    """
    described = any(part == "-h" or "help" in part or part.startswith("--print_config") for part in arguments)
    set_parsing_settings(docstring_parse_attribute_docstrings=described)
    return DescribedParser if described else StrictParser


def _with_int_first(hint: Any) -> Any:
    """A union in which int stands before float; any other type as it is."""
    types = get_args(hint)
    if get_origin(hint) not in (Union, UnionType) or int not in types or float not in types:
        return hint
    if types.index(int) < types.index(float):
        return hint
    return reduce(or_, sorted(types, key=lambda part: part is not int))  # `|` makes a new union, Union[...] does not


@cache
def prepare_parsing() -> None:
    """Accept ``null`` for a field.

    jsonargparse 4.53 passes ``null`` on as the string None, which no type accepts. It is a setting of the process, so
    one call is enough.
    """
    usual = loaders["yaml"]
    set_loader("yaml", lambda text: None if text == "None" else usual(text), loader_exceptions["yaml"])
