"""What the reproduced projects ask beyond their losses: a figure of losses reads the kept evaluations, one of networks
the weights of finished or cut runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.reproductions.headlines import losses, pictures
from benchmarks.reproductions.results import kept_evaluations, trained_as_kept
from lit_gpt import load
from lit_gpt.callbacks.run_folder import LAST

Figure = Callable[[Path, Path], dict[str, Any] | None]
SENTENCE = Path("configs/reproductions/sentence.txt")


def memorize_windows(logs: Path, docs: Path) -> dict[str, Any] | None:
    """The loss in eval mode of the very targets that were trained on, window by window."""
    table, masks = [], {"memorize": 0, "memorize_masked": 3}
    for name, folder in trained_as_kept(tuple(masks), logs, docs).items():
        model, masked = load(folder / LAST), masks[name]
        ids = torch.tensor([model.tokenizer.eos_id, *model.tokenizer.encode(SENTENCE.read_text().strip())])
        windows = torch.cat((ids, ids[:1])).unfold(0, 5, 1)  # (3, 5)
        with torch.inference_mode():
            logits = model.net(windows[:, :-1])[:, masked:]
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1 + masked :].flatten())
        table.append([f"`{name}`", str(3 * (4 - masked)), f"{loss:.4f}"])
    about = (
        "The loss in eval mode of the targets that were trained on. (`val/loss` scores each of the six targets once, "
        "in two rows; the second starts with ` learning`, where no training window starts.)"
    )
    return {"about": about, "columns": ["run", "targets", "loss"], "table": table} if table else None


def novel_gaps(logs: Path, docs: Path) -> dict[str, Any] | None:
    """Validation less training loss, by a contiguous split and by one that leaks, at the last step that both have."""
    kept, table = kept_evaluations(docs), []
    for name in ("novel_bigram", "novel_1x1"):
        found = [{e["step"]: e for e in kept.get(run, [])} for run in (name, f"{name}_leak")]
        common = set(found[0]) & set(found[1])
        if common:
            for split, by_step in zip(("contiguous", "leaking"), found, strict=True):
                val, train = (by_step[max(common)][f"{part}/loss"] for part in ("val", "train_eval"))
                figures = [f"{train:.4f}", f"{val:.4f}", f"{val - train:+.4f}"]
                table.append([f"`{name}`", split, f"{max(common):,}", *figures])
    about = "Both ways of splitting, at the last step that both runs have:"
    columns = ["run", "split", "step", "train", "val", "gap"]
    return {"about": about, "columns": columns, "table": table} if table else None


def bigram_distance(logs: Path, docs: Path) -> dict[str, Any] | None:
    """How far the learned table of pairs is from the counted one."""
    counted = "diary_bigram_counts"
    folders = trained_as_kept((counted, "diary_bigram", "diary_bigram_limit"), logs, docs)
    if counted not in folders:
        return None
    nets = {name: load(folder / LAST).net for name, folder in folders.items()}
    counts = nets.pop(counted).get_buffer("counts").double()  # (V, V)
    smoothed, plain = (_rows(counts + k) for k in (1.0, 1e-12))
    weight = counts.sum(1) / counts.sum()
    tables = {f"`{name}`": net.get_parameter("table.weight").detach().double().softmax(1) for name, net in nets.items()}
    table = []
    for name, rows in {"the counts plus one": smoothed, **tables}.items():
        distances = _moved(rows, smoothed, weight), _moved(rows, plain, weight), _excess(plain, rows, weight)
        table.append([name, *(f"{distance:.4f}" for distance in distances)])
    about = (
        "Tables of pairs compared, each row weighted by how often its token occurs in the training text: the share of "
        "the probability that lies elsewhere (half the sum of absolute differences), and the training loss above the "
        "least that any table of pairs can have, which the plain counts have."
    )
    columns = ["table", "away from counts plus one", "away from plain counts", "nats above the least"]
    return {"about": about, "columns": columns, "table": table}


def _rows(counts: torch.Tensor) -> torch.Tensor:
    return counts / counts.sum(1, keepdim=True)


def _moved(one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> float:
    return float((weight * (one - other).abs().sum(1) / 2).sum())


def _excess(plain: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> float:
    """Kullback-Leibler divergence of ``rows`` from the plain counts, in nats."""
    terms = torch.where(plain > 0, plain * (plain.clamp(min=1e-300).log() - rows.log()), 0.0)
    return float((weight * terms.sum(1)).sum())


FIGURES: dict[str, Figure] = {
    "memorize_windows": memorize_windows,
    "novel_gaps": novel_gaps,
    "bigram_distance": bigram_distance,
    "headlines_losses": losses,
    "headlines_pictures": pictures,
}
