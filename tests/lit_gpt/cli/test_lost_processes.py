"""The processes of one run end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from lit_gpt.cli import lost_processes

CHILD = """
import time
from lit_gpt.cli import lost_processes
lost_processes.GRACE = 0.2
lost_processes.watch_parent()
print("ready", flush=True)
time.sleep({seconds})
"""
PARENT = """
import subprocess, sys, time
from lit_gpt.cli import lost_processes
lost_processes.watch_parent()
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""


def started_and_orphaned(seconds: int, err: Path, parent: str = PARENT) -> None:
    """Start a process that starts another, and kill the first when the second is ready."""
    with err.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", parent, CHILD.format(seconds=seconds)], stdout=subprocess.PIPE, stderr=file
        )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.communicate(timeout=30)  # the other has closed stdout too, by its end


def test_a_process_ends_after_the_one_that_started_it(tmp_path: Path) -> None:
    began = time.monotonic()
    started_and_orphaned(60, tmp_path / "err")
    assert time.monotonic() - began < 30
    assert (tmp_path / "err").read_text() == f"lit_gpt: {lost_processes.LOST}\n"


def test_a_run_that_another_program_started_goes_on_without_it(tmp_path: Path) -> None:
    started_and_orphaned(2, tmp_path / "err", PARENT.replace("lost_processes.watch_parent()", ""))
    assert (tmp_path / "err").read_text() == ""


def test_a_failed_process_ends_the_others_with_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ChildProcessObserver, "_terminate_all", _ChildProcessObserver._terminate_all)
    ended = []
    monkeypatch.setattr(lost_processes, "end", lambda: ended.append(os.getpid()))
    lost_processes.watch_children()
    failed, waiting = subprocess.Popen(["false"]), subprocess.Popen(["sleep", "60"])
    failed.wait()
    assert _ChildProcessObserver(os.getpid(), [failed, waiting])._run()
    assert waiting.wait(10) == -signal.SIGKILL
    assert ended == [os.getpid()]
