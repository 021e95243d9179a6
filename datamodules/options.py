"""What an object was made with, as plain values."""

import inspect
from pathlib import Path
from typing import Any

_OBJECT = object()


class RemembersOptions:
    """Keeps the options that it was made with, so that a checkpoint can say which data it was trained on.

    Attributes:
        init_args: Those that are plain values, by their names; paths are text.
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Looks at the options before any ``__init__`` changes them."""
        made = super().__new__(cls)
        given = (
            inspect.signature(vars(cls).get("__init__", cls.__init__)).bind_partial(None, *args, **options).arguments
        )
        given.pop("self", None)
        given |= given.pop("options", {})  # every __init__ hands its ``**options`` on
        made.init_args = {name: plain for name, value in given.items() if (plain := _plain(value)) is not _OBJECT}
        return made


def option_names(cls: type) -> set[str]:
    """The options of a class whose ``__init__``s hand theirs on."""
    own = (vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base))
    return {name for init in own for name in inspect.signature(init).parameters}


def _plain(value: Any) -> Any:
    """A value that any reader of a checkpoint understands; `_OBJECT` for what is none."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return _OBJECT if _OBJECT in parts else parts
    return value if value is None or isinstance(value, str | int | float | bool) else _OBJECT
