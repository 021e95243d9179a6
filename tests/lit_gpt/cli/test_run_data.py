"""validate, test and predict read the text that the checkpoint's run was trained on, and say so."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import datamodules
from datamodules.errors import UserError
from datamodules.options import described
from lit_gpt import checkpoint
from lit_gpt.cli.lightning_cli import LitCLI, run
from tests.conftest import TINY
from tests.lit_gpt.cli.conftest import rows

Fit = Callable[..., Path]

OWN = """
from datamodules import CharDataModule

class Mine(CharDataModule):
    pass
"""


TITLES = ("--data", "HeadlinesDataModule", "--data.tokenizer", "byte", "--data.val_documents", "20")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on titles, with options of its data that are no defaults; and the text, beside its logs."""
    home = tmp_path_factory.mktemp("once")
    lines = (f"the model {n * n % 89} reads a token and stops" for n in range(160))
    (home / "titles.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        run("fit", [*TINY, *TITLES, "--data.source", "titles.txt"])
    return home / "logs" / "run" / "version_0"


@pytest.fixture
def trained(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That run, in another folder than it was started in."""
    monkeypatch.chdir(tmp_path)
    return once


@pytest.fixture
def titles(once: Path) -> Path:
    """The text of the run."""
    return once.parents[2] / "titles.txt"


def scored(folder: Path, *flags: str, verb: str = "validate") -> dict[str, float]:
    """What a verb finds that is told the checkpoint alone, and flags."""
    path = str(folder / "checkpoints" / "last.ckpt") if folder.is_dir() else str(folder)
    cli = LitCLI(verb, ["--ckpt_path", path, "--trainer.accelerator", "cpu", *flags])
    return {name: round(float(value), 6) for name, value in cli.trainer.callback_metrics.items()}


def at_the_end(folder: Path) -> dict[str, float]:
    """The last validation of the run itself."""
    last = [row for row in rows(folder) if row["val/loss"]][-1]
    return {k: round(float(v), 6) for k, v in last.items() if v and k.startswith(("val/", "train_eval/"))}


def test_a_checkpoint_is_scored_on_its_own_text_from_anywhere(
    trained: Path, titles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert scored(trained) == pytest.approx(at_the_end(trained), rel=1e-5)
    assert f"scoring the val split of {titles}, as in the run\n" in capsys.readouterr().out
    scored(trained, verb="predict")
    assert f"scoring the val split of {titles}, as in the run\nwrote 20 documents" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed is -1: give at least 0"):
        scored(trained, "--data.seed", "-1")
    with pytest.raises(UserError, match="there is no test split"):
        scored(trained, verb="test")


def test_options_that_are_typed_win_one_by_one(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text("another model reads it\nthe token stops\n" * 9)
    capsys.readouterr()
    found = scored(trained, "--data.val_documents=30", "--data.deduplicate", "false")
    assert found != pytest.approx(at_the_end(trained))
    assert "not the text and split of the run" in capsys.readouterr().out
    scored(trained, "--data.test_source", "other.txt", verb="test")
    assert re.search(r"scoring the test split of other.txt, not the text", capsys.readouterr().out)
    scored(trained, "--data.predict_source", "other.txt", verb="predict")
    out = capsys.readouterr().out
    assert "scoring other.txt, a text of its own beside the run's" in out
    assert "wrote 18 documents" in out


def test_a_class_that_is_typed_leaves_the_run_s_data_aside(
    trained: Path, titles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    scored(trained, "--data", "BPEDataModule", "--data.tokenizer", "byte", "--data.source", str(titles))
    assert "not the text and split of the run" in capsys.readouterr().out


def test_a_config_alone_does_not_change_the_text_and_is_told(
    trained: Path, titles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("some.yaml").write_text("data: {class_path: datamodules.CharDataModule, init_args: {source: embedded}}\n")
    Path("same.yaml").write_text(f"data: {{source: {titles}}}\n")  # of the default class, without a word of its own
    capsys.readouterr()
    assert scored(trained, "--config", "some.yaml") == pytest.approx(at_the_end(trained), rel=1e-5)
    out = capsys.readouterr().out
    assert "data as in the run (class datamodules.headlines.HeadlinesDataModule), not as in --config" in out
    assert "--data CLASS changes it\n" in out
    scored(trained, "--config", "some.yaml", "--data.source", str(titles), "--config", "same.yaml")
    assert "--config (source" not in capsys.readouterr().out
    scored(trained, "--config", "same.yaml")
    with contextlib.chdir(titles.parent):
        scored(trained, "--config", str(trained / "config.yaml"))
    assert "not as in --config" not in capsys.readouterr().out


def test_a_text_that_is_gone_is_asked_for(trained: Path, titles: Path, tmp_path: Path) -> None:
    moved, config = tmp_path / "moved.txt", trained / "config.yaml"
    titles.rename(moved)
    config.rename(tmp_path / "config.yaml")  # nobody reads it
    try:
        with pytest.raises(UserError) as caught:
            scored(trained)
        assert str(caught.value) == f"the run's source {str(titles)!r} is gone: give the text as --data.source."
        assert scored(trained, "--data.source", "moved.txt") == pytest.approx(at_the_end(trained), rel=1e-5)
    finally:
        moved.rename(titles)
        (tmp_path / "config.yaml").rename(config)


def test_a_file_chooses_no_class_that_is_not_ours(
    fit: Fit, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_data.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = fit("--data", "own_data.Mine")
    with pytest.raises(UserError, match=r"data was a own_data\.Mine, a class that no file may choose"):
        scored(folder)
    assert scored(folder, "--data", "own_data.Mine", "--data.source", str(text)) == pytest.approx(at_the_end(folder))
    assert scored(folder, "--config", str(folder / "config.yaml")) == pytest.approx(at_the_end(folder))
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    stored["lit_gpt"]["data"] = {"class_path": "datamodules.char.os.system", "init_args": {}}
    torch.save(stored, "forged.ckpt")
    with pytest.raises(UserError, match="a class that no file may choose"):
        scored(Path("forged.ckpt"))


def test_data_is_described_by_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    found = described(
        datamodules.BPEDataModule(["a.txt", "embedded"], tokenizer="byte", block_size=8, val_source=Path("a.txt"))
    )
    assert found == {
        "class_path": "datamodules.bpe.BPEDataModule",
        "init_args": {
            **{"source": [str(tmp_path / "a.txt"), "embedded"], "val_source": str(tmp_path / "a.txt")},
            **{"tokenizer": "byte", "block_size": 8},
        },
    }
    assert described(datamodules.CharDataModule()) == {"class_path": "datamodules.char.CharDataModule", "init_args": {}}
    assert described(None) is None
    assert described(object()) == {"class_path": "builtins.object", "init_args": None}


def test_a_checkpoint_with_an_option_of_a_newer_data_is_refused(trained: Path) -> None:
    stored = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    stored[checkpoint.KEY]["data"]["init_args"]["shiny"] = 1
    torch.save(stored, "newer.ckpt")
    with pytest.raises(UserError, match=r"written by a newer lit-gpt \(option shiny\): upgrade lit-gpt"):
        scored(Path("newer.ckpt"))
