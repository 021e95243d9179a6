"""Questions that learners of GPTs ask, each answered by a measurement: writes docs/questions.md.

    python -m benchmarks.questions [--only NAME] [--quick]

Every experiment prints its table as it goes. Results are kept in docs/questions.json, so one of them can be repeated
alone; the page is benchmarks/questions/page.md with the figures filled in. `--quick` runs each in seconds and writes
nothing unless `--out` names a folder: its figures mean nothing.
"""

import argparse
import json
import logging
import platform
import re
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.questions.experiments import EXPERIMENTS, Finding
from benchmarks.questions.runs import QUICK, Budget

DOCS = Path(__file__).parents[2] / "docs"
TEMPLATE = Path(__file__).with_name("page.md")
SECTION = re.compile(r"^<!-- (\w+) -->\n", re.MULTILINE)

Results = dict[str, dict[str, Any]]


def measure(name: str, budget: Budget) -> dict[str, Any]:
    """Run one experiment; what is kept of it."""
    print(f"\n{name}", flush=True)
    torch.manual_seed(0)
    start, cpu = time.perf_counter(), time.process_time()
    finding: Finding = EXPERIMENTS[name](budget)
    figures = {"seeds": budget.seeds, "steps": budget.steps, **finding.figures}
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{seconds:.0f} s ({cpu:.0f} s of CPU)", flush=True)
    for claim, holds in finding.claims.items():
        print(f"{'seen' if holds else 'NOT SEEN'}: {claim}", flush=True)
    return {
        "command": f"python -m benchmarks.questions --only {name}",
        "versions": f"CPython {platform.python_version()}, torch {torch.__version__}",
        "figures": {key: round(value, 6) for key, value in figures.items()},
        "table": finding.table.markdown(),
        "claims": finding.claims,
    }


def render(results: Results) -> str:
    """The page. A question without a result says how to get one; claims that were not seen are listed."""
    head, *parts = SECTION.split(TEMPLATE.read_text(encoding="utf-8"))
    sections = (_section(name, text, results) for name, text in zip(parts[::2], parts[1::2], strict=True))
    return head + "".join(sections)


def _section(name: str, text: str, results: Results) -> str:
    if name not in results:
        title = text.split("\n", 1)[0]
        return f"{title}\n\nNot measured yet: `python -m benchmarks.questions --only {name}`.\n\n"
    result = results[name]
    filled = text.format(**result["figures"], table=result["table"])
    missed = [claim for claim, holds in result["claims"].items() if not holds]
    doubt = f"**Not seen in this measurement:** {' '.join(missed)}\n\n" if missed else ""
    return f"{filled}{doubt}    {result['command']}\n\n({result['versions']})\n\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=EXPERIMENTS, help="measure this one and keep the others' results")
    parser.add_argument("--quick", action="store_true", help="show that everything runs, in seconds")
    parser.add_argument("--out", type=Path, help="folder of questions.md and questions.json; docs unless --quick")
    options = parser.parse_args(arguments)
    _quieten_lightning()
    folder = options.out or (None if options.quick else DOCS)
    results = _read(folder)
    for name in [options.only] if options.only else EXPERIMENTS:
        results[name] = measure(name, QUICK if options.quick else Budget())
        if folder is not None:
            _write(folder, results)


def _read(folder: Path | None) -> Results:
    path = folder / "questions.json" if folder else None
    results: Results = json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
    return results


def _write(folder: Path, results: Results) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (folder / "questions.json").write_text(text, encoding="utf-8")
    (folder / "questions.md").write_text(render(results), encoding="utf-8")


def _quieten_lightning() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


if __name__ == "__main__":
    main()
