"""Reads the options of a verb that is a function, where every value is plainly one of its type.

So `generate` needs neither jsonargparse nor YAML, which are half of the files that it would read beyond torch's.
Whatever else there is, a config, a list, the help or a mistake, is left to jsonargparse.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import Any, get_args

#: What a value must look like, and the function that reads it. A leading zero would be octal in YAML.
READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    int: (r"0|[1-9]\d{0,17}", int),
    float: (r"0\.\d{1,9}|[1-9]\d{0,8}\.\d{1,9}", float),
    bool: (r"true|false", "true".__eq__),
    str: (r"[^-].*", str),
}
#: An option that may be None reads any other text as YAML. A name is the same there, but for those of nothing.
NAME, NOTHING = r"[A-Za-z_][\w.]*", ("null", "none")


def plain_options(function: Callable[..., Any], arguments: list[str]) -> dict[str, Any] | None:
    """The options of a function on a command line; None if they must be read by jsonargparse."""
    parameters = inspect.signature(function).parameters
    names, texts = [name.removeprefix("--") for name in arguments[::2]], arguments[1::2]
    are_options = len(names) == len(texts) and all(name.startswith("--") for name in arguments[::2])
    once_each = len(set(names)) == len(names)
    if not (are_options and once_each and _required(parameters.values()) <= set(names) <= set(parameters)):
        return None
    values = {name: _read(text, parameters[name].annotation) for name, text in zip(names, texts, strict=True)}
    return None if None in values.values() else values


def _required(parameters: Iterable[inspect.Parameter]) -> set[str]:
    return {parameter.name for parameter in parameters if parameter.default is parameter.empty}


def _read(text: str, hint: Any) -> Any:
    """A text as a value of a type; None if it is not plainly one."""
    types = {*(get_args(hint) if isinstance(hint, UnionType) else [hint])}
    kinds = [kind for kind in READERS if types - {NoneType} == {kind}]
    if not kinds:
        return None
    pattern, read = READERS[kinds[0]]
    if NoneType in types and kinds == [str]:
        return text if re.fullmatch(NAME, text) and text.lower() not in NOTHING else None
    return read(text) if re.fullmatch(pattern, text) else None
