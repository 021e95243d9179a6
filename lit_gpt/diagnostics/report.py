"""``report``: compares runs on one HTML page, or in a table in the terminal."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from datamodules.errors import UserError
from lit_gpt.diagnostics.curves import lines_of
from lit_gpt.diagnostics.page import check_page, write_page
from lit_gpt.diagnostics.runs import Run, find_runs
from lit_gpt.diagnostics.settings import Setting, Spread, best_step, differences, last_step, settings_of, spread

#: Metrics of the tables: shares are shown in percent with one digit, losses with four.
METRICS = {"loss": (1.0, 4), "top1": (100.0, 1), "top5": (100.0, 1)}
_SPLITS = {"train": "train_eval", "val": "val"}
_DASH = "\u2013"
_FEW = 8  # evaluated steps that a message lists
#: Samples of a run on the page, and the longest text of a sample or setting there.
_SAMPLES, _LONGEST = 20, 2000
#: Options and their help.
_OPTIONS: dict[str, dict[str, Any]] = {
    "runs": {"nargs": "+", "help": "Folders of runs, logs/NAME/version_N, or folders of such, as logs."},
    "--out": {"type": str | None, "help": "The page to write; report.html without --table."},
    "--table": {
        "action": "store_true",
        "help": "Print a table of loss, top-1 and top-5, train and val, and write a page only if --out is given.",
    },
    "--steps": {
        "type": str,
        "default": "",
        "help": "Evaluated steps for the tables, such as 200,800. Default: that of the lowest val/loss, and the last.",
    },
    "--from_checkpoints": {
        "action": "store_true",
        "help": "Also compute, with each run's best checkpoint on its validation text: loss by position in the "
        "context, token frequencies of data and model, likeliest next tokens.",
    },
}


def main(arguments: list[str]) -> None:
    """Run the verb with its command line."""
    about = str(report.__doc__)
    parser = ArgumentParser("python -m lit_gpt report", exit_on_error=False, allow_abbrev=False, description=about)
    for name, how in _OPTIONS.items():
        parser.add_argument(name, **how)
    report(**parser.parse_args(arguments).as_dict())


def report(runs: list[str], out: str | None, table: bool, steps: str, from_checkpoints: bool) -> None:
    """Compare runs on one HTML page that needs no network: curves, metrics, the settings that differ, throughput,
    samples. Runs that differ in the seed alone are folded to mean and standard deviation.
    """
    path = out or "report.html"
    if out or not table:
        check_page(path)
    found = find_runs(runs)
    settings, chosen = settings_of(found), chosen_steps(steps, found)
    if table:
        console = Console(highlight=False, markup=False, emoji=False)
        console.print(terminal_table(settings, chosen), *_remarks(settings), sep="\n")
    if out or not table:
        write_page(path, "report.html", page_data(settings, chosen, _predictions(found) if from_checkpoints else []))
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


def rows_of(settings: list[Setting], steps: Steps) -> Iterator[tuple[Setting, str, str, dict[str, Spread | None]]]:
    """Of each setting, step and split: the metrics. Where the best steps are the last, they are shown once."""
    for setting in settings:
        labels = {tuple(step(run) for run in setting.runs): label for label, step in steps.items()}
        for places, label in labels.items():
            shown = _step_label(label, places)
            for split, prefix in _SPLITS.items():
                yield setting, shown, split, {name: setting.at(f"{prefix}/{name}", places) for name in METRICS}


def _step_label(label: str, steps: Iterable[int | None]) -> str:
    """``best 200``, or ``best 150-200`` over several seeds."""
    known = sorted(step for step in steps if step is not None)
    if label.isdecimal() or not known:
        return label
    return f"{label} {known[0]}" if known[0] == known[-1] else f"{label} {known[0]}-{known[-1]}"


def terminal_table(settings: list[Setting], steps: Steps) -> Table:
    """The table of ``--table``."""
    table = Table("setting", "parameters", "step", "", "loss", "top-1 %", "top-5 %", box=None, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.justify = "left" if column.header == "setting" else "right"
        column.no_wrap = column.header not in ("setting", "step")
        column.overflow = "fold"
    table.caption, table.caption_justify = _legend(settings), "left"
    before = None
    for setting, step, split, metrics in rows_of(settings, steps):
        head = [setting.name, _parameters(setting)] if setting is not before else ["", ""]
        if split == "val" and len(setting.runs) > 1:
            head[0] = _seeds(setting)
        table.add_row(*head, step if split == "train" else "", split, *_shown(setting, metrics))
        before = setting
    return table


def _remarks(settings: list[Setting]) -> Iterator[str]:
    """A line for each run that is not what the table says: damaged, unfinished, or left out of the mean."""
    for setting in settings:
        for run in _all(setting):
            state = [] if run.state == "finished" else [run.state]
            left_out = [] if run in setting.runs else ["not in the mean"]
            if remarks := [*state, *left_out, *run.notes]:
                yield f"{run.name}: {'; '.join(remarks)}"


def _seeds(setting: Setting) -> str:
    return f"seeds {', '.join(run.seed for run in setting.runs)}"


def _legend(settings: list[Setting]) -> str:
    folded = any(len(setting.runs) > 1 for setting in settings)
    note = "; \u00b1 is the standard deviation over seeds" if folded else ""
    return f"train: a fixed part of the training text, in eval mode; loss in nats per token{note}"


def _titled(setting: Setting) -> str:
    return f"{setting.name} ({_seeds(setting)})" if len(setting.runs) > 1 else setting.name


def _parameters(setting: Setting) -> str:
    number = spread(run.number("parameters") for run in setting.runs)
    return _DASH if number is None else f"{number.mean:,.0f}"


def _shown(setting: Setting, metrics: dict[str, Spread | None]) -> list[str]:
    found = ((value, METRICS[name]) for name, value in metrics.items())
    return [_DASH if value is None else value.shown(len(setting.runs), *how) for value, how in found]


def page_data(settings: list[Setting], steps: Steps, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """All that the page shows, as plain values."""
    runs = [run for setting in settings for run in _all(setting)]
    return {
        "settings": [_described(setting) for setting in settings],
        "rows": [
            [settings.index(setting), step, split, *_shown(setting, metrics)]
            for setting, step, split, metrics in rows_of(settings, steps)
        ],
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
    runs, means = setting.runs, {}
    for name in ("tokens_per_second", "training_seconds", "validation_seconds"):
        value = spread(run.number(name) for run in runs)
        means[name] = None if value is None else value.mean
    wait = spread(data_wait(run) for run in runs)
    return {
        "name": _titled(setting),
        "parameters": _parameters(setting),
        "runs": [[run.name, str(run.folder), run.state, run.seed, run.notes, run in runs] for run in _all(setting)],
        **means,
        "data_wait": None if wait is None else wait.mean,
        "device": " | ".join(dict.fromkeys(str(run.summary.get("device", "unknown device")) for run in runs)),
    }


def _all(setting: Setting) -> list[Run]:
    return [*setting.runs, *setting.others]


def data_wait(run: Run) -> float | None:
    """The share of the training time that the loop waited for data. None: unknown."""
    seconds, waits = (run.metrics.get(f"train/{name}", {}) for name in ("step_seconds", "data_wait"))
    spent = waited = 0.0
    before = 0
    for step in sorted(seconds):
        interval = seconds[step] * (step - before)
        spent, waited, before = spent + interval, waited + interval * waits.get(step, 0.0), step
    return waited / spent if spent and waits else None


def _predictions(runs: list[Run]) -> list[dict[str, Any]]:
    """What the checkpoints say; a run whose checkpoint cannot be used gets a note."""
    from lit_gpt.diagnostics.checkpoints import predictions_of

    found = []
    for run in runs:
        try:
            found.append({"run": run.name, **predictions_of(run.folder)})
        except UserError as error:
            run.notes.append(f"no predictions: {error}")
    return found
