"""How the speed of `fit` changes with processes, width, depth, block and vocabulary; a picture of cost against FLOPs.

    python -m benchmarks.scaling [--steps 12] [--rounds 2] [--record]

One size is changed at a time from 4 layers of 128 channels, block 128, 257 tokens. Each point is the best of some short
runs. FLOPs are `GPT.flops_per_token`'s. The picture is docs/scaling.png. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.timing import column
from lit_gpt.model import GPT, GPTConfig

BASE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128, "vocab_size": 257}
SWEEPS: dict[str, tuple[int, ...]] = {
    "n_embd": (64, 128, 256, 512),
    "n_layer": (2, 4, 8, 16),
    "block_size": (32, 128, 512, 1024),
    "vocab_size": (257, 4096, 16384, 50304),
}
TOKENS = 4096


def rate(shape: dict[str, int], options: argparse.Namespace, processes: int = 1) -> float:
    """Best tokens per second over the last logged steps of short runs."""
    return max(_rate(shape, options.steps, processes) for _ in range(options.rounds))


def _rate(shape: dict[str, int], steps: int, processes: int) -> float:
    threads = max(1, torch.get_num_threads() // processes)
    flags = [f"--model.config.{name}={value}" for name, value in shape.items()]
    flags += ["--data=BPEDataModule", "--data.tokenizer=byte", f"--data.tokens_per_step={TOKENS}"]
    flags += [f"--trainer.max_steps={steps}", "--trainer.accelerator=cpu", f"--trainer.devices={processes}"]
    flags += ["--trainer.val_check_interval=100000", "--trainer.log_every_n_steps=3", "--trainer.limit_val_batches=1"]
    flags += ["--trainer.strategy=ddp"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lit_gpt", "fit", *flags, f"--logs_dir={folder}", "--name=run"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, env=environment, stdout=sys.stderr, check=True)
        return max(column(Path(folder) / "run" / "version_0", "train/tokens_per_second").values())


def point(name: str, value: int, options: argparse.Namespace) -> dict[str, Any]:
    """One size: its FLOPs and its rate."""
    shape = BASE | {name: value}
    with torch.device("meta"):
        flops = GPT(GPTConfig(**shape)).flops_per_token()  # type: ignore[arg-type]
    tokens_per_second = rate(shape, options)
    found = {"sweep": name, "value": value, "mflop_per_token": round(flops / 1e6, 2)}
    found |= {"tokens_per_second": round(tokens_per_second), "gflop_per_s": round(flops * tokens_per_second / 1e9, 1)}
    print(json.dumps(found), flush=True)
    return found


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Microseconds a token against FLOPs a token, one line for each sweep; straight lines are of equal GFLOP/s."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4.5))
    for name in SWEEPS:
        own = [p for p in points if p["sweep"] == name]
        flops = [p["mflop_per_token"] for p in own]
        axes.loglog(flops, [1e6 / p["tokens_per_second"] for p in own], marker="o", label=name)
        for p, x in zip(own, flops, strict=True):
            axes.annotate(
                str(p["value"]),
                (x, 1e6 / p["tokens_per_second"]),
                textcoords="offset points",
                xytext=(4, -9),
                fontsize=7,
            )
    limits = [min(p["mflop_per_token"] for p in points), max(p["mflop_per_token"] for p in points)]
    for speed in (25, 50, 100):
        axes.loglog(limits, [x * 1e3 / speed for x in limits], color="0.8", linewidth=0.8, zorder=0)
        axes.annotate(f"{speed} GFLOP/s", (limits[1], limits[1] * 1e3 / speed), fontsize=7, color="0.5")
    axes.set(xlabel="MFLOP per token, forward and backward", ylabel="microseconds per token")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, draw and print."""
    parser = report.parser(__doc__, rounds=2)
    parser.add_argument("--steps", type=report.at_least_1, default=12, help="training steps that are timed")
    options = parser.parse_args()
    points = [point(name, value, options) for name, values in SWEEPS.items() for value in values]
    processes = {str(n): round(rate(BASE, options, n)) for n in (1, 2)}
    print(f"processes: {processes}", flush=True)
    lines = ["| changed | value | MFLOP/token | tokens/s | GFLOP/s |", "|---|---|---|---|---|"]
    lines += [
        "| " + " | ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in p.values()) + " |"
        for p in points
    ]
    lines += ["", f"Tokens/s by processes (ddp, the threads shared out): {processes}", "", "![cost](scaling.png)"]
    if options.record:
        draw(points, Path("docs/scaling.png"))
    report.finish("scaling", {"points": points, "processes": processes}, lines, options)


if __name__ == "__main__":
    main()
