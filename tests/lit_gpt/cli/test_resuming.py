"""A run that goes on from a checkpoint: what is refused, what is accepted, and what is written again."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.errors import UserError
from datamodules.tokenizers import save_tokenizer, train_tokenizer
from lit_gpt import LitGPT, checkpoint
from lit_gpt.cli.lightning_cli import run
from tests.conftest import TINY
from tests.lit_gpt.cli.conftest import contents, refused, rows, unfinished

Fit = Callable[..., Path]


def test_a_refused_resume_leaves_the_run_as_it_was(fit: Fit, text: Path) -> None:
    folder = fit("--checkpoint.keep_every_n_steps", "3")
    before = contents(folder)
    flags = [*TINY, "--data.source", str(text), "--trainer.max_steps", "9", "--model.config.n_embd", "32"]
    flags += ["--ckpt_path", str(folder / "checkpoints" / "step_000003.ckpt"), "--model.config.norm", "layernorm"]
    assert refused("fit", *flags) == (
        "the checkpoint has n_embd 16, norm rmsnorm, not n_embd 32, norm layernorm: set --model.config.n_embd 16 "
        "--model.config.norm rmsnorm, or start a new run without --ckpt_path."
    )
    assert contents(folder) == before


def test_a_resume_under_what_changes_no_tensor_is_accepted(fit: Fit) -> None:
    folder = fit()
    fit("--ckpt_path", str(folder), "--trainer.max_steps", "7", "--model.config.dropout", "0.1")
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] == 7


def test_a_resume_with_other_shapes_names_what_shapes_them(fit: Fit) -> None:
    learned = ["--preset", "gpt2", "--trainer.max_steps", "7"]
    folder = fit(*learned)
    with pytest.raises(UserError, match=r"has block_size 16, not block_size 32: set --model\.config\.block_size 16"):
        fit(*learned, "--ckpt_path", str(folder), "--model.config.block_size", "32", "--model.config.dropout", "0.1")


@pytest.mark.parametrize("kind", ["counts", "neural"])
def test_a_bigram_is_resumed(kind: str, fit: Fit, text: Path) -> None:
    flags = ["--model", "LitBigram", "--model.config.block_size", "16", "--model.config.kind", kind]
    flags += ["--data.source", str(text), "--data.tokens_per_step", "128", "--samples.max_new_tokens", "5"]
    flags += ["--trainer.accelerator", "cpu", "--trainer.val_check_interval", "2"]
    run("fit", [*flags, "--trainer.max_steps", "2"])
    run("fit", [*flags, "--trainer.max_steps", "4", "--ckpt_path", str(Path("logs", "run", "version_0"))])
    assert checkpoint.read("logs/run/version_0/checkpoints/last.ckpt")["global_step"] == 4


def test_a_run_is_not_resumed_under_other_tokens(fit: Fit, text: Path) -> None:
    folder = fit()
    swapped = text.with_name("swapped.txt")
    swapped.write_text(text.read_text().replace("t", "q").replace("a", "z"))
    with pytest.raises(UserError, match="the data's tokenizer differs from the one that the network was trained with"):
        fit("--ckpt_path", str(folder), "--data.source", str(swapped), "--trainer.max_steps", "9")


TRAINED = ("--data", "BPEDataModule", "--data.vocab_size", "270", "--data.tokenizer")


@pytest.mark.parametrize("resume", ["auto", "path"])
def test_a_trained_tokenizer_is_not_trained_again_when_a_run_goes_on(
    resume: str, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fit(*TRAINED, "unigram", "--trainer.max_steps", "3")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("another machine's").absolute()))
    other = train_tokenizer("unigram", ["what the next training gives"], 270)
    monkeypatch.setattr("datamodules.prepare.train_tokenizer", lambda *_, **__: other)
    (folder / "summary.json").write_text('{"finished": false}')
    how = ("--resume", "auto") if resume == "auto" else ("--ckpt_path", str(folder))
    assert fit(*TRAINED, "unigram", "--trainer.max_steps", "6", *how) == folder
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] == 6


@pytest.mark.parametrize("other", ["byte", "unigram", "file.json"])
def test_a_run_is_not_resumed_under_a_tokenizer_that_it_cannot_have_trained(other: str, fit: Fit) -> None:
    folder = fit(*TRAINED, "bpe")
    save_tokenizer(train_tokenizer("bpe", ["other words than those"], 270), "file.json")
    options = ("--data.vocab_size", "null") if other != "unigram" else ()
    with pytest.raises(UserError, match="the data's tokenizer differs from the one that the network was trained with"):
        fit(*TRAINED, other, *options, "--ckpt_path", str(folder), "--trainer.max_steps", "9")


def test_a_checkpoint_with_an_option_of_a_newer_version_is_refused(fit: Fit, text: Path) -> None:
    stored = torch.load(fit() / "checkpoints" / "last.ckpt", weights_only=True)
    for part in (stored["lit_gpt"], stored["hyper_parameters"]):
        part["config"]["of_next_month"] = 1
    torch.save(stored, "newer.ckpt")
    told = r"newer lit-gpt \(option of_next_month\): upgrade"
    for use in (checkpoint.load, LitGPT.load_from_checkpoint):
        with pytest.raises(UserError, match=told):
            use("newer.ckpt")
    for verb, flags in (("fit", [*TINY, "--trainer.max_steps", "7"]), ("validate", [])):
        assert re.search(told, refused(verb, "--ckpt_path", "newer.ckpt", "--data.source", str(text), *flags))


def test_a_checkpoint_of_another_network_is_refused(fit: Fit, text: Path) -> None:
    folder = fit()
    flags = ["--model", "LitBigram", "--model.config.block_size", "16", "--data.source", str(text)]
    said = refused("fit", "--ckpt_path", str(folder), *flags, "--trainer.max_steps", "9")
    ours, other = "lit_gpt.module.LitGPT", "lit_gpt.baselines.module.LitBigram"
    assert said == f"the checkpoint is of {ours}, not of {other}: set --model {ours}."


def test_an_accepted_resume_rewrites_what_comes_after_its_step(fit: Fit) -> None:
    flags = ["--checkpoint.keep_every_n_steps", "3", "--model.optimizer.schedule", "constant"]
    folder = fit(*flags)
    flags += ["--ckpt_path", str(folder / "checkpoints" / "step_000003.ckpt"), "--trainer.max_steps", "5"]
    fit(*flags, "--model.optimizer.lr", "0.5")
    assert [int(row["step"]) for row in rows(folder) if row["train/loss"]] == [1, 2, 3, 4, 5]
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["optimizer"]["lr"] == 0.5
    events = EventAccumulator(str(folder / "train")).Reload()
    assert [event.step for event in events.Scalars("metrics/loss")] == [1, 2, 3, 4, 5]


def test_a_finished_run_is_not_run_again(fit: Fit) -> None:
    folder = fit()
    before = contents(folder)
    with pytest.raises(UserError, match=r"already at step 6: raise --trainer\.max_steps, which is 6\."):
        fit("--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
    assert contents(folder) == before
    assert len(list(folder.parent.iterdir())) == 1


def test_a_run_goes_on_from_its_end_when_its_folder_is_given(fit: Fit) -> None:
    folder = fit("--checkpoint.mode", "max", "--model.optimizer.lr", "0.01")
    assert checkpoint.read(folder / "checkpoints" / "best.ckpt")["global_step"] == 3
    fit("--ckpt_path", str(folder), "--trainer.max_steps", "8", "--trainer.val_check_interval", "8")
    assert [int(row["step"]) for row in rows(folder) if row["train/loss"]] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_copy_of_a_checkpoint_starts_a_run_of_its_own(fit: Fit, tmp_path: Path) -> None:
    first = fit()
    before = contents(first)
    shutil.copy(first / "checkpoints" / "last.ckpt", tmp_path / "keep.ckpt")
    second = fit("--ckpt_path", "keep.ckpt", "--trainer.max_steps", "7", "--checkpoint.mode", "max")
    assert second.name == "version_1"
    assert checkpoint.read(second / "checkpoints" / "last.ckpt")["global_step"] == 7
    assert contents(first) == before
    assert not (tmp_path.parent / "config.yaml").exists()


def test_the_config_of_a_resumed_run_starts_a_new_one(fit: Fit) -> None:
    first = fit()
    fit("--ckpt_path", str(first), "--trainer.max_steps", "7")
    before = contents(first)
    run("fit", ["--config", str(first / "config.yaml")])
    assert contents(first) == before
    assert (first.parent / "version_1" / "checkpoints" / "last.ckpt").is_file()


def test_the_config_of_a_run_after_a_checkpoint_goes_on_from_it(fit: Fit) -> None:
    first = fit()
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert not config.keys() & {"ckpt_path", "resume"}
    config["trainer"]["max_steps"] = 7
    Path("longer.yaml").write_text(yaml.safe_dump(config))
    run("fit", ["--ckpt_path", str(first), "--config", "longer.yaml"])
    assert checkpoint.read(first / "checkpoints" / "last.ckpt")["global_step"] == 7
    unfinished(first)
    run("fit", ["--resume", "auto", "--config", "longer.yaml", "--trainer.max_steps", "8"])
    assert checkpoint.read(first / "checkpoints" / "last.ckpt")["global_step"] == 8


def test_a_resume_without_a_monitor_ends_in_its_last_checkpoint(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--ckpt_path", str(fit()), "--trainer.max_steps", "7", "--checkpoint.monitor", "null")
    assert "last.ckpt --prompt" in capsys.readouterr().out


def test_a_run_goes_on_with_another_optimizer_or_says_why_not(fit: Fit) -> None:
    folder = fit("--model.optimizer.kind", "muon")
    fit("--ckpt_path", str(folder), "--trainer.max_steps", "7", "--model.optimizer.kind", "adamw")
    with pytest.raises(UserError, match="the checkpoint's optimizer is adamw, whose state means nothing to torch"):
        fit("--ckpt_path", str(folder), "--trainer.max_steps", "8", "--model.optimizer.kind", "torch.optim.NAdam")


@pytest.mark.parametrize("length", [("12", "-1"), pytest.param(("-1", "3"), marks=pytest.mark.slow)])
def test_a_run_goes_on_exactly_from_files_at_and_after_the_end_of_an_epoch(length: tuple[str, str], fit: Fit) -> None:
    flags = (
        *("--trainer.max_steps", length[0], "--trainer.max_epochs", length[1], "--trainer.limit_train_batches", "4"),
        *("--trainer.val_check_interval", "5", "--model.config.dropout", "0.1", "--model.optimizer.lr", "0.01"),
        *("--checkpoint.keep_every_n_steps", "2", "--checkpoint.keep_every_n_epochs", "1"),
    )
    folder = fit(*flags) / "checkpoints"
    straight = checkpoint.read(folder / "last.ckpt")["state_dict"]
    for name in ("epoch_0001", "step_000004", "step_000006", "epoch_0002"):  # all but the first of resumed runs
        (folder / "last.ckpt").unlink()
        fit("--ckpt_path", str(folder / f"{name}.ckpt"), *flags)
        resumed = checkpoint.read(folder / "last.ckpt")
        assert resumed["global_step"] == 12
        for key, value in straight.items():
            assert torch.equal(value, resumed["state_dict"][key]), (name, key)


def test_a_run_that_goes_on_from_an_earlier_file_leaves_the_other_branch(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fit("--checkpoint.keep_every_n_steps", "3", "--model.optimizer.lr", "0.01")
    files, kept = folder / "checkpoints", checkpoint.read(folder)["state_dict"]
    (files / "step_000006.ckpt").unlink()
    flags = ["--ckpt_path", str(files / "step_000003.ckpt"), "--model.optimizer.lr", "0.1"]
    with monkeypatch.context() as killed:
        killed.setattr(LitGPT, "training_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(*flags)
    assert checkpoint.read(files / "last.ckpt")["global_step"] == 3
    torch.testing.assert_close(checkpoint.read(files / "step_000006.ckpt")["state_dict"], kept)
    fit(*flags)
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert checkpoint.read(files / "best.ckpt")["global_step"] == best["step"] == 6


@pytest.mark.parametrize("log_every", ["4", "0"])
def test_the_summary_of_a_resumed_run_counts_every_step(log_every: str, fit: Fit) -> None:
    flags = ("--trainer.log_every_n_steps", log_every, "--model.optimizer.schedule", "constant")
    folder = fit(*flags)
    before = json.loads((folder / "summary.json").read_text())
    fit(*flags, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--trainer.max_steps", "9")
    after = json.loads((folder / "summary.json").read_text())
    assert (before["tokens"], after["tokens"]) == (6 * 128, 9 * 128)
    assert after["training_seconds"] > before["training_seconds"]
