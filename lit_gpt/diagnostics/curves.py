"""The curves of runs and of folded settings, as plain values for the page's script."""

import math
from collections.abc import Sequence
from typing import Any

from lit_gpt.diagnostics.runs import Run
from lit_gpt.diagnostics.settings import Setting, mean, spread

#: Points of all curves of one metric together, so that a page stays below 2 MB.
_POINTS = 4000
_FEWEST, _MOST = 50, 400


def lines_of(settings: list[Setting]) -> list[dict[str, Any]]:
    """One line of curves for each run and, where a setting has several, one for its mean."""
    runs = sum(len(setting.runs) + len(setting.others) for setting in settings)
    points = min(max(_POINTS // max(runs, 1), _FEWEST), _MOST)
    lines = []
    for number, setting in enumerate(settings):
        every = (*setting.runs, *setting.others)
        lines += [_line(number, [run], points) | {"run": run.name, "folded": run in setting.runs} for run in every]
        if len(setting.runs) > 1:
            lines.append(_line(number, setting.runs, points) | {"run": None})
    return lines


def _line(number: int, runs: Sequence[Run], points: int) -> dict[str, Any]:
    """Metrics that were logged at the same steps share their axes."""
    groups: dict[tuple[tuple[int, ...], ...], dict[str, Any]] = {}
    for name in runs[0].metrics:
        steps = _shared_steps(runs, name)
        chunks = _chunks(steps, points)
        group = groups.setdefault(chunks, {**_axes(runs, [chunk[-1] for chunk in chunks]), "values": {}, "spread": {}})
        values = [[mean(run.metrics[name][step] for step in chunk) for chunk in chunks] for run in runs]
        if len(runs) == 1:
            group["values"][name] = [_short(value) for value in values[0]]
            continue
        folded = [spread(column) for column in zip(*values, strict=True)]
        group["values"][name] = [_short(s and s.mean) for s in folded]
        group["spread"][name] = [_short(s and s.deviation) for s in folded]
    return {"setting": number, "curves": [group for group in groups.values() if group["steps"]]}


def _shared_steps(runs: Sequence[Run], name: str) -> list[int]:
    """The steps at which all runs have the metric."""
    return sorted(set.intersection(*(set(run.metrics.get(name, {})) for run in runs)))


def _chunks(steps: list[int], points: int) -> tuple[tuple[int, ...], ...]:
    """Neighbouring steps that become one point, their mean at the last of them, if there are more steps than points."""
    size = math.ceil(len(steps) / points)
    return tuple(tuple(steps[i : i + size]) for i in range(0, len(steps), max(size, 1)))


def _axes(runs: Sequence[Run], steps: list[int]) -> dict[str, Any]:
    """The three axes; null where a run does not tell its tokens or its seconds."""
    tokens = [runs[0].tokens_at(step) for step in steps]
    clocks = [[run.seconds_at(step) for run in runs] for step in steps]
    seconds = [None if None in times else mean(times) for times in clocks]
    return {
        "steps": steps,
        "tokens": None if None in tokens else [round(value) for value in tokens if value is not None],
        "seconds": None if None in seconds else [_short(value) for value in seconds],
    }


def _short(value: float | None) -> float | None:
    """Five digits: the page is a third as large."""
    return None if value is None else float(f"{value:.5g}")
