"""docs/reproductions.md from reproductions.json: every number of ours on it is read from there."""

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.reproductions.rows import PROJECTS, Project, Published, Row

Run = dict[str, Any]

INTRO = """# Reproductions

Small GPT projects whose authors published what they built and what it gave, each as a config that one command runs:

    python -m lit_gpt fit --config configs/reproductions/NAME.yaml

This page is written by

    python -m benchmarks.reproductions [--only NAME ...] [--minutes M]

which runs what is missing, goes on with what was cut, and reads every figure of ours from the runs' own files. Texts
are downloaded by name; `--source TEXT=FILE` takes a file instead, and the headlines need one:
`--source titles=titles.txt`. Losses are nats per token (`challenge_loss`: per character, an EOS token as 5) over
the whole validation split, in eval mode, and `train` is the same over a part of the training split. A run that was cut
is compared at the steps that it reached. Seconds are by the clock, on a machine that may have had other work.
"""
COLUMNS = (
    "config",
    "parameters",
    "steps",
    "compared at",
    "published, or by the original code on our text",
    "ours",
    "training + evaluation",
    "on",
)


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    runs, figures = results.get("runs", {}), results.get("figures", {})
    rows = [row for project in PROJECTS for row in project.rows]
    parts = [INTRO, table(COLUMNS, (_summary(row, runs.get(row.name)) for row in rows))]
    return "\n".join([*parts, *(line for project in PROJECTS for line in _project(project, runs, figures))])


def _summary(row: Row, run: Run | None) -> list[str]:
    name = f"`{row.name}`" if row.config is None else f"`{row.config}` as `{row.name}`"
    if run is None:
        return [name, "", f"0 of {row.steps:,}", *[""] * 5]
    point = _last_comparable(row, run)
    found = _at(run, point.step, point.metric) if point else None
    metric = point.metric if point else row.metric
    last = run["evaluations"][-1]
    return [
        name,
        f"{run['parameters']:,}",
        f"{run['steps']:,} of {row.steps:,}",
        f"`{metric}`, step {found[0] if found else last['step']}",
        f"{point.value:g}" if point else "",
        f"{found[1] if found else last[metric]:.4f}",
        f"{run['training_seconds']:,.0f} + {run['validation_seconds']:,.0f} s",
        f"{run['device']}, {run['precision']}",
    ]


def _last_comparable(row: Row, run: Run) -> Published | None:
    """The last published figure of the compared loss that the run has reached."""
    points = [p for p in (row.same_text or row.published) if p.metric == row.metric and _at(run, p.step, p.metric)]
    return points[-1] if points else None


def _at(run: Run, step: int, metric: str) -> tuple[int, float] | None:
    """Step and value of the evaluation nearest to ``step``, when it is within a tenth."""
    found = [(e["step"], e[metric]) for e in run["evaluations"] if metric in e]
    near = min(found, key=lambda pair: abs(pair[0] - step), default=None)
    return near if near is not None and abs(near[0] - step) <= max(1, step // 10) else None


def _project(project: Project, runs: dict[str, Run], figures: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {project.title}\n\n{project.about}\n"
    yield from (f"    {_command(row)}" for row in project.rows)
    done = [(row, runs[row.name]) for row in project.rows if row.name in runs]
    compared = [line for row, run in done for line in _comparison(row, run)]
    if compared:
        columns = ("run", "step", "metric", "published", "original code on our text", "ours", "ratio")
        yield "\n" + table(columns, compared)
    if done:
        ends = {run["evaluations"][-1]["step"] for _, run in done}
        yield "\n" + table(_COURSE, (line for row, run in done for line in _course(row, run, ends)))
    yield from _choices(project, runs)
    yield from _notes(project)
    yield from (line for row, run in done for line in _texts(row, run))
    yield from (figure(figures[name]) for name in project.figures if name in figures)


def _command(row: Row) -> str:
    if row.config is not None:
        return f"python -m benchmarks.reproductions --only {row.name}"
    titles = " --data.source titles.txt" if row.text == "titles" else ""
    return f"python -m lit_gpt fit --config {row.path}{titles}"


def _comparison(row: Row, run: Run) -> Iterator[list[str]]:
    """Each figure of the project or of its code beside ours."""
    points = {(p.step, p.metric): ["", ""] for p in (*row.published, *row.same_text)}
    for column, given in enumerate((row.published, row.same_text)):
        for p in given:
            points[p.step, p.metric][column] = f"{p.value:g}"
    for (step, metric), (published, same) in sorted(points.items()):
        found = _at(run, step, metric)
        ours = f"cut at {run['steps']:,}" if found is None else f"{found[1]:.4f}"
        at = "" if found is None or found[0] == step else f" (at {found[0]:,})"
        theirs = float(same or published)
        # At equal steps; they count an evaluation before any step as 1.
        ratio = f"{found[1] / theirs:.4f}" if found and abs(found[0] - step) <= 1 and theirs else ""
        yield [f"`{row.name}`", f"{step:,}", f"`{metric}`", published, same, ours + at, ratio]


_COURSE = (
    "run",
    "step",
    "train",
    "val",
    "gap",
    "train bits/byte",
    "val bits/byte",
    "train top-1",
    "val top-1",
    "train top-5",
    "val top-5",
    "best val so far",
)


def _course(row: Row, run: Run, ends: set[int]) -> Iterator[list[str]]:
    """Evaluations at the start, the best, each step that something was published for and where a run of the project
    ends, so that a run that was cut has others beside it.
    """
    wanted = {found[0] for p in (*row.published, *row.same_text) if (found := _at(run, p.step, p.metric))}
    best = min(run["evaluations"], key=lambda e: e["val/loss"])
    wanted |= {run["evaluations"][0]["step"], best["step"], *ends}
    for at in run["evaluations"]:
        if at["step"] in wanted:
            so_far = min((e for e in run["evaluations"] if e["step"] <= at["step"]), key=lambda e: e["val/loss"])
            train, val = at["train_eval/loss"], at["val/loss"]
            bits = [f"{at[f'{split}/bpb']:.4f}" for split in ("train_eval", "val")]
            scores = [f"{at[f'{split}/{name}']:.1%}" for name in ("top1", "top5") for split in ("train_eval", "val")]
            losses = [f"{train:.4f}", f"{val:.4f}", f"{val - train:+.4f}"]
            held = f"{so_far['val/loss']:.4f} at {so_far['step']:,}"
            yield [f"`{row.name}`", f"{at['step']:,}", *losses, *bits, *scores, held]


def _choices(project: Project, runs: dict[str, Run]) -> Iterator[str]:
    """Losses at the end of the short runs, each of which changes one thing that was not published."""
    done = [(row, runs[row.name]["evaluations"][-1]) for row in project.choices if row.name in runs]
    if done:
        yield f"\nWhat was not published, tried one by one in `{done[0][0].config}`, each by a command such as\n"
        yield f"    {_command(done[-1][0])}\n"
        lines = ([row.choice, f"{at['step']:,}", *_losses(at)] for row, at in done)
        yield table(("changed", "step", "train", "val"), lines)


def _losses(at: dict[str, float]) -> list[str]:
    return [f"{at[f'{part}/loss']:.4f}" for part in ("train_eval", "val")]


def _notes(project: Project) -> Iterator[str]:
    told = [row for row in project.rows if row.different]
    if told:
        yield "\nWhy ours may differ:\n\n" + "\n".join(f"- `{row.name}`: {row.different}." for row in told)


def _texts(row: Row, run: Run) -> Iterator[str]:
    for prompt, text in run["texts"].items():
        start = f"the EOS token and {prompt!r}" if prompt else "the EOS token"
        yield f"\n`{row.name}` goes on from {start} with `{text!r}`."


def figure(found: dict[str, Any]) -> str:
    """What a figure is about, its table and its pictures."""
    parts = [f"\n{found['about']}\n"]
    if "table" in found:
        parts.append(table(found["columns"], found["table"]))
    parts += [f"![{title}]({path})" for title, path in found.get("pictures", {}).items()]
    return "\n".join(parts)


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(columns)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
