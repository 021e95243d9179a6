"""``report``: compares runs on one HTML page, or in a table in the terminal."""

import math
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from datamodules.errors import UserError
from lit_gpt.diagnostics.curves import lines_of
from lit_gpt.diagnostics.page import check_page, write_page
from lit_gpt.diagnostics.runs import Run, find_runs
from lit_gpt.diagnostics.settings import UNKNOWN, Setting, best_step, differences, last_step, mean, settings_of

#: Metrics of the tables: shares are shown in percent with one digit, losses with four.
METRICS = {"loss": (1.0, 4), "top1": (100.0, 1), "top5": (100.0, 1)}
_TIMES = ("tokens_per_second", "training_seconds", "validation_seconds")
_SPLITS = {"train": "train_eval", "val": "val"}
_FEW = 8  # evaluated steps that a message lists
#: Samples of a run on the page, and the longest text of a sample or setting there.
_SAMPLES, _LONGEST = 20, 2000
_DEFAULT_PAGE = "report.html"


class _Parser(ArgumentParser):
    """Raises what is wrong with a command line, so that it becomes one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise."""
        raise ArgumentError(None, message)


def main(arguments: list[str]) -> None:
    """Run the verb with its command line."""
    parser = _Parser("python -m lit_gpt report", description=report.__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="*", help="Folders of runs, logs/NAME/version_N, or folders of such, as logs.")
    add("--out", help=f"The page to write. Default: {_DEFAULT_PAGE}, or none if there is only --table.")
    add("--table", action="store_true", help="Print a table of loss, top-1 and top-5 on training and validation text.")
    add(
        "--steps",
        default="",
        help="Evaluated steps, such as 200,800. Default: that of the lowest val/loss, and the last.",
    )
    checkpoints = "Add what each run's best checkpoint predicts on its validation text: loss by position, frequencies."
    add("--from_checkpoints", action="store_true", help=checkpoints)
    add("--model", help="For --from_checkpoints: your own LightningModule that was trained, such as mine.LitGRU.")
    report(**vars(parser.parse_intermixed_args(arguments)))


def report(
    runs: list[str], out: str | None, table: bool, steps: str, from_checkpoints: bool, model: str | None
) -> None:
    """Compare runs on one HTML page that needs no network: curves, metrics, the settings that differ, throughput,
    samples. Runs that differ in the seed alone are folded to mean and standard deviation.
    """
    if model and not from_checkpoints:
        raise UserError(f"--model {model} is for what checkpoints predict: add --from_checkpoints.")
    path = out or ("" if table and not from_checkpoints else _DEFAULT_PAGE)
    if path:
        check_page(path)
    found = find_runs(runs)
    settings, chosen = settings_of(found), chosen_steps(steps, found)
    if table:
        console = Console(highlight=False, markup=False, emoji=False)
        console.print(terminal_table(settings, chosen), *_remarks(settings), sep="\n")
    if path:
        write_page(path, "report.html", page_data(settings, chosen, _predictions(found, model, from_checkpoints)))
        print(f"wrote {len(found)} run(s), {len(settings)} setting(s) to {path}")


Steps = dict[str, Callable[[Run], int | None]]


def chosen_steps(typed: str, runs: list[Run]) -> Steps:
    """The steps of the tables: a label, and the step of each run."""
    if not typed:
        return {"best": best_step, "last": last_step}
    known = sorted({step for run in runs for step in run.metrics.get("val/loss", {})})
    parts = [part.strip() for part in typed.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) not in known:
            few = ", ".join(map(str, known[:_FEW])) or "none"
            raise UserError(f"--steps {part!r} is no step that was evaluated: give some of {few}, with commas between.")
    return {part: lambda _, step=int(part): step for part in parts}  # type: ignore[misc]


def rows_of(settings: list[Setting], steps: Steps) -> Iterator[list[Any]]:
    """Index of the setting, step, split, metrics. Where the best steps are the last, they are shown once."""
    for i, setting in enumerate(settings):
        labels = {tuple(step(run) for run in setting.runs): label for label, step in steps.items()}
        for places, label in labels.items():
            for split, prefix in _SPLITS.items():
                metrics = (setting.at(f"{prefix}/{name}", places) for name in METRICS)
                shown = [
                    UNKNOWN if value is None else value.shown(len(setting.runs), *how)
                    for value, how in zip(metrics, METRICS.values(), strict=True)
                ]
                yield [i, _step_label(label, places) if split == "train" else "", split, *shown]


def _step_label(label: str, steps: Iterable[int | None]) -> str:
    """``best 200``, or ``best 150-200`` over several seeds."""
    known = sorted(step for step in steps if step is not None)
    if label.isdecimal() or not known:
        return label
    return f"{label} {known[0]}" if known[0] == known[-1] else f"{label} {known[0]}-{known[-1]}"


def terminal_table(settings: list[Setting], steps: Steps) -> Table:
    """The table of ``--table``."""
    table = Table("setting", "parameters", "step", "text", "loss", "top-1 %", "top-5 %", box=None, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.justify = "left" if column.header == "setting" else "right"
        column.no_wrap = column.header not in ("setting", "step")
        column.overflow = "fold"
    table.caption, table.caption_justify = _legend(settings), "left"
    heads = [iter([(setting.name, _parameters(setting)), (_seeds(setting), "")]) for setting in settings]
    for i, step, split, *metrics in rows_of(settings, steps):
        table.add_row(*next(heads[i], ("", "")), step, split, *metrics)
    return table


def _remarks(settings: list[Setting]) -> Iterator[str]:
    """A line for each run that is not what the table says: damaged, unfinished, or left out of the mean."""
    for setting in settings:
        for run in _all(setting):
            state = [] if run.state == "finished" else [run.state]
            if remarks := [*state, *_left_out(run, setting), *run.notes]:
                yield f"{run.name}: {'; '.join(remarks)}"


def _left_out(run: Run, setting: Setting) -> list[str]:
    if run in setting.runs:
        return []
    repeated = run.seed in (other.seed for other in setting.runs)
    return [f"not in the mean: {'a later run has its seed' if repeated else 'other runs came further'}"]


def _seeds(setting: Setting) -> str:
    """The seeds that are folded; nothing if there is one."""
    return f"seeds {', '.join(run.seed for run in setting.runs)}" if len(setting.runs) > 1 else ""


def _legend(settings: list[Setting]) -> str:
    folded = any(map(_seeds, settings))
    note = "; \u00b1 is the standard deviation over seeds" if folded else ""
    return f"train: a fixed part of the training text, in eval mode; loss in nats per token{note}"


def _parameters(setting: Setting) -> str:
    number = mean(run.number("parameters") for run in setting.runs)
    return UNKNOWN if number is None else f"{number:,.0f}"


def page_data(settings: list[Setting], steps: Steps, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """All that the page shows, as plain values."""
    runs = [run for setting in settings for run in _all(setting)]
    return {
        "settings": [_described(setting) for setting in settings],
        "rows": list(rows_of(settings, steps)),
        "legend": _legend(settings),
        "differences": [
            [name, *(value[:_LONGEST] for value in values)] for name, values in differences(settings).items()
        ],
        "lines": lines_of(settings),
        "samples": [[run.name, _some(run.samples)] for run in runs if run.samples],
        "predictions": predictions,
    }


def _some(samples: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """At most `_SAMPLES` of a run's samples, the last one among them."""
    every = -(-len(samples) // _SAMPLES)
    return [(step, text[:_LONGEST]) for step, text in samples[::-every][::-1]]


def _described(setting: Setting) -> dict[str, Any]:
    runs = setting.runs
    notes = {run: [*_left_out(run, setting), *run.notes] for run in _all(setting)}
    return {
        "name": setting.name + (f" ({seeds})" if (seeds := _seeds(setting)) else ""),
        "parameters": _parameters(setting),
        "runs": [[run.name, str(run.folder), run.state, run.seed, notes[run]] for run in notes],
        **{name: mean(run.number(name) for run in runs) for name in _TIMES},
        "data_wait": mean(map(data_wait, runs)),
        "device": " | ".join(dict.fromkeys(str(run.summary.get("device", "unknown device")) for run in runs)),
    }


def _all(setting: Setting) -> list[Run]:
    return [*setting.runs, *setting.others]


def data_wait(run: Run) -> float | None:
    """The share of the training time that the loop waited for data. None: unknown."""
    seconds, waits = (run.metrics.get(f"train/{name}", {}) for name in ("step_seconds", "data_wait"))
    steps = sorted(step for step in seconds.keys() & waits.keys() if math.isfinite(seconds[step] * waits[step]))
    intervals = [seconds[step] * (step - before) for before, step in pairwise([0, *steps])]
    waited = sum(interval * waits[step] for interval, step in zip(intervals, steps, strict=True))
    return waited / spent if (spent := sum(intervals)) > 0 else None


def _predictions(runs: list[Run], model: str | None, wanted: bool) -> list[dict[str, Any]]:
    """What the checkpoints say; a run whose checkpoint cannot be used gets a note."""
    found: list[dict[str, Any]] = []
    for run in runs if wanted else ():
        from lit_gpt.diagnostics.checkpoints import predictions_of

        try:
            found.append({"run": run.name, **predictions_of(run.folder, model)})
        except UserError as error:
            run.notes.append(f"no predictions: {error}")
    return found
