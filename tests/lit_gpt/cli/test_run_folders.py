"""What a run's folder goes through: claimed, locked, left by a run that never began, kept by one that fails."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datamodules.errors import UserError
from lit_gpt import checkpoint
from lit_gpt.callbacks.run_folder import FOLDER_VARIABLE, new_run_folder, not_resumable
from lit_gpt.callbacks.run_lock import RunLock, is_locked
from tests.conftest import TINY
from tests.lit_gpt.cli.conftest import contents, refused, rows, unfinished

Fit = Callable[..., Path]


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


def test_a_folder_of_a_run_that_was_killed_before_it_began_is_used_again(tmp_path: Path) -> None:
    killed = os.fork()
    if not killed:
        try:
            lock = new_run_folder(tmp_path)
            os.kill(os.getpid(), signal.SIGKILL if lock.is_locked else signal.SIGTERM)
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == -signal.SIGKILL
    first = new_run_folder(tmp_path)
    second = new_run_folder(tmp_path)  # the first may be at its start too
    assert [lock.folder.name for lock in (first, second)] == ["version_0", "version_1"]
    (tmp_path / "version_1" / "note.txt").write_text("mine")
    second.release()
    assert new_run_folder(tmp_path).folder.name == "version_2"


def test_a_file_system_without_locks_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr("lit_gpt.callbacks.run_lock.fcntl.flock", refuse)
    RunLock(tmp_path)
    assert not is_locked(tmp_path)
    assert [new_run_folder(tmp_path).folder.name for _ in range(2)] == ["version_0", "version_1"]  # none is used again


def test_other_processes_of_a_run_follow_rank_0(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fit()
    unfinished(folder)
    monkeypatch.setenv(FOLDER_VARIABLE, f"{os.getppid()}:{folder}")
    with held_by_another_process(folder):
        assert not_resumable(folder.parent, {}, lambda _: None) == {folder: None}
    monkeypatch.setenv(FOLDER_VARIABLE, f"{os.getppid()}:{folder.with_name('version_1')}")
    assert not_resumable(folder.parent, {}, lambda _: None) == {}


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
    assert {path.name for path in folder.iterdir()} == {
        *("checkpoints", "config.yaml", "metrics.csv", "samples.jsonl", "summary.json")
    }
    unfinished(folder)
    capsys.readouterr()
    fit("--trainer.logger", "false", "--resume", "auto", "--trainer.max_steps", "8")
    assert f"resuming {Path('logs', 'run', 'version_0')}" in capsys.readouterr().out
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] == 8


@pytest.mark.filterwarnings("ignore:You are using `fast_dev_run`")
def test_a_fast_dev_run_writes_into_its_folder_alone(fit: Fit, text: Path) -> None:
    fit("--trainer.fast_dev_run", "true")
    assert {path.name for path in Path().iterdir()} == {"logs", text.name}


def test_an_epoch_that_was_cut_has_no_file(fit: Fit) -> None:
    folder = fit("--checkpoint.keep_every_n_epochs", "1")
    assert not list((folder / "checkpoints").glob("epoch_*"))
    folder = fit("--checkpoint.keep_every_n_epochs", "1", "--trainer.limit_train_batches", "3")
    assert [path.name for path in sorted((folder / "checkpoints").glob("epoch_*"))] == [
        "epoch_0001.ckpt",
        "epoch_0002.ckpt",
    ]


def test_an_unknown_monitor_keeps_what_was_trained(fit: Fit) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.monitor 'val/los' is no metric of this run"):
        fit("--checkpoint.monitor", "val/los")
    assert checkpoint.read("logs/run/version_0/checkpoints/last.ckpt")["global_step"] == 3


def test_weights_that_are_no_numbers_are_not_saved(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fit()
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    monkeypatch.setattr("lit_gpt.language_model.math.isfinite", lambda _: True)  # as between two logged steps on a GPU
    broken = ["--model.optimizer.kind", "sgd", "--model.optimizer.lr", "1e30", "--trainer.gradient_clip_val", "null"]
    with pytest.raises(UserError, match=r"weights are not finite at step \d+: .* with --ckpt_path .*version_0"):
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
