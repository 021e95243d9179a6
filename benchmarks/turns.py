"""Training loops that are timed in turns: each in a process of its own, all alive at once, one computing at a time.

A process of its own, because what a step costs depends on the allocator, whose settings belong to the whole process.
`fit` of GPT-2 124M has 340,000 page faults a step with glibc's own settings, and 6,000 with those of the command line,
which peers do not have: each trains as its users would start it. All alive at once, because then each is started and
warmed up once, and a round takes seconds: what the machine does meanwhile falls on all alike. Page faults and CPU
seconds of a step are counted too, which depend less on what else the machine does. (Page faults:
how often the system had to hand out a page of memory.)
"""

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.timing import synchronize

#: Steps before anything is timed.
WARMUP = 3
#: The environment variable with the number of a contestant's end of the pipe.
PIPE = "BENCHMARK_TURNS"


@dataclass(frozen=True)
class Turn:
    """What a turn took, for one step of it."""

    seconds: float
    cpu_seconds: float
    page_faults: float
    peak_mb: float


class Turns:
    """The side of the process that trains: `step_done` returns at once, or at the end of a turn with the next one."""

    def __init__(self) -> None:
        self.pipe = Connection(int(os.environ[PIPE]))
        self._wait()

    def _wait(self) -> None:
        self.steps = 0
        asked: tuple[int, float] = self.pipe.recv()
        self.least_steps, self.least_seconds = asked
        self.start, self.used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)

    def step_done(self) -> None:
        """To be called after each optimizer step. A GPU is waited for at the end of a turn alone."""
        self.steps += 1
        if self.steps < self.least_steps or time.perf_counter() - self.start < self.least_seconds:
            return
        synchronize()
        seconds, used = time.perf_counter() - self.start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime - self.used.ru_utime - self.used.ru_stime
        faults = used.ru_minflt - self.used.ru_minflt
        self.pipe.send((seconds / self.steps, cpu / self.steps, faults / self.steps, used.ru_maxrss / 1024))
        self._wait()


class TakesTurns(Callback):
    """`Turns` in a run of `fit`, which imports this callback by its name."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first turn."""
        self.turns, self.last = Turns(), 0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Count optimizer steps, not micro-batches."""
        if trainer.global_step > self.last:
            self.last = trainer.global_step
            self.turns.step_done()


def fit_command(flags: list[str], folder: str) -> list[str]:
    """`fit` with everything that is on by default but validations, in turns, without an end."""
    more = ["--trainer.max_steps=1000000", "--trainer.limit_val_batches=0", f"--logs_dir={folder}"]
    callback = "--trainer.callbacks+=benchmarks.turns.TakesTurns"
    return [sys.executable, "-m", "lit_gpt", "fit", *flags, *more, callback]


class Contestant:
    """The other side: a process that was started to train in turns."""

    def __init__(self, command: list[str], threads: int) -> None:
        self.pipe, child = Pipe()
        environment = {**os.environ, PIPE: str(child.fileno()), "OMP_NUM_THREADS": str(threads)}
        # What it prints would mix with the figures.
        self.process = subprocess.Popen(command, env=environment, stdout=sys.stderr, pass_fds=[child.fileno()])
        child.close()

    def begin(self, steps: int, seconds: float) -> None:
        """Start a turn of at least so many steps and seconds."""
        self.pipe.send((steps, seconds))

    def end(self) -> Turn:
        """Wait for its end.

        Raises:
            EOFError: The process has ended instead.
        """
        return Turn(*self.pipe.recv())

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@contextmanager
def started(commands: dict[str, list[str]], threads: int) -> Iterator[dict[str, Contestant]]:
    """Those processes that could be started and warmed up."""
    with ExitStack() as stack:
        contestants = {name: Contestant(command, threads) for name, command in commands.items()}
        for contestant in contestants.values():
            stack.callback(contestant.stop)
            contestant.begin(WARMUP, 0)
        yield {name: contestant for name, contestant in contestants.items() if turn_of(name, contestant)}


def turn_of(name: str, contestant: Contestant) -> Turn | None:
    """The turn that has begun. None: the process has failed, which is told, because the others are still wanted."""
    try:
        return contestant.end()
    except (EOFError, OSError):
        print(f"{name} failed: its error is above", file=sys.stderr, flush=True)
        return None


def race(
    commands: dict[str, list[str]], rounds: int, steps: int, seconds: float, threads: int, together: bool = True
) -> Iterator[dict[str, list[Turn]]]:
    """One turn of each in each round, in an order that is drawn anew. Yields all turns so far after each of them.

    Args:
        commands: What each contestant is started by.
        rounds: The number of rounds.
        steps: The fewest steps of a turn.
        seconds: The least time of a turn.
        threads: Of each process.
        together: False starts the next process when one has had all its turns. So it must be on a GPU, whose memory
            does not hold all, and whose allocator a process has for itself.
    """
    turns: dict[str, list[Turn]] = {}
    for group in [commands] if together else [{name: command} for name, command in commands.items()]:
        with started(group, threads) as contestants:
            for _ in range(rounds):
                for name in random.sample(list(contestants), len(contestants)):
                    contestants[name].begin(steps, seconds)
                    if turn := turn_of(name, contestants[name]):
                        turns.setdefault(name, []).append(turn)
                        print(name, turn, file=sys.stderr, flush=True)
                        yield turns
                    else:
                        del contestants[name]


@dataclass(frozen=True)
class Spread:
    """A figure of all rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float], digits: int = 3) -> "Spread":
        """Median and range."""
        return cls(*(round(f(values), digits) for f in (statistics.median, min, max)))


def rates(turns: list[Turn], tokens: int) -> Spread:
    """Tokens per second, with ``tokens`` in a step."""
    return Spread.of([tokens / turn.seconds for turn in turns], 1)


def ratio(ours: list[Turn], theirs: list[Turn]) -> Spread:
    """How many times as fast ours is, by round."""
    return Spread.of([b.seconds / a.seconds for a, b in zip(ours, theirs, strict=False)])  # the last round may go on


def cost(turns: list[Turn]) -> dict[str, float]:
    """Medians of what else a step took: CPU seconds, page faults and the largest memory of its process."""
    medians = {name: statistics.median(asdict(turn)[name] for turn in turns) for name in asdict(turns[0])}
    return {
        "cpu_ms": round(1000 * medians["cpu_seconds"], 1),
        "page_faults": round(medians["page_faults"]),
        "peak_mb": round(medians["peak_mb"]),
    }


@contextmanager
def run_folder() -> Iterator[str]:
    """A folder for the runs of `fit`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield folder
