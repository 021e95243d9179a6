"""A run that starts from the weights of another."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.errors import UserError
from lit_gpt.commands import run as run_command

Fit = Callable[..., Path]


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
