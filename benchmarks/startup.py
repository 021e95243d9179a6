"""Seconds a person waits: for the help, for a sample, for the first optimizer step of `fit`.

    python -m benchmarks.startup [--rounds 5] [--threads 2] [--record]

Each is a process of its own, timed from its start: `--help` and `generate` to their end, `fit` with prepared data
until metrics.csv holds the first step. Beside them are timed processes that import torch or Lightning's command line
and do nothing else. Each round runs all of them, in an order drawn anew. Warm: the median over rounds. Cold: one more
round, with the machine's file cache emptied before each process (Linux, as root; left out elsewhere). The last line is
JSON.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import report

#: What is waited for, the import that it is compared with, and the seconds that it may take longer.
MARKS = {"generate": ("import torch", 0.4), "first step": ("import lightning.pytorch.cli", 0.8)}
LIT_GPT = [sys.executable, "-m", "lit_gpt"]


def train(folder: Path, steps: int, name: str) -> list[str]:
    """The command that trains the packaged character recipe for some steps."""
    flags = ["--config", "configs/char.yaml", f"--trainer.max_steps={steps}", f"--logs_dir={folder / 'logs'}"]
    flags += [f"--name={name}", f"--data.cache_dir={folder / 'cache'}", "--trainer.log_every_n_steps=1"]
    return [*LIT_GPT, "fit", *flags]


def to_the_end(command: list[str]) -> float:
    """Seconds of a process."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def to_first_step(folder: Path) -> float:
    """Seconds until `fit` has logged its first step; it is then stopped."""
    name = f"first_{time.time_ns()}"
    start = time.perf_counter()
    process = subprocess.Popen(train(folder, 1000, name), stdout=subprocess.DEVNULL)
    metrics = folder / "logs" / name / "version_0" / "metrics.csv"
    while not metrics.is_file() or metrics.read_text().count("\n") < 2:
        assert process.poll() is None, "fit ended before its first step"
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    process.kill()
    process.wait()
    return seconds


def empty_file_cache() -> bool:
    """Whether the machine let us."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def measure(commands: dict[str, Callable[[], float]], before_each: Callable[[], object]) -> dict[str, float]:
    """Seconds of all commands, in an order drawn anew."""
    seconds = {}
    for name in random.sample(sorted(commands), len(commands)):
        before_each()
        seconds[name] = commands[name]()
        print(f"{name}: {seconds[name]:.2f} s", file=sys.stderr, flush=True)
    return {name: seconds[name] for name in commands}


def compare(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Warm, and cold where that can be had, seconds of all commands."""
    subprocess.run(train(folder, 2, "model"), stdout=subprocess.DEVNULL, check=True)
    model = folder / "logs" / "model" / "version_0" / "checkpoints" / "last.ckpt"
    generate = [*LIT_GPT, "generate", "--ckpt_path", str(model), "--prompt", "The ", "--max_new_tokens", "100"]
    imports = [f"import {name}" for name in ("torch", "lightning.pytorch.cli")]
    processes = {name: [sys.executable, "-c", name] for name in imports}
    processes |= {"help": [*LIT_GPT, "--help"], "generate": generate}
    commands: dict[str, Callable[[], float]] = {name: partial(to_the_end, line) for name, line in processes.items()}
    commands["first step"] = partial(to_first_step, folder)
    cold = measure(commands, empty_file_cache) if empty_file_cache() else {}
    if cold:
        measure(commands, lambda: None)  # some still read from the disk
    warm = [measure(commands, lambda: None) for _ in range(rounds)]
    found = {"warm": {name: statistics.median(one[name] for one in warm) for name in commands}}
    return found | ({"cold": cold} if cold else {})


def described(state: str, seconds: dict[str, float]) -> list[str]:
    """Lines of the page for warm or cold."""
    lines = [f"- {state}: " + ", ".join(f"{name} {took:.2f} s" for name, took in seconds.items())]
    for name, (base, mark) in MARKS.items():
        longer, ratio = seconds[name] - seconds[base], seconds[name] / seconds[base]
        lines.append(
            f"- {state}, {name}: {ratio:.2f} times as long as `{base}`, {longer:+.2f} s (mark: at most +{mark} s)"
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = report.parser(__doc__, rounds=5, threads=torch.get_num_threads())
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as name:
        figures = compare(Path(name), options.rounds)
    lines = [line for state, seconds in figures.items() for line in described(state, seconds)]
    print(*lines, sep="\n")
    rounded = {state: {name: round(took, 3) for name, took in one.items()} for state, one in figures.items()}
    report.finish("startup", rounded, lines, options, report.DEVICE)


if __name__ == "__main__":
    main()
