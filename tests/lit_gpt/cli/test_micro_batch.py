"""`--data.micro_batch_size auto`, and what a run says that is out of memory; the memory is an injected error."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from datamodules.errors import UserError
from lit_gpt import checkpoint
from lit_gpt.bounds import is_out_of_memory
from lit_gpt.cli import micro_batch
from lit_gpt.cli.trial_steps import sizes
from lit_gpt.language_model import LitLanguageModel

Fit = Callable[..., Path]
AUTO = ("--data.micro_batch_size", "auto")
QUICK = ("--samples.max_new_tokens", "0", "--model.config.dropout", "0.1")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Limits the rows of a micro-batch, from a step of the run on."""
    objective = LitLanguageModel.objective

    def limit(rows: int, from_step: int = 0) -> None:
        def limited(self: LitLanguageModel, batch: dict[str, torch.Tensor]) -> Any:
            if len(batch["input_ids"]) > rows and self.global_step >= from_step:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")
            return objective(self, batch)

        monkeypatch.setattr(LitLanguageModel, "objective", limited)

    return limit


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / "checkpoints" / "last.ckpt")["state_dict"]


def test_auto_finds_what_fits_and_gives_the_bits_of_a_run_with_that_number(
    fit: Fit, memory: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fit(*QUICK, "--data.micro_batch_size", "4")
    memory(rows=5)
    found = fit(*QUICK, *AUTO)
    assert "micro-batches of 4 rows (--data.micro_batch_size auto)" in capsys.readouterr().out
    one, other = weights(plain), weights(found)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert yaml.safe_load((found / "config.yaml").read_text())["data"]["init_args"]["micro_batch_size"] == 4
    stored = checkpoint.read(found / "checkpoints" / "last.ckpt")[checkpoint.KEY]["data"]["init_args"]
    assert stored["micro_batch_size"] == 4
    memory(rows=100)  # a resume would find 8
    assert fit(*QUICK, *AUTO, "--ckpt_path", str(found), "--trainer.max_steps", "7") == found
    assert "micro-batches of 4 rows" in capsys.readouterr().out


@pytest.mark.slow  # two starts of a run
def test_auto_refuses_what_never_fits_and_other_errors_are_not_hidden(
    fit: Fit, memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(rows=0)
    with pytest.raises(UserError, match=r"not even one row fits into the memory: lower --model\.config\.block_size"):
        fit(*QUICK, *AUTO)

    def broken(*_: Any) -> None:
        raise RuntimeError("another")

    monkeypatch.setattr(LitLanguageModel, "objective", broken)
    with pytest.raises(RuntimeError, match="another"):
        fit(*QUICK, *AUTO)


def test_a_run_out_of_memory_says_what_to_type_and_keeps_its_last_checkpoint(
    fit: Fit, memory: Callable[..., None], tmp_path: Path
) -> None:
    memory(rows=4, from_step=4)
    with pytest.raises(UserError) as caught:
        fit(*QUICK, "--checkpoint.keep_every_n_steps", "2")
    folder = tmp_path / "logs" / "run" / "version_0"
    assert str(caught.value) == (
        "there is not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB): add --data.micro_batch_size 4, "
        "which changes no result, and resume from the last checkpoint with --ckpt_path logs/run/version_0."
    )
    before = checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert before >= 3
    assert fit(*QUICK, "--ckpt_path", str(folder), "--data.micro_batch_size", "4") == folder
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] == 6


def test_sizes_divide_the_rows_of_a_process() -> None:
    assert sizes(32, 1) == [32, 16, 8, 4, 2, 1]
    assert sizes(12, 2) == [6, 3, 2, 1]
    assert sizes(5, 2) == []
    assert is_out_of_memory(torch.OutOfMemoryError("any"))


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_of_torchrun_resumes_with_the_number_of_the_checkpoint(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(micro_batch.VARIABLE, raising=False)
    trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=SimpleNamespace(launcher=None))
    stored = {"data": {"init_args": {"micro_batch_size": 4}}}
    assert micro_batch._known(SimpleNamespace(trainer=trainer, stored=stored)) == 4
    if rank:  # the process that started this one has found another
        monkeypatch.setenv(micro_batch.VARIABLE, "2")
        assert micro_batch._known(SimpleNamespace(trainer=trainer, stored=stored)) == 2
