"""Pictures of the headline runs: their curves, the likeliest next tokens, and token frequencies of data and model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reproductions.results import configured, evaluations, kept_evaluations, trained_as_kept
from benchmarks.reproductions.rows import ROWS
from datamodules.sources import open_source
from lit_gpt import load
from lit_gpt.callbacks.run_folder import LAST, SUMMARY, read_json
from lit_gpt.generate import TextModel

RUNS = ("headlines_sgd", "headlines_adamw", "headlines_rope")
METRICS = ("challenge_loss", "challenge_loss_uncovered", "challenge_coverage", "nats_per_char", "bpb")
PICTURES = ("curves", "frequencies", "next tokens")
CONTEXT = "Motorola Xoom commercial reminiscent of Apple's"
TITLES = 1000  # of the validation part, for frequencies
TOP = 20
EPOCHS = 7


def pictures(logs: Path, docs: Path) -> dict[str, Any] | None:
    """Draw what there are runs for; None when there is no run."""
    folders = trained_as_kept(RUNS, logs, docs)
    return draw(folders, docs / "headlines") if folders else None


def draw(folders: dict[str, Path], target: Path) -> dict[str, Any]:
    """Draw runs by their names; files begin with the name of ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    paths = {name: target.with_name(f"{target.name}_{name.replace(' ', '_')}.png") for name in PICTURES}
    models = {name: load(folder / LAST) for name, folder in folders.items()}
    _curves(folders, paths["curves"])
    _bars(models, paths["next tokens"])
    frequencies = _frequencies(folders, models, paths["frequencies"])
    about = (
        f"The curves; the ten likeliest tokens after {CONTEXT!r} and at the start of a new title; and how often the "
        f"{TOP} most frequent tokens of {TITLES:,} validation titles occur there beside the probability that a model "
        "gives them, averaged over all its predictions. The EOS token's share:"
    )
    named = {name: path.name for name, path in paths.items()}
    columns = ["run", "EOS token in the data", "EOS token predicted", "first choice is the EOS token"]
    return {"about": about, "columns": columns, "table": frequencies, "pictures": named}


def losses(logs: Path, docs: Path) -> dict[str, Any] | None:
    """The last evaluation of each run, in every unit, and beside the SGD run's after as many epochs."""
    kept = kept_evaluations(docs)
    of_sgd = {_part(RUNS[0], e["step"]): e["val/challenge_loss_uncovered"] for e in kept.get(RUNS[0], [])}
    table = []
    for name in RUNS:
        for last in kept.get(name, [])[-1:]:
            values = [last[f"val/{metric}"] for metric in METRICS]
            part = _part(name, last["step"])
            share = f"{values[1] / of_sgd[part]:.4f}" if part in of_sgd else ""
            table.append([f"`{name}`", str(last["step"]), *(f"{value:.4f}" for value in values), share])
    about = (
        "The last evaluation of each run; `challenge_coverage` is the share of the targets that the published figures "
        "count."
    )
    columns = [
        "run",
        "step",
        *(f"`{metric}`" for metric in METRICS),
        "uncovered, of the SGD run's after as many epochs",
    ]
    return {"about": about, "columns": columns, "table": table} if table else None


def _part(name: str, step: float) -> float:
    """The part of a run's epochs that is over, to a hundredth."""
    return round(step / ROWS[name].steps, 2)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=80)
    plt.close(figure)


def _curves(folders: dict[str, Path], path: Path) -> None:
    """Validation loss over the run."""
    figure, ((axis,),) = _figure(1, 1, (7, 4))
    for name, folder in folders.items():
        found = [e for e in evaluations(folder) if int(e["step"])]
        epochs = _epochs(folder, [int(e["step"]) for e in found])
        axis.plot(epochs, [float(e["val/challenge_loss"]) for e in found], marker=".", label=name)
    axis.set(xlabel="epoch", ylabel="challenge loss, every token scored")
    axis.legend()
    _save(figure, path)


def _epochs(folder: Path, steps: list[int]) -> list[float]:
    """Steps in epochs; a run without max_steps is evaluated at the end of each."""
    planned = configured(folder)["trainer"]["max_steps"]
    return [EPOCHS * step / (planned if planned > 0 else EPOCHS * steps[0]) for step in steps]


def _bars(models: dict[str, TextModel], path: Path) -> None:
    """The ten likeliest next tokens of each model in two places."""
    places = {f"… {CONTEXT[-28:]}": CONTEXT, "a new title": ""}
    figure, axes = _figure(len(places), len(models), (4.2 * len(models), 6))
    for column, (name, model) in enumerate(models.items()):
        for row, (title, text) in enumerate(places.items()):
            best = _next(model, text).topk(10)
            axes[row][column].barh(range(10), best.values.numpy())
            axes[row][column].set_yticks(range(10), _names(model, best.indices.tolist()))
            axes[row][column].invert_yaxis()
            axes[row][column].set_title(f"{name}: {title}", fontsize=9)
    _save(figure, path)


def _names(model: TextModel, ids: list[int]) -> list[str]:
    """Tokens as people read them; a bare dollar would start a formula."""
    texts = {i: repr(model.tokenizer.decode_bytes([i]).decode(errors="replace")).replace("$", r"\$") for i in ids}
    return ["EOS token" if i == model.tokenizer.eos_id else texts[i] for i in ids]


@torch.inference_mode()
def _next(model: TextModel, text: str) -> torch.Tensor:
    """Probabilities after the EOS token and ``text``, (V,)."""
    ids = torch.tensor([[model.tokenizer.eos_id, *model.tokenizer.encode(text)]])
    return model.net(ids)[0, -1].softmax(-1)


def _frequencies(folders: dict[str, Path], models: dict[str, TextModel], path: Path) -> list[list[str]]:
    """Draws data beside prediction; returns the EOS token's shares."""
    figure, axes = _figure(len(models), 1, (9, 3 * len(models)))
    table = []
    for (axis,), (name, model) in zip(axes, models.items(), strict=True):
        data = configured(folders[name])["data"]["init_args"]
        actual, predicted, first = _shares(model, split_titles(data)[1][:TITLES], packed=data["rows"] == "packed")
        top = np.argsort(-actual, kind="stable")[:TOP]
        eos = model.tokenizer.eos_id
        for shift, values, label in ((-0.2, actual, "data"), (0.2, predicted, "predicted")):
            axis.bar(np.arange(TOP) + shift, values[top], 0.4, label=label)
        axis.set_xticks(range(TOP), _names(model, top.tolist()))
        axis.tick_params(axis="x", rotation=60, labelsize=7)
        axis.set_title(name, fontsize=9)
        axis.legend()
        table.append(
            [_reached(name, folders[name]), f"{actual[eos]:.2%}", f"{predicted[eos]:.2%}", f"{first[eos]:.2%}"]
        )
    _save(figure, path)
    return table


def _reached(name: str, folder: Path) -> str:
    """The run, with its last evaluation's step where it was cut."""
    if read_json(folder / SUMMARY)["finished"]:
        return f"`{name}`"
    return f"`{name}`, cut at step {int(evaluations(folder)[-1]['step']):,}"


def split_titles(data: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The text of a run's data options: its training titles, and the last tenth."""
    titles = list(open_source(data["source"], documents="line", strip=data["strip"]).documents())
    training = int(len(titles) * 0.9)
    return titles[:training], titles[training:]


@torch.inference_mode()
def _shares(model: TextModel, titles: list[str], packed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every token (V,): its share of the targets, its mean probability, its share of the first choices.

    A model that was trained on packed rows sees one title at a time.
    """
    T, eos = int(model.net.config.block_size), model.tokenizer.eos_id
    ids = torch.tensor([i for title in titles for i in (eos, *model.tokenizer.encode(title))])
    rows = ids[: len(ids) // T * T].view(-1, T)  # (N, T)
    V = int(model.net.config.vocab_size)
    predicted, first = torch.zeros(V, dtype=torch.float64), torch.zeros(V, dtype=torch.int64)
    for part in rows.split(4):
        read = part[:, :-1]
        documents = {"document_ids": (read == eos).cumsum(1)} if packed else {}
        probabilities = model.net(read, **documents).flatten(0, 1).softmax(-1)  # (4 * (T - 1), V)
        predicted += probabilities.double().sum(0)
        first += torch.bincount(probabilities.argmax(-1), minlength=V)
    actual = torch.bincount(rows[:, 1:].flatten(), minlength=V)
    return tuple((part.double() / actual.sum()).numpy() for part in (actual, predicted, first))  # type: ignore[return-value]
