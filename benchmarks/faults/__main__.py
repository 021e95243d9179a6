"""Is anything lost? Faults are injected, and what comes of each is compared with the right result.

    python -m benchmarks.faults [--quick] [--kinds kills damage disk trust inputs processes] [--only TEXT]

Prints a table of trials by kind, and each failure with the folder that it left. docs/safety.md has the long run's.
"""

import argparse
import gc
import importlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.faults.harness import OLDER, REBUILT, REFUSED, RIGHT, Finding, Trial, run_all

KINDS = ("kills", "damage", "disk", "trust", "inputs", "processes")


def warm_up(folder: Path) -> None:
    """Import everything, and let what is cached on first use be there in every fork."""
    import torch

    from benchmarks.faults.tiny import Setup, write_texts
    from lit_gpt.cli.lightning_cli import run

    torch.set_num_threads(1)
    folder.mkdir()
    back, text = Path.cwd(), write_texts(folder)[0]
    os.chdir(folder)
    run("fit", [*Setup().arguments(text)[1:], "--trainer.max_steps=1"])
    os.chdir(back)
    gc.collect()
    gc.freeze()  # collections in the forks leave these objects alone


def table(findings: list[Finding]) -> list[str]:
    """Markdown: trials by kind and outcome."""
    heads = ("kind", "trials", "passed", "failed", "right result", "refused by name", "rebuilt", "older checkpoint")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    kinds = dict.fromkeys(finding.kind for finding in findings)
    rows = [_row(kind, [finding for finding in findings if finding.kind == kind]) for kind in kinds]
    return [*lines, *rows, _row("all", findings)]


def _row(kind: str, findings: list[Finding]) -> str:
    outcomes = Counter(finding.outcome for finding in findings)
    passed = sum(finding.passed for finding in findings)
    counts = [len(findings), passed, len(findings) - passed, *(outcomes[o] for o in (RIGHT, REFUSED, REBUILT, OLDER))]
    return f"| {kind} | " + " | ".join(f"{count:,}" for count in counts) + " |"


def say(finding: Finding) -> None:
    """A line for each failure, at once."""
    if not finding.passed:
        print(f"FAILED {finding.kind}: {finding.name}: {finding.outcome} [{finding.detail.strip()}]", flush=True)


def main() -> None:
    """Run the kinds, print the table; exit status 1 where a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="some hundred trials, in minutes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of places and moments that are drawn")
    parser.add_argument("--processes", type=int, default=2, help="trials at a time")
    parser.add_argument("--only", default="", help="only trials in whose kind or name this text is")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ.update(XDG_CACHE_HOME=str(root / "cache"), TOKENIZERS_PARALLELISM="false")
    findings: list[Finding] = []
    began = time.monotonic()
    warm_up(root / "warm")
    for kind in options.kinds:
        rng = random.Random(f"{options.seed} {kind}")
        module = importlib.import_module(f"benchmarks.faults.{kind}")
        trials: list[Trial] = list(module.trials(root / "bases", options.quick, rng))
        trials = [trial for trial in trials if options.only in f"{trial.kind}: {trial.name}"]
        findings += run_all(trials, root / kind, options.processes, say)
        print("\n".join(table(findings)), f"\n{time.monotonic() - began:.0f} s so far", flush=True)
    sys.exit(not all(finding.passed for finding in findings))


if __name__ == "__main__":
    main()
