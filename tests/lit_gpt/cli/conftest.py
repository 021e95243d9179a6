"""What tests of the command line share: the rows of a run, its files, a refusal, a run that looks killed."""

import csv
import json
from pathlib import Path

import pytest

from datamodules.errors import UserError
from lit_gpt.cli.lightning_cli import run


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """What a refused command must leave as it was (TensorBoard may open one more file)."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {path.name: path.read_bytes() for path in files}


def refused(verb: str, *flags: str) -> str:
    with pytest.raises(UserError) as caught:
        run(verb, list(flags))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unfinished(folder: Path) -> Path:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"finished": False}))
    return folder / "config.yaml"
