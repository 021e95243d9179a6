"""The data of a run as plain values, for its checkpoints."""

import glob
from typing import Any

from datamodules.files import expanded
from datamodules.sources import is_place

#: Options that name a text.
SOURCES = ("source", "val_source", "test_source", "predict_source")


def described(data: Any) -> dict[str, Any] | None:
    """Class and options of a datamodule as plain values; None where there is none, options None where they are unknown.

    Places of texts and of a tokenizer are made absolute, so that the verbs may be typed in another folder.
    """
    if data is None:
        return None
    options = getattr(data, "init_args", None)
    path = f"{type(data).__module__}.{type(data).__name__}"
    return {"class_path": path, "init_args": None if options is None else {k: kept(k, options[k]) for k in options}}


def kept(name: str, value: Any) -> Any:
    """The value of an option as a checkpoint keeps it."""
    if name in SOURCES or name == "tokenizer":
        return [_absolute(one) for one in value] if isinstance(value, list) else _absolute(value)
    return value


def _absolute(spec: Any) -> Any:
    """A file, folder or glob from the root on; a name, such as ``embedded``, as it is."""
    if not isinstance(spec, str) or not is_place(spec) or not is_there(spec):
        return spec
    return str(expanded(spec).absolute())


def is_there(spec: str) -> bool:
    """Whether there is a file or folder of that name, or one that the glob matches."""
    return bool(glob.glob(glob.escape(str(expanded(spec))))) or bool(glob.glob(str(expanded(spec)), recursive=True))
