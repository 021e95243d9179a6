"""The options that a datamodule was made with, as plain values, and the data of a run for its checkpoints."""

import glob
import inspect
from pathlib import Path
from typing import Any

from datamodules.files import expanded
from datamodules.sources import is_path

#: The options that name a text.
SOURCES = ("source", "val_source", "test_source", "predict_source")
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


def described(data: Any) -> dict[str, Any] | None:
    """Class and options of a datamodule as plain values; None without a datamodule.

    Options are None where the datamodule does not have them (see `RemembersOptions`). Paths of texts and of a tokenizer
    are made absolute, so that later commands work in another folder too.
    """
    if data is None:
        return None
    options = getattr(data, "init_args", None)
    path = f"{type(data).__module__}.{type(data).__name__}"
    stored = None if options is None else {name: stored_value(name, value) for name, value in options.items()}
    return {"class_path": path, "init_args": stored}


def stored_value(name: str, value: Any) -> Any:
    """The value of an option as a checkpoint stores it."""
    if name in SOURCES or name == "tokenizer":
        return [_absolute(spec) for spec in value] if isinstance(value, list) else _absolute(value)
    return value


def _absolute(spec: Any) -> Any:
    """The absolute path of a file, folder or glob; a name such as ``embedded`` does not change."""
    if not isinstance(spec, str) or not is_path(spec) or not path_exists(spec):
        return spec
    return str(expanded(spec).absolute())


def path_exists(spec: str) -> bool:
    """Whether a file or folder of that name exists, or one that the glob matches."""
    return bool(glob.glob(glob.escape(str(expanded(spec))))) or bool(glob.glob(str(expanded(spec)), recursive=True))
