"""The benchmark commands explain themselves, and what they record becomes a page without paths of the machine."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks import report

COMMANDS = ("data", "generate", "gpu", "kills", "memory", "overhead", "scaling")
COMMANDS += ("shakespeare_char", "startup", "time_to_loss", "train_speed")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_command_to_type(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out


def test_recorded_figures_become_a_page_and_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for name, ratio in (("one", 1.5), ("two", 2.5), ("one", 3.5)):
        monkeypatch.setattr(sys, "argv", [name, "--nanogpt", str(tmp_path / "clone"), "--record"])
        options = report.parser(None).parse_args(["--record"])
        report.finish(name, {"ratio": ratio}, [f"- ratio {ratio}"], options)
    page = Path("docs/benchmarks.md").read_text()
    assert "- ratio 3.5" in page
    assert "- ratio 2.5" in page
    assert "- ratio 1.5" not in page
    assert "`python -m benchmarks.one --nanogpt PATH`" in page
    assert str(tmp_path) not in page + Path("docs/benchmarks.json").read_text()
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {"benchmark": "one", "ratio": 3.5}


def test_without_record_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report.finish("one", {"ratio": 1.5}, [], report.parser(None).parse_args([]))
    assert not list(tmp_path.iterdir())
