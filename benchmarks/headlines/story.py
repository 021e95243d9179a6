"""What the finished runs of headlines_cpu.yaml and headlines.yaml are like, beyond their losses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reproductions.headlines import RUNS, draw, split_titles
from benchmarks.reproductions.results import configured, evaluations, keep, trained
from lit_gpt import load
from lit_gpt.callbacks.run_folder import LAST, SUMMARY, read_json
from lit_gpt.generate import TextModel

RECORDS = ("headlines_cpu", "headlines")
SHOWN, GENERATED = 10, 200
EOS_TOKEN = 5  # characters that the challenge counts for it


def tell(logs: Path, results: Path) -> None:
    """Keep figures, titles and pictures of the records that have ended; a record that is under way keeps its last."""
    records = {name: f for name, f in trained(RECORDS, logs).items() if read_json(f / SUMMARY)["finished"]}
    for name, folder in records.items():
        keep(results, "records", name, {**_figures(folder), **_titles(folder)})
    if records and records.keys() == read_json(results)["records"].keys():
        drawn = draw({**trained(RUNS, logs), **records}, results.with_name("headlines_record"))
        keep(results, "figures", "drawn", drawn)


def _figures(folder: Path) -> dict[str, Any]:
    summary, found = read_json(folder / SUMMARY), [e for e in evaluations(folder) if int(e["step"])]
    kept = ("finished", "parameters", "training_seconds", "validation_seconds", "device", "precision", "seed")
    losses = [round(float(e["val/challenge_loss"]), 5) for e in found]
    last = {name: round(float(found[-1][f"val/{name}"]), 5) for name in ("nats_per_char", "bpb", "top1", "top5")}
    return {**{name: summary[name] for name in kept}, "steps": int(found[-1]["step"]), "losses": losses, **last}


def _titles(folder: Path) -> dict[str, Any]:
    """The hardest validation titles, some generated ones, and how many of those copy a training title."""
    data = configured(folder)["data"]["init_args"]
    model, (training, judged) = load(folder / LAST), split_titles(data)
    nats = nats_of_titles(model, judged)
    hardest = sorted(zip(nats, judged, strict=True), key=lambda pair: -pair[0] / (len(pair[1]) + EOS_TOKEN))
    known = set(training)
    written = model.generate(num_samples=GENERATED, max_new_tokens=60, temperature=1.0, seed=1337)
    return {
        "hardest": [[round(n, 1), title] for n, title in hardest[:SHOWN]],
        "easiest": [[round(n, 1), title] for n, title in hardest[: -SHOWN - 1 : -1]],
        "generated": written[:SHOWN],
        "copied": sum(title in known for title in written) / len(written),
    }


def nats_of_titles(model: TextModel, titles: Sequence[str]) -> list[float]:
    """Nats of each title with its EOS token, given the EOS token before it."""
    eos = model.tokenizer.eos_id
    assert eos is not None  # titles are documents
    return nats_of_rows([[eos, *model.tokenizer.encode(title), eos] for title in titles], model.net)


@torch.inference_mode()
def nats_of_rows(rows: Sequence[list[int]], logits_of: Callable[[Tensor], Tensor]) -> list[float]:
    """Nats of each row's tokens after its first. ``logits_of`` maps ids (N, T) to logits or log-probabilities."""
    found = torch.zeros(len(rows))
    for part in torch.tensor(sorted(range(len(rows)), key=lambda i: len(rows[i]))).split(64):  # alike in length
        width = max(len(rows[i]) for i in part)
        ids = torch.tensor([rows[i] + [-100] * (width - len(rows[i])) for i in part])  # (N, T + 1)
        logits = logits_of(ids[:, :-1].clamp(min=0))  # (N, T, V)
        found[part] = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)
    return found.tolist()
