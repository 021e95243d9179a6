"""What a run's folder goes through: claimed, refused, resumed, finished; and the other verbs over the same files."""

import errno
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.errors import UserError
from datamodules.tokenizers import save_tokenizer, train_tokenizer
from lit_gpt import LitGPT, checkpoint
from lit_gpt.callbacks.run_folder import FOLDER_VARIABLE, RunLock, is_locked, not_resumable
from lit_gpt.cli.lightning_cli import run
from lit_gpt.commands import run as run_command
from tests.conftest import TINY
from tests.lit_gpt.cli.test_cli import rows

Fit = Callable[..., Path]
ROOT = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    """What a refused command must leave as it was (TensorBoard may open one more file)."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {path.name: path.read_bytes() for path in files}


def refused(verb: str, *flags: str) -> str:
    with pytest.raises(UserError) as caught:
        run(verb, list(flags))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the other verbs


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
    assert {path.name for path in Path().iterdir()} - {"predictions.jsonl", "p.jsonl"} == {
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
    flags = line.split("lit_gpt validate ")[1].split()
    folder = fit("--data.source", "embedded")
    monkeypatch.chdir(ROOT)
    flags[-1] = str(folder / "checkpoints" / "best.ckpt")
    run("validate", [*flags, "--trainer.limit_val_batches", "2", "--trainer.accelerator", "cpu"])
    assert "val " in capsys.readouterr().out


# ---- a refused checkpoint


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


def test_a_run_that_goes_on_with_another_text_says_so(fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "the data's text or its splits are not those of the run so far: it goes on with the new ones\n"
    folder = fit()
    unfinished(folder)
    fit("--resume", "auto", "--trainer.max_steps", "7")
    assert told not in capsys.readouterr().out
    unfinished(folder)
    text.write_text(text.read_text() + "the model stops.")
    assert fit("--resume", "auto", "--trainer.max_steps", "8") == folder
    assert told in capsys.readouterr().out


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
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]


# ---- nothing left to do


def test_a_finished_run_is_not_run_again(fit: Fit) -> None:
    folder = fit()
    before = contents(folder)
    with pytest.raises(UserError, match=r"already at step 6: raise --trainer\.max_steps, which is 6\."):
        fit("--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
    assert contents(folder) == before
    assert len(list(folder.parent.iterdir())) == 1


def test_a_run_killed_after_its_last_checkpoint_is_finished_by_a_resume(fit: Fit) -> None:
    folder = fit()
    finished = json.loads((folder / "summary.json").read_text())
    killed = {**finished, "finished": False, "steps": 3, "best": {}}
    (folder / "summary.json").write_text(json.dumps(killed))
    metrics = (folder / "metrics.csv").read_bytes()
    assert fit("--resume", "auto") == folder
    assert json.loads((folder / "summary.json").read_text()) == finished
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
    more = "to go on from step 3: the same command with --resume auto and a longer --trainer.max_time\n"
    assert more in capsys.readouterr().out
    with pytest.raises(UserError, match=r"already at step 3 after the whole of --trainer\.max_time"):
        fit("--resume", "auto", "--trainer.max_time", "00:00:02:30")
    assert fit("--resume", "auto", "--trainer.max_time", "00:01:00:00") == folder
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["finished"], summary["steps"]) == (True, 6)
    assert more not in capsys.readouterr().out


@pytest.mark.parametrize("end", [["--trainer.max_epochs", "2"], ["--early_stopping", "1", "--model.optimizer.lr", "0"]])
def test_a_run_that_its_epochs_or_early_stopping_end_is_finished(end: list[str], fit: Fit) -> None:
    folder = fit("--trainer.max_steps", "99", "--trainer.limit_train_batches", "4", *end)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"]
    assert summary["steps"] < 10


def test_a_run_of_no_steps_is_refused_and_leaves_nothing(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    friendly_error = refused("fit", *TINY, "--data.source", str(text), "--trainer.max_steps", "0")
    assert friendly_error == "already at step 0: raise --trainer.max_steps, which is 0."
    assert not list(Path("logs").iterdir())


def test_resume_auto_says_why_it_starts_anew(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--resume", "auto")
    assert "a new run starts" not in capsys.readouterr().out
    fit("--resume", "auto")
    first, second = (os.path.join("logs", "run", f"version_{i}") for i in (0, 1))
    more = f"(--ckpt_path {first} with more steps goes on with it)"
    assert f"{first} is finished: a new run starts in {second} {more}\n" in capsys.readouterr().out


def unfinished(folder: Path) -> Path:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"finished": False}))
    return folder / "config.yaml"


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[None]:
    """A child that holds the folder until it is killed, and a grandchild that outlives it, as a loader's worker may."""
    ready, tell = os.pipe()
    stay, end = os.pipe()
    child = os.fork()
    if not child:
        try:
            hold = RunLock(folder)
            if os.fork():
                os.write(tell, b"1")
                signal.pause()
            os.close(end)
            os.read(stay, 1)
            hold.release()
        finally:
            os._exit(0)
    os.read(ready, 1)
    yield
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not is_locked(folder)
    for file in (ready, tell, stay, end):
        os.close(file)


def test_a_run_that_is_running_is_not_joined(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit()
    unfinished(folder)
    before = contents(folder)
    longer = ("--trainer.max_steps", "7")
    with held_by_another_process(folder):
        assert fit("--resume", "auto", *longer).name == "version_1"
        assert "version_0 is still running: a new run starts in" in capsys.readouterr().out
        with pytest.raises(UserError, match="version_0 is still running in another process: wait for its end"):
            fit("--ckpt_path", str(folder), *longer)
        assert contents(folder) == before
    shutil.rmtree(folder.with_name("version_1"))
    assert fit("--resume", "auto", *longer) == folder


def test_a_file_system_without_locks_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr("lit_gpt.callbacks.run_folder.fcntl.flock", refuse)
    RunLock(tmp_path)
    assert not is_locked(tmp_path)


def test_other_processes_of_a_run_follow_rank_0(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fit()
    unfinished(folder)
    monkeypatch.setattr("lit_gpt.callbacks.run_folder.rank_zero_only.rank", 1)
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    with held_by_another_process(folder):
        assert not_resumable(folder.parent, {}, lambda _: None) == {folder: None}
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder.with_name("version_1")))
    assert not_resumable(folder.parent, {}, lambda _: None) == {}


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


# ---- the folder


@pytest.mark.parametrize(
    "flags",
    [
        ["--data.source", "nowhere.txt"],
        ["--model.init_from", "nowhere"],
        ["--model.config.vocab_size", "3"],
        ["--trainer.val_check_interval", "0.5"],
    ],
)
def test_a_run_that_never_began_leaves_no_folder(flags: list[str], fit: Fit) -> None:
    with pytest.raises(UserError):
        fit(*flags)
    assert not list(Path("logs").iterdir())
    fit()
    with pytest.raises(UserError):
        fit(*flags)
    assert [path.name for path in Path("logs", "run").iterdir()] == ["version_0"]


def test_without_loggers_a_run_keeps_its_folder(fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit("--trainer.logger", "false")
    assert {path.name for path in Path().iterdir()} == {"logs", text.name}
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "config.yaml", "metrics.csv", "summary.json"}
    unfinished(folder)
    capsys.readouterr()
    fit("--trainer.logger", "false", "--resume", "auto", "--trainer.max_steps", "8")
    assert f"going on with {Path('logs', 'run', 'version_0')}" in capsys.readouterr().out
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] == 8


@pytest.mark.filterwarnings("ignore:You are using `fast_dev_run`")
def test_a_fast_dev_run_writes_into_its_folder_alone(fit: Fit, text: Path) -> None:
    fit("--trainer.fast_dev_run", "true")
    assert {path.name for path in Path().iterdir()} == {"logs", text.name}


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


def test_an_epoch_that_was_cut_has_no_file(fit: Fit) -> None:
    folder = fit("--checkpoint.keep_every_n_epochs", "1")
    assert not list((folder / "checkpoints").glob("epoch_*"))
    folder = fit("--checkpoint.keep_every_n_epochs", "1", "--trainer.limit_train_batches", "3")
    assert [path.name for path in sorted((folder / "checkpoints").glob("epoch_*"))] == [
        "epoch_0001.ckpt",
        "epoch_0002.ckpt",
    ]


@pytest.mark.parametrize("length", [("12", "-1"), ("-1", "3")])
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


def test_sigterm_while_a_checkpoint_is_scored_is_no_success(
    fit: Fit, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--ckpt_path", str(fit()), "--data.source", str(text), "--trainer.accelerator", "cpu"]
    monkeypatch.setattr(LitGPT, "validation_step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        run("validate", flags)
    assert left.value.code == 128 + signal.SIGTERM


OWN = """
import torch
from lightning.pytorch import LightningModule
from lit_gpt import LitGPT

class Own(LitGPT):
    def validation_step(self, *given, **named):
        print("my own scores")
        super().validation_step(*given, **named)

class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        return self.net(batch["input_ids"].float()[..., None]).square().mean()
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)
"""


@pytest.fixture
def own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_classes.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("own_classes")
def test_a_class_of_ones_own_scores_its_checkpoint(fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit("--model", "own_classes.Own")
    capsys.readouterr()
    flags = ["--ckpt_path", str(folder), "--data.source", str(text), "--trainer.accelerator", "cpu"]
    run("validate", ["--model", "own_classes.Own", *flags])
    assert "my own scores" in capsys.readouterr().out
    run("validate", flags)
    assert "my own scores" not in capsys.readouterr().out


@pytest.mark.usefixtures("own_classes")
def test_a_plain_lightning_module_is_trained_and_resumed(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "own_classes.Plain", "--data.source", str(text), "--data.block_size", "16", "--resume", "auto"]
    flags += ["--trainer.accelerator", "cpu", "--checkpoint.monitor", "null"]
    run("fit", [*flags, "--trainer.max_steps", "4"])
    run("fit", [*flags, "--trainer.max_steps", "6", "--ckpt_path", "logs/run/version_0/checkpoints/last.ckpt"])
    stored = torch.load("logs/run/version_0/checkpoints/last.ckpt", weights_only=True)
    assert stored["global_step"] == 6


def test_an_unknown_monitor_keeps_what_was_trained(fit: Fit) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.monitor 'val/los' is no metric of this run"):
        fit("--checkpoint.monitor", "val/los")
    assert checkpoint.read("logs/run/version_0/checkpoints/last.ckpt")["global_step"] == 3


def test_weights_that_are_no_numbers_are_not_saved(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fit()
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    monkeypatch.setattr("lit_gpt.language_model.math.isfinite", lambda _: True)  # as between two logged steps on a GPU
    broken = ["--model.optimizer.kind", "sgd", "--model.optimizer.lr", "1e30", "--trainer.gradient_clip_val", "null"]
    with pytest.raises(
        UserError, match=r"weights are no numbers any more at step \d+: .* with --ckpt_path .*version_0"
    ):
        fit("--ckpt_path", str(folder), "--trainer.max_steps", "30", "--checkpoint.every_n_steps", "8", *broken)
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples.prompt", "\u00e9"], "\u00e9"),
        (["--samples.temperature", "-1"], "samples.temperature is -1.0: give at least 0"),
        (["--samples.every_n_validations", "0"], "samples.every_n_validations is 0: give at least 1"),
        (["--checkpoint.every_n_steps", "0"], "checkpoint.every_n_steps is 0: give at least 1"),
        (
            [
                *("--trainer.val_check_interval", "0.25", "--trainer.check_val_every_n_epoch", "1"),
                *("--data.micro_batch_size", "4"),
            ],
            "val_check_interval 0.25 of an epoch may fall inside a step, which is of 2 micro-batches",
        ),
        (
            ["--trainer.val_check_interval", "00:00:00:01", "--data.micro_batch_size", "4"],
            "val_check_interval by the clock may fall inside a step",
        ),
    ],
)
def test_what_would_fail_at_the_first_validation_is_refused_at_the_start(
    flags: list[str], message: str, fit: Fit
) -> None:
    with pytest.raises(UserError, match=message):
        fit(*flags)
    assert not list(Path().glob("logs/run/*"))


def test_one_process_validates_by_the_clock(fit: Fit) -> None:
    folder = fit("--trainer.val_check_interval", "00:00:00:00", "--trainer.max_steps", "3", "--val_at_start", "false")
    assert [int(row["step"]) for row in rows(folder) if row.get("val/loss")] == [1, 2, 3]


def test_a_run_that_logs_nothing_is_a_run(fit: Fit) -> None:
    assert json.loads((fit("--trainer.log_every_n_steps", "0") / "summary.json").read_text())["finished"]


# ---- what generate is given


class Asked:
    """Stands for a model, and keeps what it is asked for."""

    def __init__(self) -> None:
        self.given: dict[str, object] = {}

    def stream(self, prompt: str, **options: object) -> list[str]:
        self.given = {"prompt": prompt, **options}
        return ["."]


@pytest.mark.parametrize("text", ["# Chapter 1", "~", "null", "[x", "a: b", "'"])
def test_a_prompt_that_looks_like_yaml_is_a_prompt(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    monkeypatch.setattr("lit_gpt.commands.generate.load", lambda *_: asked)
    run_command("generate", ["--ckpt_path", "x", "--prompt", text])
    assert asked.given["prompt"] == text


def test_stop_texts_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    monkeypatch.setattr("lit_gpt.commands.generate.load", lambda *_: asked)
    run_command("generate", ["--ckpt_path", "x", "--prompt", "a", "--stop", "[END, '###']"])
    assert list(asked.given["stop"]) == ["END", "###"]  # type: ignore[call-overload]
    with pytest.raises(UserError, match="stop"):
        run_command("generate", ["--ckpt_path", "x", "--prompt", "a", "--stop", "###"])


def test_standard_input_in_another_encoding_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gpt.commands.generate.load", lambda *_: Asked())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"gr\xfc\xdfe"), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input is not UTF-8"):
        run_command("generate", ["--ckpt_path", "x", "--prompt", "-"])


# ---- starting from weights


def test_weights_of_another_tokenizer_are_refused(fit: Fit, tmp_path: Path) -> None:
    folder = fit()
    letters = (tmp_path / "my text.txt").read_text()
    swapped = tmp_path / "swapped.txt"
    swapped.write_text(letters.replace("t", "q").replace("a", "z"))
    assert len(set(letters)) == len(set(swapped.read_text()))
    with pytest.raises(UserError, match="was trained with another tokenizer than the data's"):
        fit("--model.init_from", str(folder / "checkpoints" / "last.ckpt"), "--data.source", str(swapped))


def test_weights_that_were_exported_keep_the_meaning_of_their_tokens(fit: Fit, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="the hf extra is not installed")
    flags = ("--preset", "gpt2", "--data", "BPEDataModule", "--data.tokenizer", "bpe", "--data.vocab_size", "270")
    folder = fit(*flags)
    run_command("export", ["--ckpt_path", str(folder), "--out", "exported"])
    fit(*flags, "--model.init_from", "exported")
    swapped = tmp_path / "swapped.txt"
    swapped.write_text((tmp_path / "my text.txt").read_text().replace("t", "q").replace("a", "z"))
    with pytest.raises(UserError, match="was trained with another tokenizer than the data's"):
        fit(*flags, "--model.init_from", "exported", "--data.source", str(swapped))


def test_the_same_tokens_under_another_name_are_accepted(fit: Fit, text: Path) -> None:
    folder = fit("--data", "BPEDataModule", "--data.tokenizer", "byte")
    path = folder / "checkpoints" / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    stored["lit_gpt"]["fingerprints"] = {"tokenizer": "of another file of the same tokens"}
    torch.save(stored, "renamed.ckpt")
    again = fit("--data", "BPEDataModule", "--data.tokenizer", "byte", "--model.init_from", "renamed.ckpt")
    assert again.name == "version_1"
