"""The class and options of a datamodule as plain values, which a checkpoint stores."""

import glob
from typing import Any

from datamodules.files import expanded
from datamodules.sources import is_path

#: The options that name a text.
SOURCES = ("source", "val_source", "test_source", "predict_source")


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
