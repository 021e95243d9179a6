"""Process 0 sends a file to machines that do not have it."""

import socket
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch.distributed as dist

from datamodules.errors import UserError
from lit_gpt import sending
from lit_gpt.sending import Sent, remove_sent, sent_from_first

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
CONTENT = bytes(range(256)) * 11 + b"the end"


def in_processes(work: Callable[[int, Path], str], folder: Path) -> list[str]:
    """What each of four processes returns. Process 1 is on a machine of its own, 2 and 3 are on another."""

    def run(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
        socket.gethostname = lambda: "abcc"[rank]
        own = folder / "abcc"[rank]
        own.mkdir(exist_ok=True)
        tempfile.tempdir = str(own)
        sending.PIECE = 1000
        try:
            (folder / f"said{rank}").write_text(work(rank, folder))
        except Exception:
            (folder / f"said{rank}").write_text(traceback.format_exc())

    jobs = [get_context("fork").Process(target=run, args=(rank,)) for rank in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    return [(folder / f"said{rank}").read_text() for rank in range(4)]


def received(rank: int, folder: Path) -> str:
    """Whether a process got the file, and whether it wrote it itself; twice, the second time on unequal disks."""
    source = folder / "source"
    said = []
    for sees_others in (True, False):
        if not sees_others:
            sending._visible = lambda files: None  # type: ignore[assignment]
        sent = sent_from_first(source if rank == 0 else None, rank > 0)
        said.append(f"{sent.is_own} {sent.path.read_bytes() == CONTENT}" if sent else "nothing")
        dist.barrier()
        if sent and sent.is_own:
            remove_sent(sent.path)
    dist.barrier()
    return f"{said} {sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.iterdir()))}"


def test_one_process_of_each_machine_receives_the_file_and_removes_it(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    first, alone, together, other = in_processes(received, tmp_path)
    assert first == "['nothing', 'nothing'] []"
    assert alone == "['True True', 'True True'] []"
    assert together == "['True True', 'True True'] []"
    assert other == "['False True', 'True True'] []"  # the file of process 2; then one of its own


def refused(rank: int, folder: Path) -> str:
    if rank == 2:
        tempfile.tempdir = str(folder / "gone")
    try:
        sent: Sent | None = sent_from_first(folder / "source" if rank == 0 else None, rank in (1, 2))
    except UserError as error:
        return str(error)
    return str(sent)


def test_a_process_that_cannot_write_the_file_is_named_in_all(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    assert set(in_processes(refused, tmp_path)) == {
        "process 2 on c cannot write the checkpoint that process 0 sends to it (No such file or directory): set the "
        "environment variable TMPDIR to a folder with room there."
    }
    assert not list((tmp_path / "b").iterdir())
