"""The loss of configs/shakespeare_char.yaml beside the best that nanoGPT publishes for tiny Shakespeare's characters.

    python -m benchmarks.shakespeare_char [--source FILE] [--record]

Runs `fit`, goes on with a run that was cut, or takes the figures of a finished one. The last step's weights are judged,
on the whole validation split, whose every character is scored once; nanoGPT's figure is its best evaluation, over
random batches. The last line is JSON.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.reproductions.results import newest
from lit_gpt.callbacks.run_folder import SUMMARY, read_json

CONFIG = "configs/shakespeare_char.yaml"
#: nanoGPT's README (loss) and config/train_shakespeare_char.py (5,000 steps of 64 rows of 256).
PUBLISHED = {"val": 1.4697, "parameters": 10_650_000, "tokens": 5000 * 64 * 256}


def trained(options: argparse.Namespace) -> dict[str, Any]:
    """The summary of the finished run."""
    runs = options.logs_dir / "shakespeare_char"
    found = _summary(runs)
    if not found.get("finished"):
        flags = ["--config", CONFIG, "--resume", "auto", f"--logs_dir={options.logs_dir}"]
        flags += [f"--data.source={options.source}"] if options.source else []
        subprocess.run([sys.executable, "-m", "lit_gpt", "fit", *flags], check=True, stdout=sys.stderr)
        found = _summary(runs)
    return found


def _summary(runs: Path) -> dict[str, Any]:
    run = newest(runs)
    return {} if run is None else read_json(run / SUMMARY)


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a run's summary."""
    final = summary["final"]
    kept = {name: summary[name] for name in ("steps", "tokens", "parameters", "precision", "device")}
    return {
        "val": round(final["val/nats_per_char"], 4),
        "train": round(final["train_eval/nats_per_char"], 4),
        "best_step": summary["best"]["step"],
        "minutes": round((summary["training_seconds"] + summary["validation_seconds"]) / 60, 1),
        **kept,
    }


def table(found: dict[str, Any]) -> list[str]:
    """The page's lines."""
    lines = ["| who | nats a character | parameters | characters of all batches |", "|---|---|---|---|"]
    for who, entry in (("nanoGPT, published", PUBLISHED), ("ours", found)):
        lines.append(f"| {who} | {entry['val']:.4f} | {entry['parameters']:,} | {entry['tokens']:,} |")
    where = f"{found['minutes']} minutes on {found['device']}, {found['precision']}"
    lines += ["", f"Ours: {found['steps']} steps, each batch read twice (R-Drop), in {where};"]
    lines.append(f"training text {found['train']:.4f}; lowest validation loss at step {found['best_step']}.")
    return lines


def main() -> None:
    """Train and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--source", help="the text's file, where the download is not wanted")
    parser.add_argument("--logs_dir", type=Path, default=Path("logs"))
    options = parser.parse_args()
    found = figures(trained(options))
    device = "cpu" if found["device"].startswith("cpu") else report.DEVICE
    report.finish("shakespeare_char", found, table(found), options, device)


if __name__ == "__main__":
    main()
