"""Runs configs/reproductions and writes docs/reproductions.md from what they gave.

    python -m benchmarks.reproductions [--only NAME ...] [--steps N] [--minutes M] [--precision P]
                                      [--source TEXT=FILE ...] [--quick]

Each row is a ``fit`` of its own below --logs_dir. A run that was cut (by --steps, --minutes, Ctrl-C or a kill) goes on
the next time and a finished one is not run again, so the same command is given until everything is done. A run that
has read another text than the one now wanted does not count. What each run gave is kept in reproductions.json beside
the page; with ``--steps 0`` nothing is run and the page is written anew.
``--quick`` takes two steps of a narrow model of each config on a little text, in a minute, and keeps nothing.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from benchmarks.reproductions.figures import FIGURES
from benchmarks.reproductions.page import page
from benchmarks.reproductions.results import RESULTS, configured, evaluations, keep, newest, read_run
from benchmarks.reproductions.rows import PROJECTS, ROWS, Row
from datamodules.files import write_text
from datamodules.sources import NAMES, open_source
from lit_gpt.callbacks.run_folder import SUMMARY, read_json

PAGE = "reproductions.md"
#: A leaking validation text: so many stretches, evenly spread, a tenth of the training text.
STRETCHES = 40
_STOPPED = (0, 128 + signal.SIGTERM, -signal.SIGTERM)


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for, then figures and page."""
    options = _options(arguments)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            options.out = options.logs_dir = Path(folder)
            _run_all(options, _run_quickly)
            print((options.out / PAGE).read_text())
    else:
        _check_texts(options)
        _run_all(options, _run)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="two steps each, nothing is kept")
    parser.add_argument("--steps", type=int, help="cut each run at its first evaluation at this step or later")
    parser.add_argument("--minutes", type=float, help="cut each run after so many minutes")
    parser.add_argument("--source", nargs="+", default=[], metavar="TEXT=FILE", help="files instead of downloads")
    parser.add_argument(
        "--precision", help="as fit's --trainer.precision: bf16-mixed is faster where the CPU multiplies it"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page, its figures and results")
    parser.add_argument("--logs_dir", type=Path, default=Path("logs"), help="folder of the runs")
    options = parser.parse_args(arguments)
    options.source = dict(given.split("=", 1) for given in options.source)
    return options


def _check_texts(options: argparse.Namespace) -> None:
    """Stop before the first run when a later one has no text: its config's stand-in has no published figures."""
    texts = {text for name in options.only if (text := ROWS[name].text)}
    missing = sorted(texts - set(NAMES) - set(options.source))
    if missing and options.steps != 0:
        given = " ".join(f"{text}=FILE" for text in missing)
        raise SystemExit(f"{', '.join(missing)} cannot be downloaded by name: add --source {given}.")


def _run_all(options: argparse.Namespace, run: Callable[[Row, argparse.Namespace], None]) -> None:
    for name in options.only:
        if options.steps != 0 and not _finished(ROWS[name], options):
            run(ROWS[name], options)
        folder = newest(options.logs_dir / name)
        if folder and evaluations(folder) and not _stands_in(ROWS[name], options):
            keep(options.out / RESULTS, "runs", name, read_run(ROWS[name], folder))
            _write_page(options)
    for project in PROJECTS:
        if any(_stands_in(row, options) for row in project.rows):
            continue
        for figure in project.figures:
            found = FIGURES[figure](options.logs_dir, options.out)
            if found is not None:
                keep(options.out / RESULTS, "figures", figure, found)
    _write_page(options)


def _write_page(options: argparse.Namespace) -> None:
    write_text(options.out / PAGE, page(read_json(options.out / RESULTS)))


def _finished(row: Row, options: argparse.Namespace) -> bool:
    """Whether the last run has ended, on the text that is wanted now."""
    folder = newest(options.logs_dir / row.name)
    if folder is None or not read_json(folder / SUMMARY).get("finished"):
        return False
    return row.text is None or _same(_source(folder), options.source.get(row.text, row.text))


def _stands_in(row: Row, options: argparse.Namespace) -> bool:
    """Whether the last run has read a text with a name, where its row's comes from a file and has none."""
    folder = newest(options.logs_dir / row.name)
    if options.quick or row.text in (None, *NAMES) or folder is None or not evaluations(folder):
        return False
    return _source(folder).split(":")[0] in NAMES


def _source(folder: Path) -> str:
    return str(configured(folder)["data"]["init_args"]["source"])


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


# ---- one run


def _run(row: Row, options: argparse.Namespace) -> None:
    print(f"== {row.name}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "lit_gpt", "fit", *_fit(row, options), "--resume", "auto"])
    try:
        _cut_when_due(process, row, options)
    finally:  # Ctrl-C reaches fit too, which saves
        process.wait()
    if process.returncode not in _STOPPED:
        raise SystemExit(f"{row.name} failed with status {process.returncode}; see above.")


def _fit(row: Row, options: argparse.Namespace) -> list[str]:
    """The arguments of ``fit``, but for ``--resume``."""
    flags = ["--config", row.path, "--name", row.name, "--logs_dir", str(options.logs_dir), *row.flags]
    if options.precision:
        flags += ["--trainer.precision", options.precision]
    if row.text in options.source:
        flags += ["--data.source", options.source[row.text]]
    if row.leak:
        flags += ["--data.val_source", str(_leaking_text(row, options))]
    return flags


def _cut_when_due(process: "subprocess.Popen[bytes]", row: Row, options: argparse.Namespace) -> None:
    started = time.monotonic()
    while process.poll() is None:
        time.sleep(1)
        late = options.minutes is not None and time.monotonic() - started > 60 * options.minutes
        if late or (options.steps is not None and _last_evaluation(options.logs_dir / row.name) >= options.steps):
            process.terminate()  # fit saves at the end of the step
            return


def _last_evaluation(runs: Path) -> int:
    folder = newest(runs)
    return max((int(row["step"]) for row in evaluations(folder)), default=-1) if folder else -1


def _leaking_text(row: Row, options: argparse.Namespace) -> Path:
    """Stretches of the text that the row trains on, one after the other, in a file."""
    assert row.text is not None
    text = "".join(open_source(options.source.get(row.text, row.text)).documents())
    size = len(text) // (10 * STRETCHES)
    path: Path = options.logs_dir / f"{row.text}_leak.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(text[10 * size * i : 10 * size * i + size] for i in range(STRETCHES)))
    return path


# ---- quickly


def _run_quickly(row: Row, options: argparse.Namespace) -> None:
    from lit_gpt.cli.lightning_cli import run

    text = options.logs_dir / "little.txt"
    if not text.exists():
        write_text(text, next(open_source("embedded").documents())[:60_000])
    sources = {"titles": "embedded_headlines:2000"}
    options.source = {row.text: sources.get(row.text, str(text))} if row.text else {}
    run("fit", [*_fit(row, options), *_little(row)])


def _little(row: Row) -> Iterator[str]:
    """Flags that leave a config its kind and options, but neither its size nor its length."""
    model = yaml.safe_load(Path(row.path).read_text())["model"]
    trainer = {"max_steps": 2, "val_check_interval": 1, "limit_val_batches": 1, "accelerator": "cpu", "devices": 1}
    flags = {f"trainer.{key}": value for key, value in trainer.items()} | {"samples.max_new_tokens": 5}
    if model["class_path"].endswith("GPT"):
        flags["model.config.n_embd"] = 24
    if row.text:
        flags["data.tokens_per_step"] = 2 * model["init_args"]["config"]["block_size"]
    else:
        flags["data.tokenizer"] = "byte"  # GPT-2's would be downloaded
    for name, value in flags.items():
        yield from (f"--{name}", str(value))


if __name__ == "__main__":
    main()
