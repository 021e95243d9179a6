"""What a run of the reproductions left in its folder, as plain values for reproductions.json."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.reproductions.rows import UNCOVERED, Row
from datamodules.files import write_text
from lit_gpt import load
from lit_gpt.callbacks.run_folder import CONFIG, LAST, SUMMARY, read_json

RESULTS = "reproductions.json"
KEPT = (
    *("loss", "top1", "top5", "bpb", "nats_per_char"),
    *("challenge_loss", "challenge_coverage"),
)
_FROM_SUMMARY = ("finished", "parameters", "training_seconds", "validation_seconds", "precision")


def newest(runs: Path) -> Path | None:
    """The folder of the last run below ``logs/NAME``."""
    return max(runs.glob("version_*"), key=lambda folder: int(folder.name.split("_")[1]), default=None)


def trained(names: Sequence[str], logs: Path) -> dict[str, Path]:
    """The last runs of these names, those that have weights."""
    folders = {name: newest(logs / name) for name in names}
    return {name: folder for name, folder in folders.items() if folder is not None and (folder / LAST).is_file()}


def trained_as_kept(names: Sequence[str], logs: Path, docs: Path) -> dict[str, Path]:
    """The same; but none when a run whose figures are kept has no weights here, so that nothing is shown of fewer."""
    folders, kept = trained(names, logs), kept_evaluations(docs)
    lost = [name for name in names if name in kept and name not in folders]
    if folders and lost:
        print(f"what {', '.join(names)} show stays as it was: {', '.join(lost)} left no weights in {logs}")
    return {} if lost else folders


def configured(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run."""
    config: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    return config


def keep(path: Path, kind: str, name: str, value: Any) -> None:
    """Put a value into a file of results, beside what it holds."""
    kept = read_json(path)
    kept.setdefault(kind, {})[name] = value
    write_text(path, json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def kept_evaluations(docs: Path) -> dict[str, list[dict[str, float]]]:
    """Those of every run that has been kept, whether its folder is still there or not."""
    return {name: run["evaluations"] for name, run in read_json(docs / RESULTS).get("runs", {}).items()}


def evaluations(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv that hold a validation."""
    return [row for row in _logged(folder) if row.get("val/loss")]


def _logged(folder: Path) -> list[dict[str, str]]:
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_run(row: Row, folder: Path) -> dict[str, Any]:
    """Evaluations, costs and, of a finished run, what it writes."""
    summary = read_json(folder / SUMMARY)
    kept = {name: summary[name] for name in _FROM_SUMMARY}
    found = [_numbers(line) for line in evaluations(folder)]
    said = _texts(row, folder) if row.prompts and summary["finished"] else {}
    return {
        **kept,
        "steps": max(int(line["step"]) for line in _logged(folder)),  # the summary's are those of the last validation
        "device": _device(summary["device"]),
        "text": summary["hashes"].get("data", "")[:16],
        "torch": summary["versions"]["torch"],
        "evaluations": found,
        "texts": said,
    }


def _numbers(row: dict[str, str]) -> dict[str, float]:
    names = [f"{split}/{name}" for split in ("val", "train_eval") for name in KEPT]
    found = {n: round(float(row[n]), 6) for n in names if row.get(n)}
    if "val/challenge_loss" in found:  # the published figures' convention, as if the tokens left out were like others
        found[UNCOVERED] = round(found["val/challenge_loss"] * found["val/challenge_coverage"], 6)
    return {"step": int(row["step"]), **found}


def _texts(row: Row, folder: Path) -> dict[str, str]:
    model = load(folder / LAST)
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "new_document": True}
    return {prompt: model.generate(prompt, **options)[0] for prompt in row.prompts}


def _device(name: str) -> str:
    """The summary's words, with the processor's own name where the system tells it."""
    path = Path("/proc/cpuinfo")
    if not name.startswith("cpu") or not path.exists():
        return name
    models = [line.split(":")[1].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
    return f"{models[0]}, {name}" if models else name
