"""Sends a file of process 0 to the processes that do not have it, as where machines have no common disk."""

import os
import socket
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, distributed

from datamodules.agreement import gathered, is_first_process
from datamodules.errors import DisagreementError

#: Bytes that are sent at a time. A collective operation fails after minutes, so it must never send a whole file.
PIECE = 1 << 26


class Sent(NamedTuple):
    """A file that was received from process 0."""

    path: Path
    is_own: bool
    """Whether this process wrote it, and so must remove it in the end (see `remove_sent`)."""


def sent_from_first(source: Path | None, is_missing: bool) -> Sent | None:
    """Send a file of process 0 to the processes that lack it. All processes must call this.

    One process of each machine receives it, into a temporary file, and the others of that machine read that file.

    Args:
        source: The file, in process 0. In others it is ignored.
        is_missing: Whether this process lacks the file.

    Returns:
        The temporary file, in a process that lacked the file.

    Raises:
        DisagreementError: A process cannot write its temporary file.
    """
    sent: Sent | None = None
    while receivers := _first_of_each_machine(is_missing and sent is None):
        path = _received(source, receivers)
        files = gathered(path and (str(path), path.stat().st_size))
        if path:
            sent = Sent(path, True)
        elif is_missing and sent is None and (other := _visible(files)):
            sent = Sent(other, False)
    return sent


def _first_of_each_machine(lacks: bool) -> list[int]:
    """The first process of each machine among those that lack the file. Machines of one name take several rounds."""
    hosts = gathered(socket.gethostname() if lacks else None)
    return sorted({host: rank for rank, host in reversed(list(enumerate(hosts))) if host is not None}.values())


def remove_sent(path: Path) -> None:
    """Remove a temporary file that this process wrote."""
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()


def _visible(files: Sequence[tuple[str, int] | None]) -> Path | None:
    """The file of another process, if this one sees it too. Its random name is on no other disk."""
    paths = (
        Path(file[0]) for file in files if file and os.path.exists(file[0]) and os.path.getsize(file[0]) == file[1]
    )
    return next(paths, None)


def _received(source: Path | None, receivers: list[int]) -> Path | None:
    """The file that was received, in a process that is among ``receivers``."""
    group = distributed.new_group([0, *receivers], backend="gloo")  # in all processes, as torch wants it
    error, path = None, None
    if is_first_process():
        assert source is not None
        with source.open("rb") as file:
            _send(file, group)
    elif distributed.get_rank() in receivers:
        path, error = _receive(group)
    for rank, (problem, host) in enumerate(gathered((error, socket.gethostname()))):
        if problem:
            if path:
                remove_sent(path)
            raise DisagreementError(
                f"process {rank} on {host} cannot write the checkpoint that process 0 sends to it ({problem}): set the "
                "environment variable TMPDIR to a folder with room there.",
                is_first_process(),
            )
    return path


def _send(file: IO[bytes], group: distributed.ProcessGroup | None) -> None:
    size = os.fstat(file.fileno()).st_size
    _broadcast(torch.tensor([size]), group)
    checksum = 0
    for start in range(0, size, PIECE):
        piece = bytearray(file.read(min(PIECE, size - start)))
        checksum = zlib.crc32(piece, checksum)
        _broadcast(torch.frombuffer(piece, dtype=torch.uint8), group)
    _broadcast(torch.tensor([checksum]), group)


def _receive(group: distributed.ProcessGroup | None) -> tuple[Path | None, str | None]:
    """The file, and what went wrong. All pieces are received in any case, because process 0 sends them."""
    error, path, file = None, None, None
    try:
        path = Path(tempfile.mkdtemp(prefix="lit_gpt_")) / "sent.ckpt"
        file = path.open("wb")
    except OSError as failure:
        error = failure.strerror
    size, checksum = int(_broadcast(torch.zeros(1, dtype=torch.int64), group)), 0
    for start in range(0, size, PIECE):
        tensor = _broadcast(torch.empty(min(PIECE, size - start), dtype=torch.uint8), group)
        piece: Any = tensor.numpy()  # has the same memory, as bytes
        checksum = zlib.crc32(piece, checksum)
        error = error or _written(file, piece)
    error = error or _written(file, None)
    if checksum != int(_broadcast(torch.zeros(1, dtype=torch.int64), group)):
        error = error or "its checksum is wrong"
    return path, error


def _written(file: IO[bytes] | None, piece: Any) -> str | None:
    """Write a piece, or close the file after the last one. Returns what went wrong."""
    assert file is not None, "an error came before"
    try:
        if piece is None:
            file.close()
        else:
            file.write(piece)
    except OSError as failure:
        return failure.strerror
    return None


def _broadcast(tensor: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    distributed.broadcast(tensor, 0, group)
    return tensor
