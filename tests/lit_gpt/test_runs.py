"""Which run a message names for a path without a checkpoint: one that exists."""

import os
from pathlib import Path

import pytest

from lit_gpt.runs import advice_on_folder, advice_on_missing

RUNS = ("logs/char/version_0", "logs/char/version_1", "logs/titles/version_0")


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs, the later the newer, and one that has saved nothing."""
    monkeypatch.chdir(tmp_path)
    for second, run in enumerate(RUNS):
        file = Path(run, "checkpoints", "last.ckpt")
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (second, second))
    Path("logs/empty/version_0/checkpoints").mkdir(parents=True)


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("logs/chars", "did you mean logs/char/version_1?"),
        ("logs/char/version_7", "did you mean logs/char/version_"),
        ("logs/chr/version_0/checkpoints/best.ckpt", "did you mean logs/char/version_0?"),
        ("log/titles/version_0", "did you mean logs/titles/version_0?"),
        ("best.ckpt", "give a checkpoint or the folder of a run, such as logs/titles/version_0."),
    ],
)
def test_a_path_that_does_not_exist_names_the_nearest_run(path: str, advice: str) -> None:
    assert advice_on_missing(Path(path)).startswith(advice)


def test_a_folder_of_runs_names_its_newest() -> None:
    assert advice_on_folder(Path("logs/char")) == "give the folder of a run, such as logs/char/version_1"
    assert advice_on_folder(Path("logs")) == "give the folder of a run, such as logs/titles/version_0"
    assert advice_on_folder(Path("logs/empty/version_0")).startswith("this run has saved none yet")


def test_where_no_run_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert advice_on_missing(Path("x.ckpt")) == "give a file that `fit` saved."
    assert advice_on_folder(Path()) == "give the folder of a run, logs/NAME/version_N"
