"""One CUDA GPU, bfloat16, compiled blocks, as docs/scale.md has them: a run, its resume, text from its checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_gpt.commands import run as run_command
from tests.lit_gpt.cli.conftest import rows

Fit = Callable[..., Path]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:::torch"),  # advice of the compiler's, such as on TensorFloat32
]
FLAGS = ["--trainer.accelerator", "cuda", "--trainer.precision", "bf16-mixed", "--model.compile", "true"]
FLAGS += ["--model.optimizer.schedule", "constant", "--model.config.n_embd", "64", "--trainer.val_check_interval", "3"]


def losses(folder: Path) -> list[float]:
    return [float(row["train/loss"]) for row in rows(folder) if row.get("train/loss")]


def test_a_compiled_run_in_bfloat16_learns_on_the_gpu(fit: Fit) -> None:
    folder = fit(*FLAGS, "--trainer.max_steps", "3")
    assert len(losses(folder)) == 3
    assert losses(folder)[-1] < losses(folder)[0]
    summary = (folder / "summary.json").read_text()
    assert torch.cuda.get_device_name() in summary
    assert "bf16-mixed" in summary


def test_packed_rows_of_two_blocks_learn_through_flex_attention(fit: Fit) -> None:
    packed = ["--data", "HeadlinesDataModule", "--data.source", "embedded_headlines:2000", "--data.rows", "packed"]
    packed += ["--data.tokens_per_step", "1024", "--model.config.block_size", "256"]
    packed += ["--model", "LitExtendedGPT", "--model.config.members", "2"]
    eager, compiled = (losses(fit(*FLAGS, *packed, "--model.compile", one)) for one in ("false", "true"))
    assert compiled[-1] < compiled[0]
    assert compiled == pytest.approx(eager, abs=0.02)  # bfloat16 rounds elsewhere


def test_a_resume_on_the_gpu_has_the_losses_of_a_straight_run(fit: Fit) -> None:
    folder = fit(*FLAGS, "--checkpoint.keep_every_n_steps", "3")
    straight = losses(folder)
    middle = folder / "checkpoints" / "step_000003.ckpt"
    assert fit(*FLAGS, "--ckpt_path", str(middle)) == folder
    assert losses(folder) == pytest.approx(straight, abs=1e-3)  # kernels that add in any order


def test_text_is_generated_on_the_gpu_from_the_checkpoint_alone(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(*FLAGS, "--trainer.max_steps", "3")
    capsys.readouterr()
    flags = ["--prompt", "the ", "--max_new_tokens", "20", "--seed", "1", "--device", "cuda"]
    run_command("generate", ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), *flags])
    shown = capsys.readouterr().out
    assert shown.startswith("the ")
    assert len(shown.strip()) > len("the ")
