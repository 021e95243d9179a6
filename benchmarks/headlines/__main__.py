"""Runs the trials of benchmarks/headlines/trials.yaml that have no figure yet and writes docs/headlines.md.

    python -m benchmarks.headlines --titles FILE [--only NAME ...] [--jobs 2]

FILE holds 100,000 titles, one a line, the last 10,000 of them validation. Trials train on the first of them and are
judged by the last 5,000 of the 90,000 training titles. The 10,000 validation titles are read for the page's section on
finished runs alone. With ``--jobs`` so many trials run at once, each on one thread. Figures are kept in
docs/headlines.json as they come; a run that was cut goes on later.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from benchmarks.headlines.page import PAGE, RESULTS, page
from benchmarks.headlines.story import tell
from benchmarks.headlines.variation import variation
from benchmarks.reproductions.results import evaluations, keep, newest
from datamodules.files import write_text
from lit_gpt.callbacks.run_folder import SUMMARY, read_json
from lit_gpt.config import format_value

TRIALS = Path(__file__).with_name("trials.yaml")
BASE = "configs/headlines_cpu.yaml"
TRAINING, HELD_OUT = 90_000, 5_000
_WRITING = Lock()


@dataclass(frozen=True)
class Run:
    """One trial with one seed."""

    name: str
    seed: int
    titles: int
    flags: dict[str, Any]

    @property
    def key(self) -> str:
        """Its name in headlines.json and below logs/."""
        return f"{self.name}-{self.seed}"


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then write the page."""
    options = _options(arguments)
    described = yaml.safe_load(TRIALS.read_text())
    done = read_json(RESULTS).get("trials", {})
    missing = [run for run in runs(described) if run.key not in done and (not options.only or run.name in options.only)]
    if options.titles is not None:
        training = _training(options.titles)
        _cut(training, {run.titles for run in missing}, options.logs_dir)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(partial(_run, options=options), missing))
        if "tokenizers" not in read_json(RESULTS):
            keep(RESULTS, "tokenizers", "unigram", variation(training[:-HELD_OUT], training[-HELD_OUT:]))
    tell(options.logs_dir.parent, RESULTS)
    write_text(PAGE, written())
    print(f"wrote {PAGE}")


def written() -> str:
    """The page of all that has been kept."""
    baseline = read_json(RESULTS.with_name("reproductions.json")).get("runs", {}).get("headlines_sgd", {})
    return page(yaml.safe_load(TRIALS.read_text()), read_json(RESULTS), baseline)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--titles", type=Path, help="the 100,000 titles; left out, only the page is written")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these trials alone")
    parser.add_argument("--jobs", type=int, default=1, help="so many trials at once")
    where = Path("logs/headlines_trials")
    parser.add_argument("--logs_dir", type=Path, default=where, help="folder of the trials, beside the runs")
    return parser.parse_args(arguments)


def runs(described: dict[str, Any]) -> list[Run]:
    """Every trial with each of its seeds, in the order of the file."""
    found = []
    for trial in described["trials"]:
        scale = described["scales"][trial["scale"]]
        flags = {**scale["flags"], **trial.get("flags", {})}
        name = f"{trial['scale']}-{trial['name']}"
        found += [Run(name, seed, scale["titles"], flags) for seed in trial.get("seeds", [1337])]
    return found


def _training(titles: Path) -> list[str]:
    with titles.open(encoding="utf-8") as file:
        return [line.rstrip("\n") for line in islice(file, TRAINING)]


def _cut(training: list[str], sizes: set[int], folder: Path) -> None:
    """The files that trials read: the first titles of the training part, and its last for judging."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{title}\n" for title in training]
    write_text(folder / "held_out.txt", "".join(lines[-HELD_OUT:]))
    for size in sizes:
        write_text(folder / f"first_{size}.txt", "".join(lines[:-HELD_OUT][:size]))


def _run(run: Run, options: argparse.Namespace) -> None:
    folder = options.logs_dir
    flags = {
        "data.source": str(folder / f"first_{run.titles}.txt"),
        "data.val_source": str(folder / "held_out.txt"),
        "seed_everything": run.seed,
        "data.seed": run.seed,
        "samples.max_new_tokens": 0,
        "logs_dir": str(folder),
        "name": run.key,
        "resume": "auto",
        **run.flags,
    }
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if options.jobs > 1 else {})
    given = [f"--{name}={format_value(value)}" for name, value in flags.items()]
    log = folder / f"{run.key}.log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "lit_gpt", "fit", "--config", BASE, *given]
        status = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        print(f"{run.key} stopped with status {status}: see {log}", flush=True)
        return
    figures = _figures(newest(folder / run.key))
    print(f"{run.key}: {figures}", flush=True)
    with _WRITING:
        keep(RESULTS, "trials", run.key, figures)


def _figures(folder: Path | None) -> dict[str, Any]:
    assert folder is not None
    last, summary = evaluations(folder)[-1], read_json(folder / SUMMARY)
    return {
        "steps": int(last["step"]),
        "loss": round(float(last["val/challenge_loss"]), 5),
        "train": round(float(last["train_eval/nats_per_char"]), 5),
        "val": round(float(last["val/nats_per_char"]), 5),
        "seconds": round(summary["training_seconds"]),
        "parameters": summary["parameters"],
    }


if __name__ == "__main__":
    main()
