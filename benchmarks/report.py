"""Where a benchmark leaves its figures, and the page that is made of them.

    python -m benchmarks.report        # docs/benchmarks.md, from the figures that were recorded

Every benchmark prints its result as a line of JSON; with ``--record`` it also keeps it in docs/benchmarks.json, under
its name, with the command, the machine, the versions and the commit, and makes the page anew.
"""

import argparse
import importlib.util
import json
import platform
import re
import statistics
import sys
import textwrap
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.meanings import MEANINGS
from datamodules.files import write_text
from lit_gpt.callbacks.run_folder import read_json
from lit_gpt.origin import package_commit

FIGURES, PAGE = Path("docs/benchmarks.json"), Path("docs/benchmarks.md")
#: Where a benchmark computes that takes a GPU when there is one.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADER = """# Benchmarks

Written by `python -m benchmarks.report` from what the commands below recorded with `--record`. Where there are peers,
ours and theirs are timed in turn on the same machine; ratios are medians over rounds, and only ratios carry over to
another one. A "mark" is what was aimed at before it was measured. The commands are typed in the repository, after
`.venv/bin/pip install -e ".[bench]"`. `--help` explains the options of each; without `--record` they only print.
Sections without a date were recorded by 2026-11-22, before Muon's and dropout's faster ways on a CPU (docs/LOG.md).
"""


#: Options that several benchmarks have, and what each does.
SHARED_OPTIONS = {
    "rounds": "how often everything is timed",
    "threads": "threads of each process that is timed",
}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and ends an option's help with its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if default is None or isinstance(default, bool) or default == argparse.SUPPRESS:
            return action.help or ""
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{action.help} (default: {shown})"


def parser(doc: str | None, **shared: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes.

    Args:
        doc: The description.
        shared: Defaults of the `SHARED_OPTIONS` that this benchmark has.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=_HelpFormatter)
    made.add_argument("--record", action="store_true", help="keep the figures in docs/benchmarks.json")
    for name, default in shared.items():
        made.add_argument(f"--{name}", type=at_least_1, default=default, help=SHARED_OPTIONS[name])
    return made


def at_least_1(text: str) -> int:
    """The number that was typed for an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it cannot be {text!r}: give an integer, at least 1")
    return int(text)


def require(made: argparse.ArgumentParser, *packages: str) -> None:
    """End with one sentence if a package of the `bench` extra is missing."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            made.error(f"the package {name} is missing: pip install -e '.[bench]'")


def finish(
    name: str, figures: dict[str, Any], lines: list[str], options: argparse.Namespace, device: str = "cpu"
) -> None:
    """Print the figures as the last line and, when asked, keep them under ``name`` with ``lines`` for the page.

    Args:
        name: the benchmark's, and more words where it keeps several records.
        figures: what was measured.
        lines: of the page.
        options: of the command line.
        device: ``cpu`` or ``cuda``: which of the machine's processors the figures are of.
    """
    print(json.dumps({"benchmark": name, **figures}))
    if options.record:
        keep(name, figures, lines, device)


def over_seeds(values: list[float]) -> str:
    """The mean of a figure, and its range where there are several seeds."""
    seeds = f" ({len(values)} seeds, {min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{seeds}"


def show(figures: dict[str, Any]) -> None:
    """Print figures as a line of JSON as soon as they are measured, for whoever reads on while others are."""
    print(json.dumps(figures), flush=True)


def keep(name: str, figures: dict[str, Any], lines: list[str], device: str) -> None:
    """Put a record into docs/benchmarks.json and make the page anew."""
    kept = read_json(FIGURES)
    recorded = f"{date.today()}, commit {package_commit() or 'unknown'}"
    kept[name] = {"command": command(name), "machine": machine(device), "recorded": recorded}
    kept[name] |= {"lines": lines, "figures": figures}
    write_text(FIGURES, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    write_text(PAGE, page(kept))


def command(name: str) -> str:
    """What was typed, without paths of this machine."""
    module = name.split(maxsplit=1)[0]  # more words tell records of one command apart
    is_path = re.compile(r".*/(?!\d+$).*|.*[^\d]/.*").fullmatch  # 1/8 is none
    words = [("PATH" if is_path(word) else word) for word in sys.argv[1:] if word != "--record"]
    return " ".join([f"python -m benchmarks.{module}", *words])


def machine(device: str) -> str:
    """Processor, threads and versions, in one line."""
    parts = [torch.cuda.get_device_name() if device == "cuda" else _processor()]
    parts.append(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    parts.append(f"Python {platform.python_version()}, torch {torch.__version__}")
    return ", ".join([*parts, *(f"{p} {v}" for p in ("lightning", "transformers") if (v := _version(p)))])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((n.split(":")[1].strip() for n in names if n.startswith("model name")), platform.processor() or "CPU")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def page(kept: dict[str, Any]) -> str:
    """The page of all that was recorded."""
    parts = [HEADER]
    for name, entry in sorted(kept.items()):
        body = "\n".join(entry["lines"])
        about = ", ".join(entry[key] for key in ("machine", "recorded") if key in entry)
        meaning = textwrap.fill(MEANINGS.get(name.split()[0], ""), 120)
        parts.append(f"## {name}\n\n{meaning}\n\n`{entry['command']}`\n\n{body}\n\n*{about}*\n")
    return "\n".join(parts)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(json.loads(FIGURES.read_text())))
    print(f"wrote {PAGE}")
