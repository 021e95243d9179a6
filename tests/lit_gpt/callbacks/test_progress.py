"""What a run shows while it goes: the bar and the lines, in training and in validation."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_gpt import LitGPT
from lit_gpt.callbacks import progress
from lit_gpt.callbacks.progress import RunProgress

Fit = Callable[..., Path]


@pytest.fixture
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the test moves, a step takes 2 s and a batch of validation 6 s."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for name, seconds in (("training_step", 2.0), ("validation_step", 6.0)):
        original = getattr(LitGPT, name)

        def slowly(self: Any, *args: Any, original: Any = original, seconds: float = seconds) -> Any:
            clock.now += seconds
            return original(self, *args)

        monkeypatch.setattr(LitGPT, name, slowly)


FOUR_BATCHES = ("--trainer.limit_val_batches", "2", "--data.micro_batch_size", "8")  # two of each of two loaders


@pytest.mark.usefixtures("_slow")
def test_without_a_terminal_a_long_validation_prints_lines(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--trainer.max_steps", "7", *FOUR_BATCHES)
    lines = [line for line in capsys.readouterr().out.splitlines() if " left" in line]
    # The first validation begins after step 3, at 6 s. There are lines at 12 and 24 s, after its first and third batch.
    # Then there are 4 steps of 2 s and two validations of 24 s. The next line comes 12 s later, and so on.
    assert [(line.split("  ")[:2], line.split("  ")[-1]) for line in lines if "validating" in line] == [
        (["step 3/7", "validating 25 %"], "1:14 left"),
        (["step 3/7", "validating 75 %"], "1:02 left"),
        (["step 6/7", "validating 50 %"], "0:38 left"),
        (["step 6/7", "validating 100 %"], "0:26 left"),
        (["step 7/7", "validating 50 %"], "0:12 left"),
        (["step 7/7", "validating 100 %"], "0:00 left"),
    ]


@pytest.mark.usefixtures("_slow")
def test_a_verb_that_only_scores_shows_its_share(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    from lit_gpt.cli.lightning_cli import run

    folder = fit("--trainer.max_steps", "1", *FOUR_BATCHES)
    capsys.readouterr()
    scored = ("--ckpt_path", str(folder), "--trainer.limit_val_batches", "2", "--trainer.accelerator", "cpu")
    run("validate", [*scored, "--data.micro_batch_size", "8"])
    shown = [line for line in capsys.readouterr().out.splitlines() if "validating" in line]
    assert shown == ["validating 50 %  0:12 left", "validating 100 %  0:00 left"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_has_the_rest_of_the_line(width: int) -> None:
    from rich.console import Console

    shown = RunProgress()
    shown.console = Console(file=io.StringIO(), force_terminal=True, width=width, soft_wrap=True)
    shown._start("starting", 1000, 0)
    assert shown._bar is not None
    shown._show(["step 800/1000", "loss 1.2345", "12,345 tokens/s"], 3599.0, 800)
    (line,) = (
        "".join(part.text for part in parts)
        for parts in shown.console.render_lines(shown._bar.get_renderable(), pad=False)
    )
    shown._stop()
    assert line.startswith("step 800/1000  loss 1.2345  12,345 tokens/s  59:59 left")
    assert len(line) <= width
    if width >= 80:
        assert line.endswith(" 80 %")
        assert line.count("━") == pytest.approx(width - 62, abs=2)
