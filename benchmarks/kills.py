"""A run killed at random moments and resumed until it is done, against a straight run: equal to the last bit?

    python -m benchmarks.kills [--kills 50] [--rows windows] [--optimizer muon] [--epochs 20] [--record]

Kills fall anywhere: in start-up, a step, a validation, a save. Compared are weights, optimizer state and every logged
figure that is not a time. The last line is JSON.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import report
from datamodules.synthetic import headlines

TIMED = ("tokens_per_second", "step_seconds", "data_wait", "peak_memory", "mfu")


def flags(options: argparse.Namespace, text: Path) -> list[str]:
    """A small model with dropout that takes long enough to be killed in every phase."""
    shape = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 64, "dropout": 0.2}
    given = [f"--model.config.{name}={value}" for name, value in shape.items()]
    given += [
        "--data=HeadlinesDataModule",
        f"--data.source={text}",
        "--data.tokenizer=char",
        f"--data.rows={options.rows}",
    ]
    given += ["--data.tokens_per_step=512", f"--data.micro_batch_size={8 // options.accumulation}"]
    length = f"max_epochs={options.epochs}" if options.epochs else f"max_steps={options.steps}"
    given += [f"--model.optimizer.kind={options.optimizer}", f"--trainer.{length}"]
    given += ["--trainer.val_check_interval=40", "--checkpoint.every_n_steps=5", "--trainer.log_every_n_steps=1"]
    return [*given, "--trainer.accelerator=cpu", "--samples.max_new_tokens=0", "--trainer.limit_val_batches=4"]


def start(folder: Path, name: str, given: list[str]) -> "subprocess.Popen[bytes]":
    """`fit`, going on where it can."""
    command = [sys.executable, "-m", "lit_gpt", "fit", *given, f"--name={name}", "--resume=auto"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: "subprocess.Popen[bytes]") -> None:
    """Wait, and stop the benchmark when `fit` failed by itself."""
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


def kill_until_done(folder: Path, given: list[str], kills: int, rng: random.Random) -> list[int]:
    """Kill `fit` that often and return how many rows it had logged each time; then let it finish."""
    rows = []
    log = folder / "logs" / "killed" / "version_0" / "metrics.csv"
    for _ in range(kills):
        process = start(folder, "killed", given)
        before = lines(log)
        in_start_up = rng.random() < 0.1
        while not in_start_up and lines(log) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4 if in_start_up else 1))
        assert process.poll() is None, "the run ended before its last kill: give more --steps"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        rows.append(lines(log))
    finish(start(folder, "killed", given))
    return rows


def lines(path: Path) -> int:
    """Lines of a text file, 0 where there is none."""
    return path.read_text().count("\n") if path.is_file() else 0


def differences(straight: Path, killed: Path) -> list[str]:
    """Names of what is not equal."""
    one, two = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (straight, killed))
    found = [k for k, v in one["state_dict"].items() if not torch.equal(v, two["state_dict"][k])]
    states = (c["optimizer_states"][0]["state"] for c in (one, two))
    found += [
        f"optimizer {k}" for k, (a, b) in enumerate(zip(*(s.values() for s in states), strict=True)) if not same(a, b)
    ]
    return found + (["metrics.csv"] if figures(straight) != figures(killed) else [])


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two optimizer states of a parameter are equal to the last bit."""
    return all(torch.equal(value, two[name]) for name, value in one.items())


def figures(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without times."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMED)} for row in rows]


def main() -> None:
    """Run both, compare, print."""
    parser = report.parser(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--epochs", type=int, help="so many instead of --steps: Lightning counts those in another way")
    parser.add_argument("--rows", choices=("windows", "padded", "packed"), default="windows")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "titles.txt").write_text("\n".join(headlines(3000, seed=1)))
        given = flags(options, folder / "titles.txt")
        finish(start(folder, "straight", given))
        rows = kill_until_done(folder, given, options.kills, random.Random(options.seed))
        found = differences(*(folder / "logs" / run / "version_0" for run in ("straight", "killed")))
    print(f"rows logged at each kill: {rows}")
    how = f"- {options.kills} kills, {options.rows}, {options.optimizer}, accumulation {options.accumulation}: "
    line = how + ("equal to the last bit" if not found else f"DIFFERENT: {found}")
    print(line)
    figures = {"kills": options.kills, "different": found}
    report.finish(f"kills {options.rows} {options.optimizer}", figures, [line], options)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
