"""Finds damaged checkpoint files, and the newest intact one beside them.

torch writes a zip with a CRC-32 checksum of every record, and does not check it when it reads. A flipped bit would
silently change a weight. To check takes 0.4 s for a GB in the page cache, so a process checks each file once.
"""

import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from datamodules.errors import UserError

#: Types of the values in the entry ``lit_gpt`` of a checkpoint, and of the other values in the file.
ENTRY_TYPES = {"module": str, "config": dict, "tokenizer": dict | None, "fingerprints": dict}
FILE_TYPES = {"state_dict": dict, "global_step": int, "epoch": int, "pytorch-lightning_version": str}
#: Types of the values that a resumed run needs as well.
RUN_TYPES = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict}

#: Device, inode, size and modification time of the files whose checksums were right.
_INTACT: set[tuple[int, int, int, int]] = set()

#: How the errors of torch's weights_only reader name a class or function that a pickle would import.
CODE = re.compile(r"GLOBAL:? (\S+)")


def check_intact(path: Path) -> None:
    """Raise a UserError unless a checkpoint has the content that was written, by its checksums.

    Raises:
        UserError: The file cannot be opened, is cut short, was changed, or is no checkpoint.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"checkpoint {str(path)!r} cannot be read ({error.strerror}): mend that.") from error
    if not _is_as_written(path):
        raise _not_intact_error(path)


def _is_as_written(path: Path) -> bool:
    stat = path.stat()
    identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if identity not in _INTACT and not is_damaged(path):
        _INTACT.add(identity)
    return identity in _INTACT


def is_damaged(path: Path) -> bool:
    """Whether a record of a zip differs from its checksum. torch can be told to write none: all are then 0."""
    try:
        with zipfile.ZipFile(path) as archive:
            checked = any(record.CRC for record in archive.infolist())
            return checked and archive.testzip() is not None
    # zipfile raises many kinds for a broken file: BadZipFile, OSError, struct.error, NotImplementedError, ...
    except Exception:
        return True


def _not_intact_error(path: Path) -> UserError:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" or zipfile.is_zipfile(path):
        return _damaged_error(path)
    if start.strip(b"\0") == b"":
        return UserError(f"checkpoint {str(path)!r} is empty: {_advice(path)}.")
    if code := _code_in(path):
        return _imports_code_error(path, code)
    return UserError(f"file {str(path)!r} is no checkpoint: {_advice(path, 'give one that `fit` saved')}.")


def _damaged_error(path: Path) -> UserError:
    return UserError(f"checkpoint {str(path)!r} is cut short or damaged: {_advice(path)}.")


def _code_in(path: Path) -> str | None:
    """The class or function that a file would import, if it is a pickle or in torch's old format."""
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, value, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    return str(value).replace(" ", ".")
                if operation.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                strings += [value] if isinstance(value, str) else []
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any kind
        code = CODE.search(str(error))
        return code and code[1]
    return None


def _advice(path: Path, alone: str = "no intact one is beside it, so use a copy or start a new run") -> str:
    other = newest_intact(path.parent, but=path)
    return f"use {other}" if other else alone


def _imports_code_error(path: Path, name: str) -> UserError:
    return UserError(
        f"file {str(path)!r} names code, {name}, which is never run, and was not written by lit_gpt: give a checkpoint "
        "that `fit` saved."
    )


def load(path: Path, mmap: bool = False) -> Any:
    """The plain values and tensors in an intact file. Other types are refused, and no code is run.

    Args:
        path: The file.
        mmap: Map the file into memory, so that tensors are read when they are used.

    Raises:
        UserError: The file is damaged, would import code, or holds other records than its index lists.
    """
    check_intact(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many kinds for missing or wrong records
        if code := CODE.search(str(error)):
            raise _imports_code_error(path, code[1]) from error
        if "failed reading zip archive" in str(error):  # the index at its end, which has no checksum
            raise _damaged_error(path) from error
        if "allocate memory" in str(error):
            raise UserError(f"checkpoint {str(path)!r} does not fit into memory: use a machine with more.") from error
        raise UserError(
            f"file {str(path)!r} was not written by lit_gpt: give a checkpoint that `fit` saved."
        ) from error


def step_of(path: Path) -> int | None:
    """The number of optimizer steps of a checkpoint. None: it cannot be read."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # a damaged file raises errors of many kinds
        return None


def is_intact(path: Path) -> bool:
    """Whether a file is a checkpoint with the content that was written, by its checksums."""
    try:
        return _is_as_written(path) and step_of(path) is not None
    except OSError:
        return False


def newest_intact(folder: Path, but: Path | None = None) -> Path | None:
    """The intact checkpoint with the most steps in a run's ``checkpoints`` folder. None: there is none.

    Args:
        folder: The folder of the files.
        but: A file to leave out, because it is known to be damaged.
    """
    steps = {path: step_of(path) for path in sorted(folder.glob("*.ckpt")) if path != but}
    newest = sorted(steps, key=lambda path: steps[path] or 0, reverse=True)
    return next((path for path in newest if is_intact(path)), None)


def checkpoint_to_resume(last: Path) -> Path | None:
    """The checkpoint to resume a run from: its last one, or the newest intact one if that is damaged or gone."""
    return last if is_intact(last) else newest_intact(last.parent, but=last)


def set_aside(path: Path) -> None:
    """Rename a damaged file to NAME.damaged, which no code takes for a checkpoint."""
    os.replace(path, path.with_name(f"{path.name}.damaged"))


def advice_to_continue(folder: str | None) -> str:
    """What to do after a run has failed, as the end of an error message.

    Args:
        folder: The run's folder.
    """
    has_checkpoint = folder is not None and newest_intact(Path(folder) / "checkpoints")
    return f"resume from the last checkpoint with --ckpt_path {folder}" if has_checkpoint else "start a new run"


def check_types(values: dict[str, Any], types: dict[str, Any], path: str | Path) -> None:
    """Raise a UserError that names the first value that is missing or has another type than `fit` writes.

    Args:
        values: A part of a checkpoint.
        types: The type of each value, by its name.
        path: The checkpoint, for the message.
    """
    for name, kind in types.items():
        if name not in values or not isinstance(values[name], kind):
            what = f"{type(values[name]).__name__} as its {name}" if name in values else f"no {name}"
            raise UserError(
                f"checkpoint {str(path)!r} has {what}, which `fit` never writes: give a file that it saved."
            )


class WithoutInitialisation(TorchFunctionMode):
    """Skips the initialisation of weights. On the meta device it would import the compiler, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, unless it fills a tensor with random numbers."""
        options = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_"):
            return args[0] if args else options["tensor"]
        return func(*args, **options)
