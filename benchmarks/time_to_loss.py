"""The loss that tiny Shakespeare's characters reach in the time that nanoGPT's README takes for them on a CPU.

    python -m benchmarks.time_to_loss --nanogpt CLONE [--seeds 0 1 2] [--text FILE] [--threads 2] [--record]
    python -m benchmarks.time_to_loss --seconds 105 --budgets 1/8 1/4     # without nanoGPT, some budgets only

One clock for both: from the start of the process to the end of the final evaluation. First nanoGPT's README command;
its checkpoint is then scored on the whole validation split, outside the clock. Then `fit`, with a fresh cache, in parts
and multiples of nanoGPT's time. Two short runs of a recipe tell seconds of start-up and final evaluation and of a step,
from which follows the number of steps that fit into the budget. The recipe is the row of benchmarks/time_to_loss.yaml
that may have the most of them, written as an ordinary config. The rows were chosen on the last tenth of the training
part.

Each character of the split is scored once: nanoGPT's in rows of its 64 side by side, ours with at least 64 before it
(`val_stride`). A seed decides the first weights and the order of the data. "Without counts"
is a row of its own: the same time for a network that has no n-gram counts. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import peers, report
from benchmarks.recipes import Recipe, recipes
from datamodules.sources import open_source

README = "--device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4"
README += " --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
TRIAL_STEPS = 30
BUDGETS = ("1/8", "1/4", "1/2", "1", "2")
#: What is kept back of the budget, because the machine's speed drifts.
MARGIN = 0.05


@dataclass(frozen=True)
class Pace:
    """What a recipe takes on this machine."""

    around: float
    """Seconds of start-up and final evaluation."""
    step: float
    """Seconds of a training step."""

    def steps(self, budget: float) -> int:
        """How many steps fit into a number of seconds."""
        return int((budget * (1 - MARGIN) - self.around) / self.step)


def seconds_of(command: list[str], folder: Path, threads: int) -> float:
    """Wall time of a process; its output goes to the error stream."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr, check=True)
    return time.perf_counter() - start


def nanogpt(clone: Path, text: str, folder: Path, threads: int) -> dict[str, float]:
    """Run the README's command in a copy of the clone; seconds, and nats of its checkpoint on the whole split."""
    copy = folder / "nanoGPT"
    shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git"))
    data = copy / "data" / "shakespeare_char"
    (data / "input.txt").write_text(text)
    seconds_of([sys.executable, "prepare.py"], data, threads)
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *README.split()]
    seconds = seconds_of(command, copy, threads)
    return {"seconds": round(seconds, 1), "val": round(full_split(copy, text), 4)}


@torch.no_grad()
def full_split(copy: Path, text: str) -> float:
    """Nats per character of nanoGPT's checkpoint, in rows of its block size side by side."""
    saved = torch.load(copy / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
    module = peers.nanogpt_module(copy)
    net = module.GPT(module.GPTConfig(**saved["model_args"])).eval()
    net.load_state_dict(saved["model"])
    symbols = {symbol: i for i, symbol in enumerate(sorted(set(text)))}
    ids = torch.tensor([symbols[symbol] for symbol in text[int(len(text) * 0.9) :]])
    T = net.config.block_size
    total = 0.0
    for start in range(0, len(ids) - 1, T * 64):
        part = ids[start : start + T * 64 + 1]
        rows = [part[i : i + T + 1] for i in range(0, len(part) - 1, T)]
        total += sum(float(net(row[None, :-1], row[None, 1:])[1]) * (len(row) - 1) for row in rows)
    return total / (len(ids) - 1)


class Ours:
    """`fit` on a text file, by recipes."""

    def __init__(self, folder: Path, text: Path, threads: int) -> None:
        self.folder, self.text, self.threads, self.runs = folder, text, threads, 0
        self._paces: dict[str, Pace] = {}

    def fit(self, recipe: Recipe, steps: int, seed: int = 0) -> dict[str, Any]:
        """Seconds of the whole process, steps and final nats per character."""
        self.runs += 1
        logs = self.folder / f"logs_{self.runs}"
        logs.mkdir()
        config = logs / "config.yaml"
        flags: dict[str, Any] = {
            "data.source": str(self.text),
            "data.cache_dir": str(logs / "cache"),
            "logs_dir": str(logs),
        }
        flags |= {"data.seed": seed, "seed_everything": seed}
        config.write_text(yaml.safe_dump(recipe.config(steps, flags), sort_keys=False))
        command = [sys.executable, "-m", "lit_gpt", "fit", "--config", str(config)]
        seconds = seconds_of(command, Path.cwd(), self.threads)
        summary = json.loads(next(logs.glob("*/version_0/summary.json")).read_text())
        val = summary["final"]["val/nats_per_char"]
        found = {"seconds": round(seconds, 1), "steps": steps, "val": round(val, 4), "seed": seed}
        return found | {"recipe": recipe.name}

    def within(self, budget: float, rows: list[Recipe], seeds: list[int]) -> list[dict[str, Any]]:
        """Runs that fit into a number of seconds, one a seed, by the row that may have the most steps then."""
        choices = [(recipe, min(self.pace(recipe).steps(budget), recipe.at_most)) for recipe in rows]
        recipe, steps = max(choices, key=lambda choice: choice[1])  # of equals the first, which is for fewer steps
        return [self.fit(recipe, int(steps), seed) for seed in seeds] if steps > 0 else []

    def pace(self, recipe: Recipe) -> Pace:
        """Seconds of start-up and final evaluation and of a step, measured once for each network."""
        key = recipe.network()
        if key not in self._paces:
            if not self._paces:
                self.fit(recipe, 2)  # compiled code and files are cached, as they were for nanoGPT's imports
            # Each twice. The quicker ones tell a step, because other work on the machine can only make a run longer;
            # the slower one tells what is around the training, so that the runs keep to their time.
            tries = {n: sorted(self.fit(recipe, n)["seconds"] for _ in range(2)) for n in (2, 2 + TRIAL_STEPS)}
            (short, slow), (longer, _) = tries.values()
            step = (longer - short) / TRIAL_STEPS
            if step <= 0:
                sys.exit(f"{2 + TRIAL_STEPS} steps took {longer} s and 2 steps {short} s: the machine is too busy.")
            self._paces[key] = pace = Pace(slow - 2 * step, step)
            print(f"{recipe.name}: {pace.around:.1f} s around the training, {1000 * step:.1f} ms a step", flush=True)
        return self._paces[key]


def main() -> None:
    """Measure and print."""
    parser = report.parser(__doc__, threads=torch.get_num_threads())
    parser.add_argument("--nanogpt", type=peers.clone, help="folder of a clone of nanoGPT")
    parser.add_argument("--seconds", type=float, help="nanoGPT's time in seconds, if it was measured before")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of ours for each, in each budget"
    )
    parser.add_argument(
        "--budgets", type=Fraction, nargs="*", default=list(map(Fraction, BUDGETS)), help="parts of nanoGPT's time"
    )
    parser.add_argument(
        "--alone",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether a network without n-gram counts is trained too",
    )
    parser.add_argument("--text", default="tiny_shakespeare", help="a file of tiny Shakespeare, or its download's name")
    options = parser.parse_args()
    if (options.nanogpt is None) == (options.seconds is None):
        parser.error("give --nanogpt CLONE, or --seconds if its time was measured before")
    with tempfile.TemporaryDirectory() as name:
        figures = compare(options, Path(name))
    report.finish("time_to_loss", figures, table(figures), options)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run nanoGPT, then ours within parts and multiples of its time."""
    text = "".join(piece.text for piece in open_source(options.text).pieces(1 << 20))
    (folder / "text.txt").write_text(text)
    peer: dict[str, float] = {"seconds": options.seconds}
    if options.nanogpt is not None:
        peer = nanogpt(options.nanogpt, text, folder, options.threads)
    print(f"nanoGPT: {peer}", flush=True)
    ours = Ours(folder, folder / "text.txt", options.threads)
    runs: dict[str, list[dict[str, Any]]] = {}
    trials = [(str(part), part, recipes("rows")) for part in options.budgets]
    trials += [("1, without counts", Fraction(1), recipes("without_counts"))] * options.alone
    for name, part, choice in trials:
        runs[name] = ours.within(float(peer["seconds"] * part), choice, options.seeds)
        print(f"in {name} of its time: {runs[name]}", flush=True)
    return {"nanogpt": peer, "ours": runs}


def table(figures: dict[str, Any]) -> list[str]:
    """The page's lines."""
    peer = figures["nanogpt"]
    lines = [
        "| who | budget | steps | seconds, slowest seed | nats per character, whole validation split |",
        "|---|---|---|---|---|",
        f"| nanoGPT | | 2000 | {peer['seconds']} | {peer.get('val', '')} |",
    ]
    for name, runs in figures["ours"].items():
        if not runs:
            continue
        seconds = max(run["seconds"] for run in runs)
        cells = [name, runs[0]["steps"], seconds, report.over_seeds([run["val"] for run in runs])]
        lines.append("| ours | " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    main()
