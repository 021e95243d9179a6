"""validate, test and predict over the files of a run."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.errors import UserError
from lit_gpt import LitGPT, checkpoint
from lit_gpt.cli.lightning_cli import run
from lit_gpt.commands import run as run_command
from tests.lit_gpt.cli.conftest import refused

Fit = Callable[..., Path]
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_the_other_verbs_take_the_config_of_fit(verb: str, fit: Fit, text: Path) -> None:
    folder = fit("--data.test_fraction", "0.1")
    Path("fit.yaml").write_text(
        "name: x\nlogs_dir: y\nresume: auto\nearly_stopping: 2\nval_at_start: true\nsamples: {prompt: T}\n"
        "checkpoint: {every_n_steps: 5}\npredictions: {path: p.jsonl}\ntrainer: {max_steps: 5}\n"
    )
    more = ["--data.source", str(text), "--data.test_fraction", "0.1", "--trainer.accelerator", "cpu"]
    for config in ("fit.yaml", str(folder / "config.yaml")):
        run(verb, ["--config", config, "--ckpt_path", str(folder / "checkpoints" / "best.ckpt"), *more])
    assert {path.name for path in Path().iterdir()} - {"p.jsonl"} == {
        "logs",
        text.name,
        "fit.yaml",
    }


def test_options_of_fit_are_refused_as_flags_of_other_verbs() -> None:
    assert refused("validate", "--name", "x").startswith("--name is no option of validate")
    assert refused("test", "--checkpoint.every_n_steps=3").startswith("--checkpoint.every_n_steps is no option of test")


def test_the_readme_s_validation(fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The line in the README, but for the checkpoint's place and a piece of the split."""
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if "lit_gpt validate" in line)
    flags = line.split("lit_gpt validate ")[1].split("#")[0].split()
    folder = fit("--data.source", "embedded")
    monkeypatch.chdir(ROOT)
    flags[-1] = str(folder / "checkpoints" / "best.ckpt")
    run("validate", [*flags, "--trainer.limit_val_batches", "2", "--trainer.accelerator", "cpu"])
    assert "val " in capsys.readouterr().out


def test_a_run_s_folder_stands_for_its_best_checkpoint(
    fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit("--model.optimizer.lr", "0.01", "--data.test_fraction", "0.1")
    best, last = (folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    assert checkpoint.file_of(folder) == checkpoint.file_of(folder / "checkpoints") == best
    run_command("generate", ["--ckpt_path", str(folder), "--prompt", "the ", "--max_new_tokens", "3"])
    run_command("export", ["--ckpt_path", str(folder), "--out", "out", "--format", "safetensors"])
    for verb in ("validate", "test", "predict"):
        run(verb, ["--ckpt_path", str(folder), "--data.source", str(text), "--data.test_fraction", "0.1"])
    fit("--model.init_from", str(folder), "--name", "other", "--data.test_fraction", "0.1")
    assert f"starting from the weights of {folder}" in capsys.readouterr().out
    best.unlink()
    assert checkpoint.file_of(folder) == last
    last.unlink()
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.read(folder)


def test_sigterm_while_a_checkpoint_is_scored_is_no_success(
    fit: Fit, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--ckpt_path", str(fit()), "--data.source", str(text), "--trainer.accelerator", "cpu"]
    monkeypatch.setattr(LitGPT, "validation_step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        run("validate", flags)
    assert left.value.code == 128 + signal.SIGTERM
