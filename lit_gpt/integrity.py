"""Whether a checkpoint file is as it was written, and which one to use where it is not.

torch writes a zip with a CRC-32 of every record and does not compare it when it reads: a flipped bit would become a
weight. Comparing takes 0.4 s for a GB that is in memory already, so it is done once for each file in a process.
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

#: What the entry under ``lit_gpt`` holds, and what a file does beside it, by kind.
ENTRY = {"module": str, "config": dict, "tokenizer": dict | None, "fingerprints": dict}
FILE = {"state_dict": dict, "global_step": int, "epoch": int, "pytorch-lightning_version": str}
#: What a run needs besides to go on.
RUN = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict}

#: Device, inode, size and time of change of the files that were found whole.
_WHOLE: set[tuple[int, int, int, int]] = set()

#: How torch's reader of plain values names what a pickle would have it import.
CODE = re.compile(r"GLOBAL:? (\S+)")


def check_whole(path: Path) -> None:
    """Compare the checksum of every record with its content, where the file has any.

    Raises:
        UserError: It cannot be opened, is cut short, changed, or no checkpoint.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"checkpoint {str(path)!r} cannot be read ({error.strerror}): mend that.") from error
    if not _matches(path):
        raise _refusal(path)


def _matches(path: Path) -> bool:
    found = path.stat()
    mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if mark not in _WHOLE and not is_damaged(path):
        _WHOLE.add(mark)
    return mark in _WHOLE


def is_damaged(path: Path) -> bool:
    """Whether a record differs from its checksum. Checksums of 0 throughout are how torch is told to write none."""
    try:
        with zipfile.ZipFile(path) as archive:
            checked = any(record.CRC for record in archive.infolist())
            return checked and archive.testzip() is not None
    except Exception:  # what zipfile says of a broken file: BadZipFile, OSError, struct.error, NotImplementedError, ...
        return True


def _refusal(path: Path) -> UserError:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" or zipfile.is_zipfile(path):
        return _damaged(path)
    if start.strip(b"\0") == b"":
        return UserError(f"checkpoint {str(path)!r} is empty: {_advice(path)}.")
    if code := _code_in(path):
        return _names_code(path, code)
    return UserError(f"file {str(path)!r} is no checkpoint: {_advice(path)}.")


def _damaged(path: Path) -> UserError:
    return UserError(f"checkpoint {str(path)!r} is cut short or damaged: {_advice(path)}.")


def _code_in(path: Path) -> str | None:
    """What a file that is no zip would have a reader import, if it is a pickle, or torch's old form of several."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, value, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    return str(value).replace(" ", ".")
                if operation.name == "STACK_GLOBAL":
                    return ".".join(texts[-2:])
                texts += [value] if isinstance(value, str) else []
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any kind
        code = CODE.search(str(error))
        return code and code[1]
    return None


def _advice(path: Path) -> str:
    other = newest_whole(path.parent, but=path)
    return f"use {other}" if other else "no whole one is beside it, so use a copy or start a new run"


def _names_code(path: Path, name: str) -> UserError:
    return UserError(
        f"file {str(path)!r} names code, {name}, which is never run, and was not written by lit_gpt: give a checkpoint "
        "that `fit` saved."
    )


def load(path: Path, mmap: bool = False) -> Any:
    """The plain values and tensors in a file that is whole; nothing else is read, and no code is run.

    Args:
        path: The file.
        mmap: Leave tensors on the disk until they are used.

    Raises:
        UserError: The file is damaged, names code, or does not hold what its index says.
    """
    check_whole(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch's for records that are missing or wrong have nothing else in common
        if code := CODE.search(str(error)):
            raise _names_code(path, code[1]) from error
        if "failed reading zip archive" in str(error):  # the index at its end, which has no checksum
            raise _damaged(path) from error
        if "allocate memory" in str(error):
            raise UserError(f"checkpoint {str(path)!r} does not fit into memory: use a machine with more.") from error
        raise UserError(
            f"file {str(path)!r} was not written by lit_gpt: give a checkpoint that `fit` saved."
        ) from error


def step_of(path: Path) -> int | None:
    """The optimizer steps of a checkpoint, None where there is none to read."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # of a damaged file, of any kind
        return None


def is_whole(path: Path) -> bool:
    """Whether a file is a checkpoint with the content that was written."""
    try:
        return _matches(path) and step_of(path) is not None
    except OSError:
        return False


def newest_whole(folder: Path, but: Path | None = None) -> Path | None:
    """The whole checkpoint of the most steps in a run's folder of checkpoints, None where there is none.

    Args:
        folder: Where the files are.
        but: One that is known to be damaged.
    """
    steps = {path: step_of(path) for path in sorted(folder.glob("*.ckpt")) if path != but}
    newest = sorted(steps, key=lambda path: steps[path] or 0, reverse=True)
    return next((path for path in newest if is_whole(path)), None)


def to_go_on_from(last: Path) -> Path | None:
    """The run's last checkpoint, or where that is damaged or gone the newest whole one beside it."""
    return last if is_whole(last) else newest_whole(last.parent, but=last)


def set_aside(path: Path) -> None:
    """Keep a damaged file, under a name that no reader takes for a checkpoint."""
    os.replace(path, path.with_name(f"{path.name}.damaged"))


def how_to_go_on(folder: str | None) -> str:
    """What to do after a run has failed: go on from its last checkpoint, where it has saved one."""
    saved = folder is not None and newest_whole(Path(folder) / "checkpoints")
    return f"go on from the last checkpoint with --ckpt_path {folder}" if saved else "start a new run"


def check_kinds(values: dict[str, Any], kinds: dict[str, Any], path: str | Path) -> None:
    """Raise a UserError that names the first value that is missing or of another kind than a file of ours has."""
    for name, kind in kinds.items():
        if name not in values or not isinstance(values[name], kind):
            what = f"{type(values[name]).__name__} as its {name}" if name in values else f"no {name}"
            raise UserError(
                f"checkpoint {str(path)!r} has {what}, which `fit` never writes: give a file that it saved."
            )


class WithoutInitialisation(TorchFunctionMode):
    """Leaves out the initial weights, for which the meta device would import the compiler, in seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every function but those that draw."""
        options = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_"):
            return args[0] if args else options["tensor"]
        return func(*args, **options)
