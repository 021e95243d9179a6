"""The loss that tiny Shakespeare's characters reach in the time that nanoGPT's README takes for them on a CPU.

    python -m benchmarks.time_to_loss --nanogpt CLONE [--seeds 0 1 2] [--text FILE] [--threads 2] [--record]

One clock for both: from the start of the process to the end of the final evaluation. First nanoGPT's README command;
its checkpoint is then scored on the whole validation split, outside the clock. Then `fit` with
configs/speedrun_cpu.yaml and a fresh cache: two short runs tell seconds of start-up and of a step, from which follows
the number of steps that fits into nanoGPT's time, a quarter and an eighth of it. Nothing but time decides it. A seed
decides the first weights and the order of the data. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import peers, report
from datamodules.sources import open_source

README = "--device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4"
README += " --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
TRIAL_STEPS = 40
#: What is kept back of the budget, because the machine's speed drifts.
MARGIN = 0.03


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
    """`fit` with the config, on a text file, for a number of steps."""

    def __init__(self, folder: Path, text: Path, threads: int) -> None:
        self.folder, self.text, self.threads, self.runs = folder, text, threads, 0

    def fit(self, steps: int, seed: int = 0) -> dict[str, float]:
        """Seconds of the whole process, steps and final nats per character."""
        self.runs += 1
        logs = self.folder / f"logs_{self.runs}"
        flags = ["--config", "configs/speedrun_cpu.yaml", f"--data.source={self.text}", f"--seed_everything={seed}"]
        flags += [f"--data.seed={seed}", "--trainer.accelerator=cpu"]  # nanoGPT's command is told to take the CPU too
        flags += [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}", f"--logs_dir={logs}"]
        flags += [f"--data.cache_dir={logs / 'cache'}"]
        seconds = seconds_of([sys.executable, "-m", "lit_gpt", "fit", *flags], Path.cwd(), self.threads)
        summary = json.loads(next(logs.glob("*/version_0/summary.json")).read_text())
        val = summary["final"]["val/nats_per_char"]
        return {"seconds": round(seconds, 1), "steps": steps, "val": round(val, 4), "seed": seed}

    def within(self, budget: float, seeds: list[int]) -> list[dict[str, float]]:
        """Runs that fit into a number of seconds, one a seed."""
        steps = int((budget * (1 - MARGIN) - self.start_up) / self.step)
        return [self.fit(steps, seed) for seed in seeds] if steps > 0 else []

    def calibrate(self) -> None:
        """Seconds of start-up and final evaluation, and of a step."""
        self.fit(2)  # compiled code and files are cached, as they were for nanoGPT's imports
        short, longer = self.fit(2)["seconds"], self.fit(2 + TRIAL_STEPS)["seconds"]
        self.step = (longer - short) / TRIAL_STEPS
        self.start_up = short - 2 * self.step


def main() -> None:
    """Measure and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True, help="folder of a clone of nanoGPT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--text", default="tiny_shakespeare", help="its file, or the name of the download")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = compare(options, Path(name))
    report.finish("time_to_loss", figures, table(figures), options)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Run nanoGPT, then ours within its time and parts of it."""
    text = "".join(piece.text for piece in open_source(options.text).pieces(1 << 20))
    (folder / "text.txt").write_text(text)
    peer = nanogpt(options.nanogpt, text, folder, options.threads)
    print(f"nanoGPT: {peer}", flush=True)
    ours = Ours(folder, folder / "text.txt", options.threads)
    ours.calibrate()
    print(f"ours: {ours.start_up:.1f} s around the training, {1000 * ours.step:.1f} ms a step", flush=True)
    found: dict[str, object] = {"nanogpt": peer}
    for part, seeds in ((1, options.seeds), (4, options.seeds[:1]), (8, options.seeds[:1])):
        found[f"ours_in_1/{part}"] = runs = ours.within(peer["seconds"] / part, seeds)
        print(f"in 1/{part} of its time: {runs}", flush=True)
    return found


def table(figures: dict[str, object]) -> list[str]:
    """The page's lines."""
    peer: dict[str, float] = figures["nanogpt"]  # type: ignore[assignment]
    lines = [
        "| who | budget | steps | seconds, slowest seed | nats per character, whole validation split |",
        "|---|---|---|---|---|",
    ]
    lines.append(f"| nanoGPT | | 2000 | {peer['seconds']} | {peer['val']} |")
    for name, runs in figures.items():
        if name == "nanogpt" or not runs:
            continue
        values: list[float] = [run["val"] for run in runs]  # type: ignore[attr-defined]
        spread = f" ({len(values)} seeds, {min(values)} to {max(values)})" if len(values) > 1 else ""
        seconds = max(run["seconds"] for run in runs)  # type: ignore[attr-defined]
        cells = [name.replace("ours_in_", ""), runs[0]["steps"], seconds, f"{statistics.mean(values):.4f}{spread}"]  # type: ignore[index]
        lines.append("| ours | " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    main()
