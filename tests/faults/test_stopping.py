"""Runs that are stopped from outside: by signals, a closed terminal, the death of a process they need."""

import json
import os
import pty
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from lit_gpt import LitGPT, checkpoint
from lit_gpt.__main__ import main
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from tests.conftest import TINY

Fit = Callable[..., Path]
LAST = Path("logs", "run", "version_0", "checkpoints", "last.ckpt")


def at_call(number: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the n-th training step, and in each after it."""
    learn, calls = LitGPT.training_step, []

    def step(*given: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) >= number:
            act()
        return learn(*given)

    monkeypatch.setattr(LitGPT, "training_step", step)


@pytest.fixture
def typed(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``python -m lit_gpt fit`` in this process and returns its exit status."""
    monkeypatch.chdir(tmp_path)

    def call(*flags: str) -> int:
        monkeypatch.setattr(sys, "argv", ["lit_gpt", "fit", *TINY, "--data.source", str(text), *flags])
        try:
            main()
        except SystemExit as left:
            return int(left.code or 0)
        return 0

    return call


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_saves_the_step_without_a_validation(
    number: signal.Signals, typed: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[None] = []
    before = signal.getsignal(number)
    at_call(5, lambda: sent or (sent.append(None), os.kill(os.getpid(), number)), monkeypatch)
    assert typed() == 128 + number
    told = json.loads((LAST.parents[1] / "summary.json").read_text())
    assert checkpoint.read(LAST)["global_step"] == told["steps"] == 5
    assert (told["final"]["step"], told["finished"]) == (3, False)
    assert signal.getsignal(number) == before


def test_slurm_s_signal_saves_the_step_and_ends_the_run(
    typed: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own handler saves ``hpc_ckpt_1.ckpt`` inside the step, asks for a new job and trains on."""
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")
    at_call(5, lambda: os.kill(os.getpid(), signal.SIGUSR1), monkeypatch)
    assert typed() == 128 + signal.SIGUSR1
    assert checkpoint.read(LAST)["global_step"] == 5
    assert not list(Path().rglob("hpc_ckpt*"))


def test_a_run_that_fails_gives_ctrl_c_back_even_where_its_loggers_fail_too(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(MetricsCSV, "finalize", lambda *_: 1 // 0)  # Lightning gives no signal back after that
    at_call(2, lambda: 1 // 0, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        fit()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_signal_stops_at_once_with_its_status(
    typed: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_call(2, twice, monkeypatch)
    assert typed() == 130
    assert not LAST.exists()


def test_nohup_is_obeyed(typed: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_call(2, lambda: os.kill(os.getpid(), signal.SIGHUP), monkeypatch)
    assert typed() == 0
    signal.signal(signal.SIGHUP, before)
    assert checkpoint.read(LAST)["global_step"] == 6


def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it took too long")


def ended(process: int) -> int:
    """The exit status of a child."""
    found = [(0, 0)]
    until(lambda: bool(found.append(os.waitpid(process, os.WNOHANG)) or found[-1][0]))
    return os.waitstatus_to_exitcode(found[-1][1])


def test_a_closed_terminal_saves(typed: Callable[..., int]) -> None:
    process, terminal = pty.fork()
    if not process:
        for file, stream in ((1, "stdout"), (2, "stderr")):
            setattr(sys, stream, os.fdopen(file, "w", closefd=False))
        os._exit(typed("--trainer.max_steps", "100000", "--checkpoint.every_n_steps", "5", "--trainer.logger", "false"))
    seen = b""
    while b"step 3 " not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    assert ended(process) == 128 + signal.SIGHUP
    assert checkpoint.read(LAST)["global_step"] >= 3


def test_a_killed_worker_of_the_loader_is_one_sentence(
    typed: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def kill() -> None:
        for worker in multiprocessing.active_children():
            os.kill(int(worker.pid or 0), signal.SIGKILL)
        time.sleep(0.5)  # torch's handler raises here

    at_call(3, kill, monkeypatch)
    assert typed("--data.num_workers", "1", "--trainer.max_steps", "500") == 2
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith("lit_gpt: worker process ")
    assert "try a smaller --data.num_workers" in line
    assert checkpoint.read(LAST)["global_step"] >= 2


# ---- several processes


def forked(work: Callable[[int], int], folder: Path) -> list[tuple[int, str]]:
    """Two processes of one run; the exit status and the last lines of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        if not (child := os.fork()):
            os.environ.update(place, NODE_RANK=str(rank), LOCAL_RANK="0", GLOO_SOCKET_IFNAME="lo")
            own = folder / f"rank{rank}"
            own.mkdir(exist_ok=True)
            os.chdir(own)
            output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1), os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(file, "w", buffering=1, closefd=False) for file in (1, 2))
            try:
                os._exit(work(rank))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)
        children.append(child)
    return [(ended(child), (folder / f"rank{rank}" / "output").read_text()) for rank, child in enumerate(children)]


TWO = ("--trainer.num_nodes", "2", "--trainer.strategy", "ddp", "--trainer.logger", "false")


def test_machines_that_go_on_from_different_files_are_refused(typed: Callable[..., int], tmp_path: Path) -> None:
    assert typed("--trainer.logger", "false", "--trainer.max_steps", "3") == 0
    os.rename("logs", "away")
    (tmp_path / "rank0").mkdir()
    os.rename("away", "rank0/logs")
    told = json.loads((tmp_path / "rank0" / LAST.parents[1] / "summary.json").read_text())
    (tmp_path / "rank0" / LAST.parents[1] / "summary.json").write_text(json.dumps(told | {"finished": False}))
    before = (tmp_path / "rank0" / LAST.parents[1] / "metrics.csv").read_bytes()
    for status, output in forked(lambda _: typed(*TWO, "--resume", "auto"), tmp_path):
        assert status == 2, output
        line = output.splitlines()[-1]
        assert line.startswith("lit_gpt: the processes do not resume from the same checkpoint (process 0: step 3 of ")
        assert "process 1: a new run): put one file" in line
    assert (tmp_path / "rank0" / LAST.parents[1] / "metrics.csv").read_bytes() == before


def test_a_killed_process_of_the_run_is_one_sentence(
    typed: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(rank: int) -> int:
        if rank == 1:
            at_call(3, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
        return typed(*TWO, "--trainer.max_steps", "500")

    (status, output), (killed, _) = forked(run, tmp_path)
    assert killed == -signal.SIGKILL
    assert status == 2, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("lit_gpt: another process of the run failed or was killed: ")
