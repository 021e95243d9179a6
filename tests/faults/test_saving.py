"""Checkpoints when the machine does its worst: a kill in the middle of a save, a full disk."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from datamodules.errors import UserError
from lit_gpt.callbacks.checkpoints import AtomicCheckpointIO

SAVE_FOREVER = """
import sys, torch
from datamodules.files import write_atomically
number = 0
while True:
    stored = {"number": number, "weights": torch.full((4_000_000,), float(number))}
    write_atomically(sys.argv[1], lambda file: torch.save(stored, file))
    number += 1
"""


def test_a_kill_while_saving_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for delay in (0.0, 0.013, 0.029):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(path)])
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stored = torch.load(path, weights_only=True)
        assert (stored["weights"] == stored["number"]).all()


@pytest.fixture
def little_room() -> object:
    """Files may not grow beyond 100 kB in this process; the signal that says so is ignored, so that writes fail."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("little_room")
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"number": 1}, path)
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written"):
        AtomicCheckpointIO().save_checkpoint({"number": 2, "weights": torch.zeros(1_000_000)}, path)
    assert torch.load(path, weights_only=True) == {"number": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
