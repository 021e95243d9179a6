"""What a run logs besides its metrics: the figures before the first step, samples, artifacts."""

import csv
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Fit = Callable[..., Path]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_times(folder: Path) -> list[dict[str, str]]:
    timed = ("tokens_per_second", "step_seconds", "data_wait", "peak_memory")
    return [{k: v for k, v in row.items() if not any(word in k for word in timed)} for row in rows(folder)]


def test_the_start_is_evaluated_and_changes_nothing_else(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--model.config.init", "gpt2", "--model.config.dropout", "0.3")
    plain = fit(*flags)
    capsys.readouterr()
    started = fit(*flags, "--val_at_start", "true")
    assert "step 0  val" in capsys.readouterr().out
    first, *others = without_times(started)
    assert first["step"] == "0"
    symbols = torch.load(started / "checkpoints" / "last.ckpt")["lit_gpt"]["config"]["vocab_size"]
    assert float(first["val/loss"]) == pytest.approx(math.log(symbols), rel=0.01)
    assert float(first["train_eval/loss"]) == pytest.approx(math.log(symbols), rel=0.01)
    for one, two in zip(without_times(plain), others, strict=True):
        assert {k: two[k] for k in one} == one
    assert json.loads((started / "summary.json").read_text())["best"]["step"] > 0


def test_the_start_is_not_evaluated_again_by_a_resumed_run(fit: Fit) -> None:
    flags = ("--val_at_start", "true", "--model.optimizer.schedule", "constant")
    folder = fit(*flags)
    fit(*flags, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--trainer.max_steps", "9")
    assert [row["step"] for row in rows(folder) if row["val/loss"]] == ["0", "3", "6", "9"]


def test_samples_keep_their_turns_when_a_run_resumes(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--samples.every_n_validations", "2", "--model.optimizer.schedule", "constant")
    folder = fit(*flags, "--trainer.max_steps", "9")
    assert capsys.readouterr().out.count("sample: ") == 1  # after 3, 6 and 9 steps: at 6
    fit(*flags, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--trainer.max_steps", "12")
    printed = capsys.readouterr().out
    assert printed.count("sample: ") == 1  # at 12
    kept = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [sample["step"] for sample in kept] == [6, 12]
    assert f"sample: {kept[1]['text']!r}" in printed


@pytest.mark.parametrize("kind", ["muon", "torch.optim.NAdam"])
def test_each_group_of_parameters_has_its_own_curve_of_rates(kind: str, fit: Fit) -> None:
    rates = ("--model.optimizer.lr", "0.004", "--model.optimizer.group_lr", "{matrices: 0.02}")
    folder = fit("--model.optimizer.kind", kind, *rates, "--model.optimizer.schedule", "linear", "--preset", "gpt2")
    logged = rows(folder)
    assert {name for name in logged[0] if name.startswith("lr")} == {"lr/matrices", "lr/embeddings", "lr/vectors"}
    for name, peak in (("matrices", 0.02), ("embeddings", 0.004), ("vectors", 0.004)):
        curve = [float(row[f"lr/{name}"]) for row in logged if row[f"lr/{name}"]]
        assert curve == pytest.approx([peak * (1 - step / 6) for step in range(6)])


@pytest.fixture
def offline_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Runs of Weights & Biases that this test made."""
    wandb = pytest.importorskip("wandb", reason="the wandb extra is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    made: list[Any] = []
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: made.append(init(**options)) or made[-1])
    return made


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb")
def test_wandb_gets_metrics_generations_and_artifacts(fit: Fit, offline_runs: list[Any], tmp_path: Path) -> None:
    logger = ["--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true"]
    folder = fit(*logger, "--trainer.logger.save_dir", str(tmp_path))
    (run,) = offline_runs
    last = json.loads((folder / "summary.json").read_text())["final"]
    assert run.summary["val/loss"] == pytest.approx(last["val/loss"], abs=1e-6)
    assert run.summary["trainer/global_step"] == 6
    tables = [json.loads(path.read_text()) for path in Path(run.dir).rglob("generations_*.table.json")]
    assert sorted([row[0] for row in table["data"]] for table in tables) == [[3], [3, 6]]
    assert all(table["columns"] == ["step", "text"] for table in tables)
    importlib.import_module("wandb").teardown()  # waits until everything is on the disk
    stored = next(tmp_path.rglob("run-*.wandb")).read_bytes()
    assert f"tokenizer-{run.id}".encode() in stored
    assert f"model-{run.id}".encode() in stored
