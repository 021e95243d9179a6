"""The verb sweep: the commands that it prints, and a whole sweep up to the report's table."""

import csv
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.errors import UserError
from lit_gpt.cli.lightning_cli import run as run_trainer
from lit_gpt.commands import run
from lit_gpt.diagnostics.sweep import commands, values_of
from tests.conftest import TINY

Capture = pytest.CaptureFixture[str]


def test_a_sweep_ends_in_a_table_with_mean_and_spread(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ["--set", "model.config.n_embd=16,32", "--set", "seed_everything=1,2,3"]
    run("sweep", [*sets, "--name", "my run", *TINY, "--data.source", str(text)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", "lit_gpt", "fit"]
        run_trainer("fit", words[4:])
    capsys.readouterr()
    run("report", ["logs", "--table", "--steps", "3,6"])
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    for width in (16, 32):
        folders = sorted((tmp_path / "logs" / f"my_run-n_embd{width}").iterdir())
        assert len(folders) == 3
        start = next(i for i, row in enumerate(rows) if row[0] == f"my_run-n_embd{width}")
        state = torch.load(folders[0] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        parameters = sum(tensor.numel() for name, tensor in state.items() if name.startswith("net."))
        assert rows[start][1:3] == [f"{parameters:,}", "3"]
        assert rows[start + 2][0] == "6"
        for row, split, step in ((start, "train_eval", 3), (start + 1, "val", 3), (start + 3, "val", 6)):
            for name, scale, digits, place in (("loss", 1, 4, -9), ("top1", 100, 1, -6), ("top5", 100, 1, -3)):
                values = scale * np.array([value_in(folder, f"{split}/{name}", step) for folder in folders])
                expected = [f"{values.mean():.{digits}f}", "±", f"{values.std(ddof=1):.{digits}f}"]
                assert rows[row][place : place + 3 or None] == expected, (row, name)


def value_in(folder: Path, name: str, step: int) -> float:
    """A value of metrics.csv, read by the standard library alone."""
    with (folder / "metrics.csv").open(newline="") as file:
        return next(float(row[name]) for row in csv.DictReader(file) if row[name] and int(row["step"]) == step)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("128,384", ["128", "384"]),
        ("one", ["one"]),
        ("[0.9,0.95],[0.9,0.99]", ["[0.9,0.95]", "[0.9,0.99]"]),
        ("{matrices: 0.1, head: 0.2},{}", ["{matrices: 0.1, head: 0.2}", "{}"]),
        ("'a, b',\"c]\",d", ["a, b", "c]", "d"]),
        ('"it\'s",b', ["it's", "b"]),
        ("['a, b'],null", ["['a, b']", "null"]),
    ],
)
def test_commas_inside_brackets_and_quotes_separate_nothing(text: str, values: list[str]) -> None:
    assert values_of(text) == values


def test_names_tell_the_values_but_not_the_seed(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: base\n")
    sets = {
        "model.optimizer.lr": ["0.1", "-1"],
        "other.lr": ["a b", "c"],
        "data.rows": ["padded"],
        "seed_everything": ["1", "2"],
    }
    lines = list(commands(sets, ["--config", str(config)]))
    assert len(lines) == 8
    assert [line[-1] for line in lines[:3]] == [
        "base-optimizer.lr0.1-other.lra_b",
        "base-optimizer.lr0.1-other.lra_b",
        "base-optimizer.lr0.1-other.lrc",
    ]
    assert lines[0] == [
        *("--config", str(config), "--model.optimizer.lr=0.1", "--other.lr=a b", "--data.rows=padded"),
        *("--seed_everything=1", "--name", "base-optimizer.lr0.1-other.lra_b"),
    ]
    assert lines[-1][2] == "--model.optimizer.lr=-1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.config.n_emb=1,2"], "--model.config.n_emb is unknown: did you mean --model.config.n_embd"),
        (["--set", "model.config.n_embd=16,x"], "--model.config.n_embd cannot be 'x'"),
        (["--set", "seed_everything=1", "--modle.config.n_layer", "2"], "modle"),
        ([], "add --set model.config.n_embd=128,384"),
        (["--set", "seed_everything"], "names no values: write --set"),
        (["--set", "seed_everything=1,"], "names no values: write --set"),
        (["--set", "data.source=it's.txt,b"], "--set ...=it's.txt,b opens a quote or bracket without an end"),
        (["--set", "seed_everything=1", "--set", "seed_everything=2"], "repeats an option or a value"),
        (["--set", "seed_everything=1,1"], "repeats an option or a value"),
        (["--set"], "names no values: write --set"),
    ],
)
def test_a_wrong_sweep_prints_no_command(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(UserError, match=message):
        run("sweep", arguments)
    assert not capsys.readouterr().out
