"""--resume auto: which run goes on, and why a new one starts."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.errors import UserError
from lit_gpt import LitGPT
from tests.lit_gpt.cli.conftest import contents, rows, unfinished

Fit = Callable[..., Path]


def test_a_run_that_goes_on_with_another_text_says_so(fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "the data's text or its splits are not those of the run so far: the run continues with the new ones\n"
    folder = fit()
    unfinished(folder)
    fit("--resume", "auto", "--trainer.max_steps", "7")
    assert told not in capsys.readouterr().out
    unfinished(folder)
    text.write_text(text.read_text() + "the model stops.")
    assert fit("--resume", "auto", "--trainer.max_steps", "8") == folder
    assert told in capsys.readouterr().out


def test_a_run_killed_after_its_last_checkpoint_is_finished_by_a_resume(fit: Fit) -> None:
    folder = fit()
    finished = json.loads((folder / "summary.json").read_text())
    killed = {**finished, "finished": False, "steps": 3, "tokens": 5, "best": {}}
    (folder / "summary.json").write_text(json.dumps(killed))
    metrics = (folder / "metrics.csv").read_bytes()
    assert fit("--resume", "auto") == folder
    resumed = json.loads((folder / "summary.json").read_text())
    timed = ("training_seconds", "validation_seconds", "tokens_per_second")  # up to the checkpoint, not to the end
    assert {k: v for k, v in resumed.items() if k not in timed} == {k: v for k, v in finished.items() if k not in timed}
    assert (folder / "metrics.csv").read_bytes() == metrics


def test_fewer_steps_than_a_killed_run_has_done_are_refused(fit: Fit) -> None:
    folder = fit()
    unfinished(folder)
    before = contents(folder)
    with pytest.raises(UserError, match=r"already at step 6: raise --trainer\.max_steps, which is 4\."):
        fit("--resume", "auto", "--trainer.max_steps", "4")
    assert contents(folder) == before


def test_a_run_that_time_stopped_goes_on(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: clock.now))
    learn = LitGPT.training_step

    def slowly(*given: Any) -> torch.Tensor:
        clock.now += 60
        return learn(*given)

    monkeypatch.setattr(LitGPT, "training_step", slowly)
    folder = fit("--trainer.max_time", "00:00:02:30", "--trainer.val_check_interval", "5")
    assert [row["step"] for row in rows(folder) if row.get("val/loss")] == ["3"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["finished"], summary["steps"], summary["final"]["step"]) == (False, 3, 3)
    more = "to resume from step 3: the same command with --resume auto and a longer --trainer.max_time\n"
    assert more in capsys.readouterr().out
    with pytest.raises(UserError, match=r"already at step 3 after the whole of --trainer\.max_time"):
        fit("--resume", "auto", "--trainer.max_time", "00:00:02:30")
    assert fit("--resume", "auto", "--trainer.max_time", "00:01:00:00") == folder
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["finished"], summary["steps"]) == (True, 6)
    assert more not in capsys.readouterr().out


def test_resume_auto_says_why_it_starts_anew(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--resume", "auto")
    assert "a new run starts" not in capsys.readouterr().out
    fit("--resume", "auto")
    first, second = (os.path.join("logs", "run", f"version_{i}") for i in (0, 1))
    more = f"(--ckpt_path {first} with more steps resumes it)"
    assert f"{first} is finished: a new run starts in {second} {more}\n" in capsys.readouterr().out


def test_resume_auto_goes_on_with_smaller_micro_batches(fit: Fit) -> None:
    flags = ("--resume", "auto", "--model.optimizer.schedule", "constant")
    folder = fit(*flags)
    unfinished(folder)
    assert fit(*flags, "--data.micro_batch_size", "4", "--trainer.max_steps", "8") == folder
    assert json.loads((folder / "summary.json").read_text())["steps"] == 8


def test_resume_auto_names_the_option_that_differs(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished(fit())
    fit("--resume", "auto", "--model.optimizer.lr", "0.5", "--data.seed", "3")
    reason = "(data.init_args.seed is null there, 3 here and 1 more)"
    assert f"has another configuration {reason}: a new run starts in" in capsys.readouterr().out


def test_a_run_from_before_an_option_goes_on_where_the_option_has_its_default(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    config = unfinished(fit())
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "attention_gate:" not in line))
    fit("--resume", "auto", "--model.config.attention_gate", "true")
    reason = "(model.init_args.config.attention_gate is false there, true here)"
    assert f"has another configuration {reason}" in capsys.readouterr().out
    shutil.rmtree(Path("logs", "run", "version_1"))
    assert fit("--resume", "auto", "--trainer.max_steps", "8") == config.parent


def test_a_run_with_options_that_are_gone_is_of_another_version(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    config = unfinished(fit())
    config.write_text(config.read_text().replace("attention_gate:", "attention_door:"))
    fit("--resume", "auto", "--data.seed", "3")
    assert "is of another version, or its config.yaml is damaged: a new run starts in" in capsys.readouterr().out
