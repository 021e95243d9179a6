"""Ranks, workers and parents that are killed, and signals: everything ends within seconds, in one sentence of ours."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.faults.harness import RIGHT, Done, Trial, WrongError, finish, is_sentence, start, typed
from benchmarks.faults.kills import Base, compared, make_base
from benchmarks.faults.tiny import Setup, differences, newest

#: Seconds within which the others end.
SOON = 10.0
LONG: tuple[str, ...] = (
    "--trainer.max_steps=100000",
    "--checkpoint.every_n_steps=5",
    "--trainer.val_check_interval=100000",
)
#: What a step at which a run is stopped depends on is not how long it was to be.
LONG += ("--model.optimizer.schedule=constant", "--data.micro_batch_size=4")


def trials(root: Path, quick: bool, rng: random.Random) -> Iterator[Trial]:
    """Few of each: several of them start Python anew."""
    (root / "processes").mkdir(parents=True)
    base = make_base(Setup(), root / "processes")
    times = 1 if quick else 5
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for doubled in (False, True):
            for when in ("before the first step", "in a step"):
                for _ in range(times):
                    act = partial(_signalled, base, number, doubled, when, rng.random())
                    name = f"{number.name}{', twice' if doubled else ''}, {when}"
                    yield Trial("processes: signals", name, act)
    for _ in range(2 * times):
        yield Trial("processes: a killed worker", "num_workers 1", partial(_killed_worker, base, rng.uniform(0, 1)))
    for rank in (0, 1):
        for _ in range(1 if quick else 5):
            act = partial(_killed_rank, base, rank, rng.uniform(0, 1))
            yield Trial("processes: a killed rank", f"rank {rank}, in a step", act)
    for victim in ("parent", "child"):
        for when in ("in a step",) if quick else ("in a step", "at the start"):
            for _ in range(1 if quick else 3):
                act = partial(_launched, base, victim, when, rng.uniform(0, 1))
                yield Trial("processes: ddp's own processes", f"{victim}, {when}", act, 180)


def _until(true: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise WrongError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


def _saved() -> bool:
    """Whether there is a checkpoint. Of two machines that start together, either may be the first to make a folder."""
    return any(Path("logs/run").glob("version_*/checkpoints/last.ckpt"))


def _plain(base: Base, *more: str) -> list[str]:
    return [*base.arguments, *LONG, *more]


# ---- signals


def _signalled(base: Base, number: signal.Signals, doubled: bool, when: str, moment: float) -> str:
    child = start(_plain(base))
    if when == "in a step":
        _until(_saved, 60, "a first checkpoint")
        time.sleep(moment / 4)
    else:
        time.sleep(moment * base.seconds / 3)
    for _ in range(2 if doubled else 1):
        os.kill(child, number)
    began = time.monotonic()
    done = finish(child)
    if time.monotonic() - began > SOON:
        raise WrongError(f"ends {time.monotonic() - began:.0f} s after {number.name}")
    return _left_well(base, done, number, saved="in a step" in when)


def _left_well(base: Base, done: Done, number: signal.Signals, saved: bool) -> str:
    """Status 128 + number, or the signal's own before Python listens; what was saved goes on to the straight end.

    Raises:
        WrongError: not so.
    """
    if done.status not in (128 + number, -number) or "Traceback" in done.err:
        raise WrongError(f"status {done.status}: {done.err[-300:]}")
    if saved:
        from lit_gpt.integrity import is_intact, step_of

        last = newest(Path()) / "checkpoints" / "last.ckpt"
        if not is_intact(last):
            raise WrongError("last.ckpt is not whole")
        return _same_course(base, step_of(last) or 0)
    again = typed(base.arguments)
    if again.status:
        raise WrongError(f"then the run ends with {again.status}: {again.err[-300:]}")
    return compared(base.folder)


def _same_course(base: Base, step: int) -> str:
    """Where a run that was stopped at ``step`` goes on for 3 steps, it is where a straight run of as many is."""
    options = [a for a in (*base.arguments, *LONG) if "max_steps" not in a]
    more = [*options, f"--trainer.max_steps={step + 3}"]
    for arguments in (more, [a for a in (*more, "--name=straight") if a != "--resume=auto"]):
        done = typed(arguments)
        if done.status:
            raise WrongError(f"then the run ends with {done.status}: {done.err[-300:]}")
    found = differences(Path("logs/straight/version_0"), Path("logs/run/version_0"))
    if found := [name for name in found if "best" not in name and "checkpoints" not in name]:
        raise WrongError(f"differs from the straight run: {', '.join(found)}")
    return RIGHT


# ---- killed workers and ranks


def _children(of: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{of}/task/{of}/children").read_text().split()]
    except OSError:
        return []


def _without_workers(child: int) -> bool:
    """Kill the workers of a run; whether it has ended. One that had handed over an epoch's last batch is not missed."""
    for worker in _children(child):
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    return not _lives(child)


def _killed_worker(base: Base, moment: float) -> str:
    child = start(_plain(base, "--data.num_workers=1"))
    _until(_saved, 60, "a first checkpoint")
    time.sleep(moment)
    began = time.monotonic()
    _until(lambda: _without_workers(child), SOON, "the end")
    done = finish(child)
    if time.monotonic() - began > SOON:
        raise WrongError(f"ends only after {time.monotonic() - began:.0f} s")
    if not is_sentence(done):
        raise WrongError(f"no sentence: status {done.status}, {done.err[-300:]}")
    return RIGHT


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _killed_rank(base: Base, victim: int, moment: float) -> str:
    """Two processes of one run, started one by one as on two machines.

    Whoever waits for a process that was killed before all have met cannot know that: torch's time-out ends that.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    more = ("--trainer.num_nodes=2", "--trainer.strategy=ddp")
    children = []
    for rank in (0, 1):
        own = {**place, "NODE_RANK": str(rank), "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"}
        children.append(start(_plain(base, *more), partial(os.environ.update, own), f"rank{rank}"))
    _until(_saved, 60, "a first checkpoint")
    time.sleep(moment)
    os.kill(children[victim], signal.SIGKILL)
    began = time.monotonic()
    other = finish(children[1 - victim], f"rank{1 - victim}", 90)
    took = time.monotonic() - began
    finish(children[victim], f"rank{victim}")
    if took > SOON:
        raise WrongError(f"the other ends only after {took:.0f} s: {other.err[-300:]}")
    if not is_sentence(other):
        raise WrongError(f"no sentence: status {other.status}, {other.err[-300:]}")
    return RIGHT


def _ranks(parent: int) -> list[int]:
    """The processes of the run that the first one has started."""
    return [one for one in _children(parent) if b"lit_gpt" in Path(f"/proc/{one}/cmdline").read_bytes()]


def _launched(base: Base, victim: str, when: str, moment: float) -> str:
    """Lightning starts the second process itself: neither outlives the other."""
    command = [sys.executable, "-W", "ignore", "-m", "lit_gpt", *_plain(base)]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), *sys.path])}
    with Path("../launched.err").open("w") as err:
        parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=environment)
    if when == "in a step":
        _until(lambda: _saved() or parent.poll() is not None, 120, "a first checkpoint")
    else:
        _until(lambda: _ranks(parent.pid) or parent.poll() is not None, 120, "a second process")
        time.sleep(8 * moment)  # it imports, meets the first, prepares, trains
    ranks = _ranks(parent.pid)
    if not ranks:
        raise WrongError(f"no second process: {Path('../launched.err').read_text()[-300:]}")
    os.kill(parent.pid if victim == "parent" else ranks[0], signal.SIGKILL)
    _until(lambda: parent.poll() is not None and not any(map(_lives, ranks)), SOON, "the end of the others")
    if "Traceback" in (err_text := Path("../launched.err").read_text()):
        raise WrongError(f"a traceback: {err_text[-300:]}")
    if victim == "child" and parent.returncode != 2:
        raise WrongError(f"status {parent.returncode}: {err_text[-300:]}")
    return RIGHT


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
