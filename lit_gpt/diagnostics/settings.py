"""Runs of one setting with several seeds: folded to mean and spread, and what differs between settings."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from lit_gpt.diagnostics.runs import Run
from lit_gpt.diagnostics.shown import printable

#: Beginnings of settings that do not make a run another experiment.
_LEFT_OUT = (
    *("seed_everything", "name", "logs_dir", "data.cache_dir", "data.num_workers", "weights_only", "progress."),
    *("samples.", "trainer.logger", "trainer.log_every_n_steps", "trainer.enable_", "trainer.default_root_dir"),
    *("trainer.max_time", "resume", "ckpt_path"),  # when a run was interrupted, and that it went on
)
#: Facts of summary.json that are listed where they differ. A run with another text is another setting.
_FACTS = ("device", "precision", "processes")
UNKNOWN = "\u2013"
_TEXT = {"data": "text and splits (hash)", "tokenizer": "tokenizer (hash)"}


class Spread(NamedTuple):
    """Mean and sample standard deviation (divided by n - 1; None of one value) of n values."""

    mean: float
    deviation: float | None
    n: int

    def shown(self, runs: int, scale: float = 1.0, digits: int = 4) -> str:
        """``2.9715 ± 0.0123``, or the mean alone; with ``(2 of 3)`` if one of three runs has no finite value."""
        deviation = "" if self.deviation is None else f" \u00b1 {scale * self.deviation:.{digits}f}"
        part = "" if self.n == runs else f" ({self.n} of {runs})"
        return f"{scale * self.mean:.{digits}f}{deviation}{part}"


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values that are known and finite. None: there are none."""
    known = _known(values)
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, len(known)) if known else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known and finite. None: there are none."""
    known = _known(values)
    return statistics.fmean(known) if known else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


@dataclass
class Setting:
    """Runs with equal settings apart from the seed.

    Attributes:
        name: A unique name.
        runs: The last finished run of each seed, which are folded. If none is finished: those with the most steps.
        others: The other runs.
    """

    name: str
    runs: list[Run]
    others: list[Run]

    def at(self, metric: str, steps: Iterable[int | None]) -> Spread | None:
        """A metric at one step of each run."""
        pairs = zip(self.runs, steps, strict=True)
        return spread(run.metrics.get(metric, {}).get(step) for run, step in pairs if step is not None)


def last_step(run: Run) -> int | None:
    """The step of the last evaluation, or of the last row of a run without one."""
    steps = run.metrics.get("val/loss") or {step: 0.0 for values in run.metrics.values() for step in values}
    return max(steps, default=None)


def best_step(run: Run) -> int | None:
    """The step of the lowest ``val/loss``."""
    losses = {step: loss for step, loss in run.metrics.get("val/loss", {}).items() if math.isfinite(loss)}
    return min(losses, key=lambda step: (losses[step], step), default=None)


def settings_of(runs: list[Run]) -> list[Setting]:
    """Fold runs, in their order. A run without a config.yaml that can be read is a setting of its own."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run), []).append(run)
    names = _names(list(groups.values()))
    return [_folded(name, group) for name, group in zip(names, groups.values(), strict=True)]


def _key(run: Run) -> object:
    if not run.settings:
        return str(run.folder)
    return tuple(sorted(_compared(run).items())), tuple(_hash(run, name) for name in _TEXT)


def _compared(run: Run) -> dict[str, str]:
    return {name: value for name, value in run.settings.items() if not name.startswith(_LEFT_OUT)}


def _hash(run: Run, name: str) -> str:
    hashes = run.summary.get("hashes")
    return str(hashes.get(name, ""))[:12] if isinstance(hashes, dict) else ""


def _folded(name: str, group: list[Run]) -> Setting:
    finished = [run for run in group if run.state == "finished"]  # early stopping may end seeds at different steps
    furthest = max(run.steps for run in group)
    counted = finished or [run for run in group if run.steps == furthest]
    runs = list({run.seed or str(run.folder): run for run in counted}.values())  # the last of each seed
    return Setting(name, runs, [run for run in group if run not in runs])


def _names(groups: list[list[Run]]) -> list[str]:
    """The name of the runs' folder where no other setting has it, or else the first run's."""
    parents = [{printable(run.folder.absolute().parent.name) for run in group} for group in groups]
    all_parents = [name for own in parents for name in own]
    alone = [len(own) == 1 and all_parents.count(min(own)) == 1 for own in parents]
    return [min(own) if one else group[0].name for group, own, one in zip(groups, parents, alone, strict=True)]


def differences(settings: list[Setting]) -> dict[str, list[str]]:
    """The settings and facts that are not equal in all: name to the value of each setting.

    An option that only some of the classes have is left out if those agree.
    """
    facts = [_facts(setting) for setting in settings]
    names = dict.fromkeys(name for values in facts for name in values)
    table = {name: [values.get(name, UNKNOWN) for values in facts] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1 and not _of_a_class(name, table)}


def _of_a_class(name: str, table: dict[str, list[str]]) -> bool:
    """Whether an option differs only because one class of model or data has it and another has not."""
    values = table[name]
    classes = table.get(f"{name.split('.', maxsplit=1)[0]}.class_path", values)
    agree = len(set(zip(values, classes, strict=True))) == len(set(classes))
    return len(set(values) - {UNKNOWN}) == 1 and agree and len(set(classes)) > 1 and "class_path" not in name


def _facts(setting: Setting) -> dict[str, str]:
    """Settings, hashes and versions of the folded runs. Runs of one setting may differ in the last: ``a | b``."""
    told = [_told(run) for run in setting.runs]
    values = {name: [facts[name] for facts in told if facts.get(name)] for name in chain(*told)}
    return {name: " | ".join(dict.fromkeys(known)) for name, known in values.items() if known}


def _told(run: Run) -> dict[str, str]:
    versions = run.summary.get("versions")
    return {
        **_compared(run),
        **{shown: _hash(run, name) for name, shown in _TEXT.items()},
        **{name: str(run.summary.get(name, "")) for name in _FACTS},
        **(
            {f"version of {name}": str(value) for name, value in versions.items()} if isinstance(versions, dict) else {}
        ),
    }
