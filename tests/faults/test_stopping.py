"""Runs that are stopped from outside: by signals, a closed terminal, the death of a process they need."""

import json
import os
import pty
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from lit_gpt import LitGPT, checkpoint
from lit_gpt.__main__ import main
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from tests.conftest import TINY
from tests.forking import ended, forked

Fit = Callable[..., Path]
LAST = Path("logs", "run", "version_0", "checkpoints", "last.ckpt")


@pytest.fixture(autouse=True)
def _hang_up_ends_a_run() -> Iterator[None]:
    """As in a terminal. Under ``nohup`` SIGHUP is ignored, by these tests too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


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


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of SLURM's, with a program `scontrol` that writes down what it is asked. Returns that file."""
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")
    asked, program = tmp_path / "asked", tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $* >> {asked}\n[ $2 = 7 ] || {{ echo Invalid job id >&2; exit 1; }}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return asked


def test_slurm_s_signal_saves_the_step_and_requeues_the_job_which_goes_on_exactly(
    typed: Callable[..., int], slurm: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lightning's own handler saves ``hpc_ckpt_1.ckpt`` inside the step, asks for a new job and trains on."""
    flags = ["--model.config.dropout", "0.2", "--data.micro_batch_size", "4", "--resume", "auto"]
    assert typed("--name", "straight", *flags) == 0
    with pytest.MonkeyPatch.context() as patch:
        at_call(6, lambda: os.kill(os.getpid(), signal.SIGUSR1), patch)  # in the second micro-batch of step 3
        assert typed(*flags) == 128 + signal.SIGUSR1
    assert checkpoint.read(LAST)["global_step"] == 3
    assert slurm.read_text() == "requeue 7\n"
    assert "job 7 is back in the queue\n" in capfd.readouterr().out
    assert typed(*flags) == 0
    assert not list(Path().rglob("hpc_ckpt*"))
    resumed, straight = (checkpoint.read(str(LAST).replace("run", name)) for name in ("run", "straight"))
    assert resumed["global_step"] == 6
    for name, weight in straight["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name


def test_a_job_that_cannot_be_requeued_is_saved_and_another_signal_requeues_nothing(
    typed: Callable[..., int], slurm: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_call(2, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        assert typed() == 128 + signal.SIGTERM
    assert not slurm.exists()
    for name, value in {"ARRAY_JOB_ID": "8", "ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    at_call(1, lambda: os.kill(os.getpid(), signal.SIGUSR1), monkeypatch)
    assert typed("--resume", "auto") == 128 + signal.SIGUSR1
    assert slurm.read_text() == "requeue 8_3\n"
    assert "scontrol cannot requeue job 8_3 (Invalid job id): submit it again, and it goes on" in capfd.readouterr().out


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


def test_a_closed_terminal_saves(typed: Callable[..., int]) -> None:
    process, terminal = pty.fork()
    if not process:
        try:
            for file, stream in ((1, "stdout"), (2, "stderr")):
                setattr(sys, stream, os.fdopen(file, "w", closefd=False))
            flags = ["--trainer.max_steps", "100000", "--checkpoint.every_n_steps", "5", "--trainer.logger", "false"]
            os._exit(typed(*flags))
        finally:
            os._exit(70)  # a child that went on would report the tests after this one a second time
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


TWO = ("--trainer.num_nodes", "2", "--trainer.strategy", "ddp", "--trainer.logger", "false")


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
