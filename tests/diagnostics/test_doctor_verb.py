"""The verb ``doctor``: its table, its exit status, JSON, and classes of a user's own."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamodules.errors import UserError
from lit_gpt.cli.arguments import with_packaged_configs
from lit_gpt.commands.doctor import DoctorCLI, main
from lit_gpt.diagnostics.doctor import table
from lit_gpt.diagnostics.result import Result

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
CPU = ["--trainer.accelerator", "cpu"]
TINY = [
    *("--model.config.block_size", "16", "--model.config.n_layer", "1", "--model.config.n_head", "2"),
    *("--model.config.n_embd", "16", "--trainer.max_steps", "6", "--data.tokens_per_step", "128", *CPU),
]

LONG = ["--trainer.max_steps", "60"]
#: What the shipped configs are rightly told, as docs/doctor.md explains.
EARNED = {"compare_decoder": ["tokenizer"], "speedrun_cpu": ["causality"]}


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_sound_config_is_a_table_without_failures(
    text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["--config", "configs/char.yaml", *TINY, *LONG, "--data.source", str(text)])
    shown = capsys.readouterr().out
    assert re.search(r"^pass +first loss +[\d.]+ nats per token, [\d.]+ expected$", shown, re.MULTILINE)
    assert re.search(r"^n/a +documents +rows are not packed", shown, re.MULTILINE)
    assert "FAIL" not in shown
    assert re.search(r"\n0 failed, \d+ passed, \d+ not applicable\n$", shown)
    assert not (tmp_path / "logs").exists(), "it writes nothing"


def test_a_failure_is_status_1_and_json_has_all_of_it(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warmup that is longer than the whole run, though it is not longer than the short one."""
    with pytest.raises(SystemExit) as left:
        main([*TINY, "--data.source", str(text), "--model.optimizer.warmup", "500", "--json", *LONG])
    assert left.value.code == 1
    found = json.loads(capsys.readouterr().out)
    failed = [result for result in found if result["state"] == "FAIL"]
    assert [result["check"] for result in failed] == ["schedule"]
    assert "still rising" in failed[0]["measured"]
    assert all(set(result) == {"check", "state", "measured", "why", "option"} for result in found)


def test_what_cannot_begin_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"gone\.txt"):
        main([*TINY, "--data.source", "gone.txt"])


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The classes of docs/extending.md."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.py").write_text("\n\n".join(code), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    del sys.modules["mine"]


@pytest.mark.usefixtures("mine")
def test_classes_of_ones_own_pass() -> None:
    arguments = ["--model", "mine.LitCalmGRU", "--data", "mine.SumsWithOdds", "--trainer.max_steps", "40"]
    found = DoctorCLI([*arguments, "--model.optimizer.lr", "0.01", *CPU]).results
    assert not [result for result in found if result.state == "FAIL"], table(found)
    assert sum(result.state == "pass" for result in found) > 25


@pytest.mark.slow
@pytest.mark.usefixtures("mine")
def test_a_gru_that_ignores_documents_is_named(text: Path) -> None:
    data = ["--data", "HeadlinesDataModule", "--data.source", str(text), "--data.tokenizer", "char"]
    found = DoctorCLI(
        ["--model", "mine.LitGRU", *data, "--data.tokens_per_step", "256", "--trainer.max_steps", "6", *CPU]
    )
    assert [result.check for result in found.results if result.state == "FAIL"] == ["documents"], table(found.results)


def test_training_imports_no_diagnostics() -> None:
    for path in (ROOT / "lit_gpt").rglob("*.py"):
        if path.parent.name in ("diagnostics", "commands"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if str(name).startswith("lit_gpt.diagnostics")], path


@pytest.mark.slow
@pytest.mark.timeout(900)  # GPT-2's vocabulary, where its ranks are on this machine
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_false_alarm_on_a_shipped_config(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # a config may name a text of this repository
    below = ["--config", str(ROOT / "configs" / "char.yaml")] if path.parent.name == "debug" else []
    found = DoctorCLI(with_packaged_configs([*below, "--config", str(path), *CPU])).results
    failed = [result.check for result in found if result.state == "FAIL"]
    assert failed == EARNED.get(path.stem, []), table(found)


def test_a_long_line_stays_in_its_column() -> None:
    words = "logits differ by up to 1.2e-06 behind two pads, and by nothing more than that, in both"
    lines = table([Result("padding", "FAIL", words, why="a reason of some words", option="nothing")]).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith(" " * 15) for line in lines[1:])
    assert " ".join(line[15:] for line in lines).startswith(words)
