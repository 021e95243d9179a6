"""The options of a constructor call as plain values."""

import inspect
from pathlib import Path
from typing import Any

_NOT_PLAIN = object()


class RemembersOptions:
    """A base class that keeps the options of the constructor call, so that a checkpoint can store them.

    Attributes:
        init_args: the options that are plain values, by name; paths are strings.
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Reads the options before any ``__init__`` can change them."""
        instance = super().__new__(cls)
        signature = inspect.signature(vars(cls).get("__init__", cls.__init__))
        arguments = signature.bind_partial(None, *args, **options).arguments
        arguments.pop("self", None)
        arguments |= arguments.pop("options", {})  # every __init__ passes its ``**options`` to the next class
        plain = {name: _plain(value) for name, value in arguments.items()}
        instance.init_args = {name: value for name, value in plain.items() if value is not _NOT_PLAIN}
        return instance


def option_names(cls: type) -> set[str]:
    """The names of all options of a class whose ``__init__`` passes ``**options`` to its base class."""
    own = (vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base))
    return {name for init in own for name in inspect.signature(init).parameters}


def _plain(value: Any) -> Any:
    """``value`` as str, int, float, bool, None or a list of these; `_NOT_PLAIN` if it is something else."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return _NOT_PLAIN if _NOT_PLAIN in parts else parts
    return value if value is None or isinstance(value, str | int | float | bool) else _NOT_PLAIN
