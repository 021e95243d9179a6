"""Runs of two processes as people start them: by torchrun, by --trainer.devices, by hand on each machine.

Slow: each process imports everything, which takes ten seconds of a CPU.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_gpt.callbacks.run_folder import new_run_folder
from lit_gpt.cli.lost_processes import LOST
from tests.conftest import TINY
from tests.forking import assert_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
RUN = Path("logs", "run", "version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
FLAGS = [
    *("fit", *TINY, "--model.config.dropout", "0.2", "--data.micro_batch_size", "2", "--data.cache_dir", "cache"),
    *("--trainer.logger", "false", "--checkpoint.every_n_steps", "2", "--resume", "auto", "--trainer.max_steps"),
]
MACHINES = ["--trainer.num_nodes", "2", "--trainer.strategy", "ddp"]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start(command: list[str], folder: Path, **variables: str) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True, exist_ok=True)
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **own, "TMPDIR": str(folder), **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def by_torchrun(flags: list[str], folder: Path) -> "list[subprocess.Popen[str]]":
    """One torchrun on each of two machines, whose folders are their disks."""
    port = free_port()
    place = ["torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1"]
    return [
        start([*place, "--master_port", port, "--node_rank", str(rank), "-m", "lit_gpt", *flags, *MACHINES], path)
        for rank, path in enumerate((folder / "a", folder / "b"))
    ]


def by_hand(flags: list[str], folder: Path) -> "list[subprocess.Popen[str]]":
    """NODE_RANK on each of two machines."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        start(["lit_gpt", *flags, *MACHINES], path, NODE_RANK=str(rank), **place)
        for rank, path in enumerate((folder / "a", folder / "b"))
    ]


def by_devices(flags: list[str], folder: Path) -> "list[subprocess.Popen[str]]":
    return [start(["lit_gpt", *flags, "--trainer.devices", "2", "--trainer.strategy", "ddp"], folder / "a")]


def finished(processes: "list[subprocess.Popen[str]]") -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each."""
    outputs = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def wait_for(true: Callable[[], bool], processes: "list[subprocess.Popen[str]]") -> None:
    while not true():
        assert all(process.poll() is None for process in processes), finished(processes)
        time.sleep(0.05)


def training(process: int) -> list[int]:
    """The processes that train below a process, or itself, by their ids."""
    children = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False).stdout.split()
    return [int(child) for child in children]


def test_two_torchruns_without_a_common_disk_resume_exactly(tmp_path: Path, text: Path) -> None:
    flags = [*FLAGS, "400", "--trainer.val_check_interval", "100", "--data.source", str(text)]
    for status, _, err in finished(by_torchrun(flags, tmp_path / "straight")):
        assert status == 0, err
    killed = tmp_path / "killed"
    processes = by_torchrun(flags, killed)
    wait_for((killed / "a" / LAST).is_file, processes)
    for process in processes:
        for child in training(process.pid):
            os.kill(child, signal.SIGKILL)
    assert [status for status, *_ in finished(processes)] == [1, 1]  # torchrun's own
    (status, out, err), (other, _, more) = finished(by_torchrun(flags, killed))
    assert (status, other) == (0, 0), err + more
    assert f"resuming {RUN}\n" in out
    resumed, straight = (torch.load(tmp_path / name / "a" / LAST, weights_only=True) for name in ("killed", "straight"))
    assert resumed["global_step"] == 400
    for part in ("state_dict", "optimizer_states", "loops", "lr_schedulers"):
        assert_equal(resumed[part], straight[part])
    assert not [path for path in (killed / "b").iterdir() if path.name.startswith(("logs", "lit_gpt"))]


@pytest.mark.parametrize("begin", [by_torchrun, by_devices, by_hand])
def test_a_killed_process_ends_the_run_in_a_sentence_and_one_process_goes_on(
    begin: Callable[..., "list[subprocess.Popen[str]]"], tmp_path: Path, text: Path
) -> None:
    flags = [*FLAGS, "100000", "--trainer.val_check_interval", "50000", "--data.source", str(text)]
    flags += ["--model.optimizer.schedule", "constant"]
    processes = begin(flags, tmp_path)
    wait_for((tmp_path / "a" / LAST).is_file, processes)
    last = processes[-1].pid
    os.kill(last if begin is by_hand else training(last)[0], signal.SIGKILL)
    killed = time.monotonic()
    (status, _, err), *_ = finished(processes)
    assert time.monotonic() - killed < 60
    assert status == (1 if begin is by_torchrun else 2)
    assert f"lit_gpt: {LOST}\n" in err
    step = torch.load(tmp_path / "a" / LAST, weights_only=True)["global_step"]
    flags[flags.index("100000")] = str(step + 10)
    flags[flags.index("50000")] = "5"
    ((status, out, err),) = finished([start(["lit_gpt", *flags], tmp_path / "a")])
    assert status == 0, err
    assert f"resuming {RUN}\n" in out
    assert json.loads((tmp_path / "a" / RUN / "summary.json").read_text())["steps"] == step + 10
    assert [path.name for path in (tmp_path / "a" / RUN.parent).iterdir()] == ["version_0"]


def test_machines_that_are_killed_before_they_meet_leave_nothing_but_a_folder_that_is_used_again(
    tmp_path: Path, text: Path
) -> None:
    flags = [*FLAGS, "4", "--data.source", str(text)]
    first, second = by_hand(flags, tmp_path)
    wait_for((tmp_path / "a" / RUN).is_dir, [first, second])
    second.kill()
    first.kill()
    finished([first, second])
    assert not (tmp_path / "b" / "logs").exists()
    assert new_run_folder(tmp_path / "a" / RUN.parent).folder == tmp_path / "a" / RUN
