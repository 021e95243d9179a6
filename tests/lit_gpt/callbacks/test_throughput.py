"""Figures of speed and of time left, by a clock that only the test moves."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.batches import MicroBatches
from lit_gpt import LitGPT, load
from lit_gpt.callbacks import progress, throughput
from lit_gpt.callbacks.checkpoints import AtomicCheckpointIO
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from tests.lit_gpt.test_logged import rows

Fit = Callable[..., Path]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A batch takes 1 s to fetch and 3 s to learn from; adding up a validation 100 s."""
    clock = SimpleNamespace(now=0.0)
    hands = SimpleNamespace(perf_counter=lambda: clock.now, monotonic=lambda: clock.now)
    for module in (throughput, progress):
        monkeypatch.setattr(module, "time", hands)

    def takes(owner: type, name: str, seconds: Callable[[Any], float]) -> None:
        original = getattr(owner, name)

        def slowly(self: Any, *args: Any, **kwargs: Any) -> Any:
            clock.now += seconds(self)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, slowly)

    clock.takes = takes
    takes(MicroBatches, "__getitem__", lambda _: 1.0)
    takes(LitGPT, "training_step", lambda _: 3.0)
    takes(LitGPT, "on_validation_epoch_end", lambda _: 100.0)
    return clock


STEPS_OF_TWO = ("--data.tokens_per_step", "128", "--data.micro_batch_size", "4", "--trainer.log_every_n_steps", "2")
ONE_BATCH = ("--trainer.limit_val_batches", "1", "--data.train_eval_rows", "0")


@pytest.mark.usefixtures("clock")
def test_a_step_is_all_its_passes_and_no_validation(fit: Fit) -> None:
    logged = [row for row in rows(fit(*STEPS_OF_TWO)) if row["train/step_seconds"]]
    assert [row["step"] for row in logged] == ["2", "4", "6"]
    for row in logged:
        assert float(row["train/step_seconds"]) == 8
        assert float(row["train/tokens_per_second"]) == 128 / 8
        assert float(row["train/data_wait"]) == 0.25


def test_intervals_add_up_to_the_loop_with_its_logging_and_saving(fit: Fit, clock: SimpleNamespace) -> None:
    """Between two steps lies more than fetching: a logger of 30 s a call, a checkpoint of 7 s."""
    clock.takes(MetricsCSV, "log_metrics", lambda _: 30.0)
    clock.takes(AtomicCheckpointIO, "save_checkpoint", lambda _: 7.0)
    folder = fit(*STEPS_OF_TWO, "--checkpoint.every_n_steps", "1", "--trainer.limit_val_batches", "0")
    logged = [row for row in rows(folder) if row["train/step_seconds"]]
    # Two steps of 8 s, the module's figures (30) and a checkpoint after each but the reported one, which comes later
    # with the report's own 30 s.
    assert [float(row["train/step_seconds"]) for row in logged] == [53 / 2, 90 / 2, 90 / 2]
    assert [float(row["train/data_wait"]) for row in logged] == pytest.approx([4 / 53, 4 / 90, 4 / 90])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["training_seconds"] == 6 * 8 + 6 * 30 + 6 * 7  # six calls of the logger, six checkpoints
    assert summary["tokens_per_second"] == pytest.approx(6 * 128 / summary["training_seconds"], abs=0.06)
    assert summary["validation_seconds"] == 0


@pytest.mark.usefixtures("clock")
def test_time_left_is_that_of_steps_and_of_validations(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(*STEPS_OF_TWO, "--trainer.max_steps", "7", "--trainer.val_check_interval", "4", *ONE_BATCH)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if " left" in line]
    # A line every 10 s. A validation of a batch, before there was one: a third of one of the two batches of a step.
    seconds = {2: 8 * 5 + 2 * 4 / 3, 4: 8 * 3 + 2 * 4 / 3, 5: 8 * 2 + 101, 7: 101}
    assert {line[0]: line[-1] for line in lines} == {
        f"step {n}/7": f"{round(s) // 60}:{round(s) % 60:02} left" for n, s in seconds.items()
    }
    assert [line[2] for line in lines[1:]] == ["16 tokens/s"] * 3


def test_time_left_follows_steps_that_have_become_slower(
    fit: Fit, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.takes(LitGPT, "training_step", lambda module: 10.0 if module.global_step >= 4 else 0.0)  # more than above
    fit(*STEPS_OF_TWO, "--trainer.max_steps", "12", "--trainer.val_check_interval", "4", *ONE_BATCH)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.startswith("step 9/")]
    assert [line[-1] for line in lines] == ["3:05 left"]  # 3 * 28 + 101 seconds: a step is measured since step 4


@pytest.mark.usefixtures("clock")
def test_utilisation_counts_rows_as_long_as_they_are(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "peak_flops", lambda _: 1e9)
    folder = fit("--data.block_size", "8")
    net = load(folder).net
    assert net.flops_per_token(8) < net.flops_per_token()
    expected = 128 * net.flops_per_token(8) / 4 / 1e9  # a step takes 4 s
    assert [float(row["train/mfu"]) for row in rows(folder) if row["train/mfu"]] == pytest.approx([expected] * 6)


def test_utilisation_counts_the_part_of_the_head_that_was_multiplied(
    fit: Fit, text: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "peak_flops", lambda _: 1e9)
    monkeypatch.setattr("lit_gpt.methods.module.MULTIPLE", 8)
    byte = ("--data", "BPEDataModule", "--data.tokenizer", "byte", "--data.source", str(text))
    folder = fit(
        "--model", "LitExtendedGPT", *byte, "--model.sampled_softmax", "30", "--model.sampled_softmax_until", "0.5"
    )
    utilised = [float(row["train/mfu"]) * 4 * 1e9 / 128 for row in rows(folder) if row["train/mfu"]]
    whole = load(folder).net.flops_per_token()
    assert utilised[3:] == pytest.approx([whole] * 3)
    left_out = [(whole - found) / (6 * 16) for found in utilised[:3]]  # rows of the head, of 16 channels
    kinds = len(set(text.read_bytes()))  # a batch has at most so many kinds of targets, and at least half of them
    assert all(257 - kinds - 38 <= rows_ <= 257 - kinds // 2 - 30 for rows_ in left_out)
