"""How a run ends and goes on: its last step is validated, what fails is saved, what a kill left undone is done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from datamodules import CharDataModule
from lit_gpt import GPTConfig, LitGPT, checkpoint, protocols
from lit_gpt.baselines.module import LitBigram
from lit_gpt.callbacks import checkpoints
from lit_gpt.callbacks.checkpoints import RunCheckpoints
from lit_gpt.callbacks.progress import RunProgress
from lit_gpt.callbacks.resume import ExactResume
from lit_gpt.cli.lightning_cli import run
from tests.lit_gpt.cli.conftest import rows

Fit = Callable[..., Path]
TIMED = ("tokens_per_second", "step_seconds", "data_wait", "peak_memory")
#: 5 steps an epoch, each of 2 micro-batches.
SMALL = (
    *("--samples.max_new_tokens", "0", "--trainer.logger", "false", "--data.micro_batch_size", "4"),
    *("--model.config.dropout", "0.1", "--model.optimizer.lr", "0.01", "--model.optimizer.schedule", "constant"),
    *("--trainer.limit_train_batches", "10", "--trainer.val_check_interval", "4"),
)


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def validated(folder: Path) -> list[int]:
    return [int(row["step"]) for row in rows(folder) if row.get("val/loss")]


def logged(folder: Path) -> list[list[tuple[str, str]]]:
    """Each row of metrics.csv without what depends on the clock, in any order of the columns."""
    timeless = [{k: v for k, v in row.items() if v and not any(part in k for part in TIMED)} for row in rows(folder)]
    kept = [sorted(row.items()) for row in timeless]
    return [row for row in kept if len(row) > 2]  # more than step and epoch


def same_weights(one: Path, other: Path) -> bool:
    a, b = (checkpoint.read(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def files(folder: Path) -> dict[str, int]:
    """The steps of a run's checkpoints."""
    return {path.name: checkpoint.read(path)["global_step"] for path in (folder / "checkpoints").iterdir()}


# ---- the last step is validated


def score(folder: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> float:
    """What `validate` finds for the last checkpoint."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(RunProgress, "_show_metrics", lambda _, trainer: found.update(trainer.callback_metrics))
    path = str(folder / "checkpoints" / "last.ckpt")
    run("validate", ["--ckpt_path", path, "--data.source", str(text), "--trainer.accelerator", "cpu"])
    return float(found["val/loss"])


@pytest.mark.parametrize(
    ("end", "steps"),
    [
        (("--trainer.max_steps", "7"), [4, 7]),
        (("--trainer.max_steps", "3"), [3]),
        (("--trainer.max_steps", "-1", "--trainer.max_epochs", "2"), [4, 8, 10]),
        (("--early_stopping", "1", "--model.optimizer.lr", "0", "--trainer.max_steps", "99"), [4, 8]),
    ],
    ids=["steps", "fewer steps than an interval", "epochs", "early stopping"],
)
def test_the_last_step_is_validated_once_and_may_be_the_best(
    end: tuple[str, ...],
    steps: list[int],
    fit: Fit,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = fit(*SMALL, *end)
    told = summary(folder)
    assert validated(folder) == steps
    assert told["final"]["step"] == told["steps"] == files(folder)["last.ckpt"] == steps[-1]
    assert files(folder)["best.ckpt"] == told["best"]["step"] == (4 if "0" in end else steps[-1])
    assert told["final"]["val/loss"] == pytest.approx(score(folder, text, capsys, monkeypatch), abs=1e-6)


def test_a_run_without_validation_has_none_at_its_end(fit: Fit) -> None:
    folder = fit(*SMALL, "--trainer.limit_val_batches", "0")
    assert not validated(folder)
    assert summary(folder)["final"]["step"] == 6


@pytest.mark.parametrize(("limit", "short", "extra"), [("max_steps", 7, "7"), ("max_epochs", 1, "5")])
def test_a_run_that_is_made_longer_equals_one_that_was_long_from_the_start(
    limit: str, short: int, extra: str, fit: Fit
) -> None:
    flags = (*SMALL, "--trainer.max_steps", "-1", f"--trainer.{limit}")
    longer, straight = fit(*flags, str(short)), fit(*flags, str(short + 1)).with_name("version_1")
    longer = straight.with_name("version_0")
    fit(*flags, str(short + 1), "--ckpt_path", str(longer))
    assert same_weights(straight, longer)
    more = [row for row in logged(longer) if row not in logged(straight)]
    assert [dict(row)["step"] for row in more] == [extra]
    assert [row for row in logged(longer) if row not in more] == logged(straight)


def test_early_stopping_does_not_count_a_validation_that_only_the_end_brings(fit: Fit) -> None:
    flat = (*SMALL, "--early_stopping", "2", "--model.optimizer.lr", "0")
    folder = fit(*flat, "--trainer.max_steps", "6")
    fit(*flat, "--trainer.max_steps", "99", "--ckpt_path", str(folder))
    assert validated(folder) == [4, 6, 8, 12]  # the first, and two that are no better


# ---- the state of the last step's end is saved


class Failing:
    """A method that fails when it is called for the n-th time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, number: int) -> None:
        self.calls, method = 0, getattr(owner, name)

        def fail(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == number:
                raise ArithmeticError("no more")
            return method(*given, **named)

        monkeypatch.setattr(owner, name, fail)


class Watcher(Callback):
    """Somebody's own."""

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        pass


WATCHED = (
    *SMALL,
    *("--trainer.callbacks+=tests.lit_gpt.callbacks.test_ends.Watcher", "--checkpoint.keep_every_n_steps", "3"),
    *("--trainer.max_steps", "7"),
)
STRAIGHT: dict[str, Any] = {}


def straight_run(fit: Fit) -> dict[str, Any]:
    """What the same run ends with when nothing fails."""
    if not STRAIGHT:
        folder = fit(*WATCHED, "--name", "straight", "--logs_dir", "whole").parents[2] / "whole/straight/version_0"
        state = checkpoint.read(folder / "checkpoints" / "last.ckpt")["state_dict"]
        STRAIGHT.update(state=state, logged=logged(folder), files=files(folder))
    return STRAIGHT


@pytest.mark.parametrize(
    ("owner", "name", "number", "step"),
    [
        (LitGPT, "training_step", 12, 5),  # between the micro-batches of an epoch's first step
        (LitGPT, "validation_step", 1, 4),
        (Watcher, "on_train_batch_end", 12, 6),  # after one
    ],
    ids=["a micro-batch", "a validation", "a callback"],
)
def test_what_fails_is_saved_at_the_last_step_s_end_and_goes_on_exactly(
    owner: type, name: str, number: int, step: int, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing:
        Failing(failing, owner, name, number)
        with pytest.raises(ArithmeticError):
            fit(*WATCHED)
    folder = Path("logs", "run", "version_0").absolute()
    assert files(folder)["last.ckpt"] == summary(folder)["steps"] == step
    fit(*WATCHED, "--resume", "auto")
    whole = straight_run(fit)
    state = checkpoint.read(folder / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(state[key], value) for key, value in whole["state"].items())
    assert (logged(folder), files(folder)) == (whole["logged"], whole["files"])


@pytest.mark.parametrize("name", ["configure_gradient_clipping", "lr_scheduler_step"])
def test_weights_that_may_be_half_updated_are_not_saved(name: str, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fit(*SMALL, "--checkpoint.every_n_steps", "2", "--trainer.max_steps", "2")
    Failing(monkeypatch, LitGPT, name, 2)
    with pytest.raises(ArithmeticError):
        fit(*SMALL, "--trainer.max_steps", "6", "--ckpt_path", str(folder))
    assert files(folder)["last.ckpt"] == 2


def test_a_network_that_has_counted_half_a_step_is_not_saved(
    fit: Fit, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--model", "LitBigram", "--model.config.kind", "counts", "--model.config.block_size", "16"]
    flags += ["--data.source", str(text), "--data.tokens_per_step", "128", "--trainer.accelerator", "cpu"]
    flags += ["--trainer.max_steps", "4", "--checkpoint.every_n_steps", "1"]
    no_text = property(lambda _: {}, lambda *_: None)  # as of a datamodule of your own: batches are counted
    monkeypatch.setattr(protocols._WithDefaults, "stores", no_text, raising=False)
    Failing(monkeypatch, LitBigram, "on_before_optimizer_step", 3)  # after the third batch was counted
    with pytest.raises(ArithmeticError):
        run("fit", flags)
    saved = checkpoint.read("logs/run/version_0/checkpoints/last.ckpt")
    assert (saved["global_step"], int(saved["state_dict"]["net.counts"].sum())) == (2, 2 * 128)


# ---- a kill between the links of a file


class KilledError(BaseException):
    """Stands for SIGKILL: nobody's `except Exception` sees it."""


@pytest.mark.parametrize("mode", ["min", "max"])
def test_names_that_a_kill_left_undone_are_linked_when_the_run_goes_on(
    mode: str, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*SMALL, "--checkpoint.mode", mode, "--checkpoint.keep_every_n_steps", "4", "--trainer.max_steps", "8")
    monitor = "val/loss" if mode == "min" else "val/top5"  # both get better
    flags += ("--checkpoint.monitor", monitor)
    straight = fit(*flags)
    link, seen = checkpoints._link, []

    def killed(source: Path, target: Path) -> None:
        seen.append(target.name)
        if len(seen) == 3:  # best.ckpt and step_000004.ckpt are there, those of step 8 are not
            raise KilledError
        link(source, target)

    with monkeypatch.context() as kill:
        kill.setattr(checkpoints, "_link", killed)
        with pytest.raises(KilledError):
            fit(*flags)
    folder = straight.with_name("version_1")
    assert files(folder)["last.ckpt"] == 8
    fit(*flags, "--resume", "auto")
    assert files(folder) == files(straight)
    ends = [summary(run)["best"] for run in (folder, straight)]
    assert [(end["step"], end[monitor]) for end in ends] == [(8, ends[0][monitor])] * 2


# ---- from Python


def trained(
    text: Path, ckpt: Path | None = None, callbacks: tuple[Callback, ...] = (), **limits: Any
) -> tuple[Trainer, LitGPT]:
    torch.manual_seed(1)
    options: dict[str, Any] = {"limit_train_batches": 10, "num_sanity_val_steps": 0, "limit_val_batches": 1}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    saving = any(isinstance(one, RunCheckpoints) for one in callbacks)
    trainer = Trainer(enable_checkpointing=saving, callbacks=list(callbacks), **quiet, **options, **limits)
    module = LitGPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16), {"schedule": "constant"})
    trainer.fit(module, datamodule=CharDataModule(str(text), tokens_per_step=128, micro_batch_size=4), ckpt_path=ckpt)
    return trainer, module


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"max_steps": 3}, {"max_steps": 8}),
        ({"max_steps": 5}, {"max_steps": 8}),
        ({"max_epochs": 1}, {"max_steps": 8}),
    ],
)
def test_a_file_that_is_saved_after_fit_goes_on_where_that_stopped(
    short: dict[str, int], long: dict[str, int], text: Path, tmp_path: Path
) -> None:
    first, _ = trained(text, **short)
    first.save_checkpoint(tmp_path / "after.ckpt", weights_only=False)
    _, straight = trained(text, **long)
    _, resumed = trained(text, tmp_path / "after.ckpt", **long)
    pairs = zip(straight.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


class Watch(Callback):
    """The steps that are validated."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps.append(trainer.global_step)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_run_that_stops_at_the_end_of_an_epoch_is_validated_there(tmp_path: Path, text: Path) -> None:
    often = {"val_check_interval": 4, "check_val_every_n_epoch": None, "default_root_dir": tmp_path}
    stop, watch = EarlyStopping("train/loss", stopping_threshold=99, check_on_train_epoch_end=True), Watch()
    trained(text, None, (stop, watch, RunCheckpoints(), ExactResume()), max_steps=99, log_every_n_steps=1, **often)
    assert watch.steps == [4, 5]
    path = tmp_path / "checkpoints" / "last.ckpt"
    _, resumed = trained(text, path, (RunCheckpoints(), ExactResume()), max_steps=8, **often)
    _, straight = trained(text, max_steps=8)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
