"""The parts of `benchmarks.gpu`. Each is a generator that yields its figures as it has them."""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.timing import column
from benchmarks.train_speed import CASES

FULL = CASES["gpu"].shape
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 128, "vocab_size": 512}
#: Seconds after which a process is given up: a part that hangs must not take the others' time.
LIMIT = 240
#: When the time of the call is over.
DEADLINE = [float("inf")]

Figures = dict[str, Any]
#: Takes a folder that is gone in the end and the options; yields figures as they are measured.
Part = Callable[[Path, argparse.Namespace], Iterator[Figures]]


class FailedError(RuntimeError):
    """Why a process of a part did not come to its end, in a sentence."""


def seconds_left() -> float:
    """What a process may take."""
    return min(LIMIT, DEADLINE[0] - time.monotonic())


def output(module: str, *flags: str) -> Iterator[str]:
    """The lines of a command as it writes them; they are shown on the error stream too."""
    given_up = threading.Event()
    line = "no output"
    with _process([sys.executable, "-u", "-m", module, *flags]) as process:

        def give_up() -> None:
            given_up.set()
            _kill(process)

        timer = threading.Timer(max(seconds_left(), 0), give_up)
        timer.start()
        try:
            for line in map(str.rstrip, process.stdout or ()):
                print(line, file=sys.stderr, flush=True)
                yield line
            process.wait()
        finally:
            timer.cancel()
            _kill(process)
    if given_up.is_set():
        raise FailedError(f"{module} took longer than there was time for")
    if process.returncode:
        raise FailedError(f"{module} ended with status {process.returncode}: {line}")


def _process(command: list[str]) -> subprocess.Popen[str]:
    """In a group of its own: what the command starts, such as workers of a loader, ends with it."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, **streams, text=True, errors="replace", process_group=0)


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def fitted(folder: Path, name: str, options: argparse.Namespace, *more: str) -> Iterator[Path]:
    """The folder of a run of `fit`. Where it did not come to its end, this is raised after what it logged was read."""
    shape, rows, micro = (TINY, 8, 4) if options.tiny else (FULL, 128, 32)
    flags = [f"--model.config.{key}={value}" for key, value in shape.items()]
    flags += ["--model.config.pad_vocab_to=64", "--preset=gpt2", "--data=BPEDataModule", "--data.tokenizer=byte"]
    flags += [f"--data.tokens_per_step={rows * shape['block_size']}", f"--data.micro_batch_size={micro}"]
    flags += ["--model.optimizer.lr=0.0006", "--trainer.gradient_clip_val=1.0", "--trainer.val_check_interval=100000"]
    flags += [f"--logs_dir={folder}", f"--name={name}", "--trainer.devices=1", "--trainer.log_every_n_steps=5"]
    flags += ["--trainer.limit_val_batches=32"]
    if not options.tiny:
        flags += ["--trainer.accelerator=cuda", "--trainer.precision=bf16-mixed", "--model.compile=true"]
    run, failure = folder / name / "version_0", None
    try:
        for _ in output("lit_gpt", "fit", *flags, *more):
            pass
    except FailedError as error:
        failure = error
    if failure and not (run / "metrics.csv").is_file():
        raise failure
    yield run
    if failure:
        raise failure


def speed(folder: Path, options: argparse.Namespace) -> Iterator[Figures]:
    """Medians over the second half of a short run."""
    with fitted(folder, "speed", options, f"--trainer.max_steps={10 if options.tiny else 50}") as run:
        for name in ("train/tokens_per_second", "train/mfu", "train/peak_memory_gb"):
            values = list(column(run, name).values())
            yield {name.removeprefix("train/"): statistics.median(values[len(values) // 2 :]) if values else None}


def resume(folder: Path, options: argparse.Namespace) -> Iterator[Figures]:
    """Losses of a straight run beside those of the same run when it goes on from its checkpoint of the middle."""
    middle, end = (5, 10) if options.tiny else (15, 30)
    same = ["--model.optimizer.schedule=constant", f"--trainer.max_steps={end}", "--trainer.log_every_n_steps=1"]
    with fitted(folder, "run", options, *same, f"--checkpoint.keep_every_n_steps={middle}") as run:
        one = column(run, "train/loss")
    checkpoint = min((run / "checkpoints").glob("step_*.ckpt"))
    # In the same folder, whose figures it renews.
    with fitted(folder, "run", options, *same, f"--ckpt_path={checkpoint}") as run:
        two = column(run, "train/loss")
    steps = [step for step in one if step > middle]
    yield {"steps_compared": len(steps), "largest_difference": max(abs(one[step] - two[step]) for step in steps)}


def curve(folder: Path, options: argparse.Namespace) -> Iterator[Figures]:
    """Validation loss in nats per character by step, of a training of two minutes."""
    limits = ["--trainer.max_steps=10"] if options.tiny else ["--trainer.max_time=00:00:02:00"]
    limits += [f"--trainer.val_check_interval={5 if options.tiny else 50}"]
    text = [f"--data.source={options.text}"] if options.text else []
    schedule = ["--model.optimizer.schedule=constant", "--model.optimizer.warmup=20"]
    yield {"text": options.text.name if options.text else "the embedded corpus, learned by heart"}
    with fitted(folder, "curve", options, *schedule, *limits, *text) as run:
        yield {"nats_per_char": column(run, "val/nats_per_char")}


def gpu_tests(folder: Path, options: argparse.Namespace) -> Iterator[Figures]:
    """The tests that need a GPU: how many had which result, and the names of those that failed."""
    found: dict[str, int] = {}
    failed: list[str] = []
    for line in output("pytest", "-m", "gpu", "-vv", "-p", "no:cacheprovider", "tests/test_gpu.py"):
        if told := re.match(r"\S+::(\S+) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
            name, result = told[1], told[2].lower()
            found[result] = found.get(result, 0) + 1
            failed += [name] * (result in ("failed", "error"))
            yield {**found, **({"names of failures": failed} if failed else {})}


def command(name: str, tiny: list[str], full: list[str], *, clone: bool = True) -> Part:
    """A part that is a benchmark of its own, whose figures are its lines of JSON.

    Args:
        name: The benchmark's.
        tiny: Its flags with --tiny.
        full: Its flags without.
        clone: Whether nanoGPT takes part in it.
    """

    def measure(folder: Path, options: argparse.Namespace) -> Iterator[Figures]:
        given = [f"--nanogpt={options.nanogpt}"] if clone and options.nanogpt else []
        for line in output(f"benchmarks.{name}", *(tiny if options.tiny else full), *given):
            with suppress(json.JSONDecodeError):
                found = json.loads(line) if line.startswith("{") else {}
                yield {key: value for key, value in found.items() if key != "benchmark"}

    return measure


PARTS: dict[str, Part] = {
    "ready": command("gpu_needs", [], []),
    "micro": command("gpu_micro", ["--tiny"], [], clone=False),
    "train_speed": command("train_speed", ["--cases", "a", "--rounds", "1"], ["--cases", "gpu", "--rounds", "1"]),
    "speed": speed,
    "tests": gpu_tests,
    "resume": resume,
    "memory": command("memory", ["--block", "64", "--batch", "1"], ["--block", "1024", "--batch", "16"], clone=False),
    "generate": command("generate", ["--rounds", "1", "--new", "8"], ["--rounds", "1"]),
    "curve": curve,
}
