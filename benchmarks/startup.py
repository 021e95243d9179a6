"""Seconds a person waits: for the help, for a sample, for the first optimizer step of `fit`.

    python -m benchmarks.startup [--rounds 5] [--threads 2] [--record]

Each is a process of its own, timed from its start: `--help` and `generate` to their end, `fit` with prepared data
until metrics.csv holds the first step. Cold: the first run after the machine's file cache was emptied (Linux, as root;
left out elsewhere). Warm: the median of the runs that follow. The last line is JSON.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import report

TARGETS = {"help": 0.7, "generate": 6.0, "first_step": 9.0}
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


def measure(what: Callable[[], float], rounds: int) -> dict[str, float]:
    """Cold, where that can be had, and warm seconds."""
    cold = {"cold": round(what(), 2)} if empty_file_cache() else {}
    return cold | {"warm": round(statistics.median(what() for _ in range(rounds)), 2)}


def main() -> None:
    """Measure and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as name:
        figures = compare(Path(name), options)
    lines = [f"- {what}: {found} s (mark {TARGETS[what]})" for what, found in figures.items()]
    report.finish("startup", dict(figures), lines, options, report.DEVICE)


def compare(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train a checkpoint, then time the three."""
    subprocess.run(train(folder, 2, "model"), stdout=subprocess.DEVNULL, check=True)
    model = folder / "logs" / "model" / "version_0" / "checkpoints" / "last.ckpt"
    generate = [*LIT_GPT, "generate", "--ckpt_path", str(model), "--prompt", "The ", "--max_new_tokens", "100"]
    found = {}
    for what, timed in (
        ("help", lambda: to_the_end([*LIT_GPT, "--help"])),
        ("generate", lambda: to_the_end(generate)),
        ("first_step", lambda: to_first_step(folder)),
    ):
        found[what] = measure(timed, options.rounds)
        print(f"{what}: {found[what]} (mark {TARGETS[what]})", flush=True)
    return found


if __name__ == "__main__":
    main()
