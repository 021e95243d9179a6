"""Trials side by side, each in a process that is forked from one which has imported everything.

A fork takes some hundredths of a second, a fresh start of Python with torch and Lightning several seconds. A trial has
a folder of its own as its current one, and whatever it started is killed when it ends.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

#: Outcomes that are as they should be.
RIGHT, REFUSED, REBUILT, OLDER = "right", "refused", "rebuilt", "older"


class Finding(NamedTuple):
    """What one trial has found: one of the outcomes above, or any other text, which is a failure."""

    kind: str
    name: str
    outcome: str
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the outcome is as it should be."""
        return self.outcome in (RIGHT, REFUSED, REBUILT, OLDER)


class WrongError(Exception):
    """A trial has failed; says how."""


@dataclass(frozen=True)
class Trial:
    """What one process does.

    Args:
        kind: its row in the table.
        name: what is done, so that one can do it again.
        act: returns the outcome, or one finding for each of several cheap trials.
        seconds: the most it may take.
    """

    kind: str
    name: str
    act: Callable[[], "str | list[Finding]"]
    seconds: float = 120.0


class Done(NamedTuple):
    """A command line that has ended: its exit status (negative: the signal that ended it) and what it printed."""

    status: int
    out: str
    err: str


class Clock:
    """Seconds since it was made, without those in which all processes were stopped, or the machine slept."""

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, time.monotonic()

    def seconds(self) -> float:
        """So far; it must be asked often."""
        now = time.monotonic()
        self._seconds, self._last = self._seconds + min(now - self._last, 1.0), now
        return self._seconds


def run_all(trials: list[Trial], root: Path, processes: int, say: Callable[[Finding], None]) -> list[Finding]:
    """Run trials, so many at a time; folders of those that failed stay below ``root``."""
    waiting, findings = list(enumerate(trials)), []
    running: dict[int, tuple[Trial, Path, Clock]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            number, trial = waiting.pop(0)
            running[_start(trial, root / str(number))] = (trial, root / str(number), Clock())
        for child, (trial, folder, clock) in list(running.items()):
            ended = os.waitpid(child, os.WNOHANG)[0]
            late = not ended and clock.seconds() > trial.seconds
            if ended or late:
                del running[child]
                found = _collected(child, trial, folder, late)
                findings += found
                for finding in found:
                    say(finding)
        time.sleep(0.01)
    return findings


def _start(trial: Trial, folder: Path) -> int:
    (folder / "work").mkdir(parents=True)
    if child := os.fork():
        return child
    os.setsid()
    os.chdir(folder / "work")
    redirect(folder / "out", folder / "err")
    leave(lambda: _act(trial, folder))


def _act(trial: Trial, folder: Path) -> int:
    try:
        found = trial.act()
    except WrongError as wrong:
        found = str(wrong)
    findings = [Finding(trial.kind, trial.name, found)] if isinstance(found, str) else found
    (folder / "result").write_text(json.dumps(findings))
    return 0


def _collected(child: int, trial: Trial, folder: Path, late: bool) -> list[Finding]:
    """The findings of a trial that has ended; nothing that it started goes on."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if late:
        os.waitpid(child, 0)
        return [Finding(trial.kind, trial.name, f"hangs: more than {trial.seconds:.0f} s", str(folder))]
    if not (folder / "result").is_file():
        return [Finding(trial.kind, trial.name, "the trial itself failed", str(folder))]
    findings = [Finding(*one) for one in json.loads((folder / "result").read_text())]
    if all(one.passed for one in findings):
        shutil.rmtree(folder, ignore_errors=True)
        return findings
    return [one if one.passed else one._replace(detail=f"{one.detail} {folder}") for one in findings]


# ---- processes


def redirect(out: Path, err: Path) -> None:
    """Let this process print into files."""
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def leave(work: Callable[[], Any]) -> NoReturn:
    """End this process with the status of ``work``, as the interpreter would."""
    status = 1
    try:
        status = int(work() or 0)
    except SystemExit as left:
        status = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def start(arguments: list[str], first: Callable[[], object] = lambda: None, name: str = "done") -> int:
    """``python -m lit_gpt ARGUMENTS`` in a fork of this process, after ``first``; its number."""
    from lit_gpt.__main__ import _guarded

    if child := os.fork():
        return child
    redirect(Path(f"../{name}.out"), Path(f"../{name}.err"))

    def work() -> None:
        first()
        _guarded(arguments)

    leave(work)


def finish(child: int, name: str = "done", seconds: float = 60.0) -> Done:
    """Wait for a process of `start`.

    Raises:
        WrongError: it does not end.
    """
    clock = Clock()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if clock.seconds() > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise WrongError(f"hangs: more than {seconds:.0f} s")
        time.sleep(0.005)
    files = [Path(f"../{name}.{stream}") for stream in ("out", "err")]  # there are none yet if it was killed at once
    texts = (file.read_text(errors="replace") if file.exists() else "" for file in files)
    return Done(os.waitstatus_to_exitcode(ended[1]), *texts)


def typed(arguments: list[str], first: Callable[[], object] = lambda: None, seconds: float = 60.0) -> Done:
    """What comes of a command line."""
    return finish(start(arguments, first), seconds=seconds)


def is_sentence(done: Done) -> bool:
    """Whether a command line ended with status 2 and one line of ours at the end of what it wrote to stderr."""
    last = done.err.splitlines()[-1:] or [""]
    return done.status == 2 and last[0].startswith("lit_gpt: ") and "Traceback" not in done.err + done.out


def refused(done: Done, *parts: str) -> str:
    """The outcome of a command line that must be refused in a sentence with these parts.

    Raises:
        WrongError: it was not.
    """
    last = "\n".join(done.err.splitlines()[-3:])
    if not is_sentence(done):
        raise WrongError(f"no sentence: status {done.status}, {last[-300:]}")
    missing = [part for part in parts if part not in last]
    if missing:
        raise WrongError(f"the sentence lacks {missing[0]!r}: {last[-300:]}")
    return REFUSED
