"""What the verbs say and log of masked tokens and pairs, in this process."""

import csv
import json
from pathlib import Path

import pytest

from datamodules import UserError
from lit_gpt.cli.lightning_cli import run
from lit_gpt.commands import data as data_verb

BERT = [
    *("--model", "LitBERT", "--model.config.block_size", "32", "--model.config.n_layer", "1"),
    *("--model.config.n_head", "2", "--model.config.n_embd", "16"),
    *("--data", "BertDataModule", "--data.vocab_size", "200", "--data.tokens_per_step", "256"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("pairs", ["balanced", "google"])
def test_data_shows_masks_token_types_and_labels(text: Path, capsys: pytest.CaptureFixture[str], pairs: str) -> None:
    data_verb.main([*BERT, "--data.source", str(text), "--data.pairs", pairs, "--rows", "8"])
    out = capsys.readouterr().out
    assert out.startswith("pairs: ")
    assert " random; lengths alone tell " in out
    assert "[CLS]|" in out
    assert "|[MASK]|" in out
    assert "    types   0000" in out
    assert "1111" in out
    assert "    label   0: the second sentence follows" in out or "    label   1: the second sentence is random" in out
    assert "next_sentence_label (8,)" in out
    assert max(map(len, out.splitlines())) <= 120


def test_fit_prints_the_losses_of_masked_tokens_and_logs_no_bits_per_byte(
    text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--data.source", str(text), "--trainer.max_steps", "4", "--trainer.val_check_interval", "2"]
    run("fit", [*BERT, *flags, "--tensorboard.every_n_validations", "0", "--trainer.accelerator", "cpu"])
    out = capsys.readouterr().out
    names = ("unigram loss", "bigram loss", "two-sided bigram")
    facts = {name: line for line in reversed(out.splitlines()) for name in names if name in line}
    assert "by both neighbours" in facts["two-sided bigram"]
    folder = tmp_path / "logs" / "run" / "version_0"
    losses = json.loads((folder / "summary.json").read_text())["baselines"]
    for name, key in (("unigram loss", "unigram"), ("bigram loss", "bigram"), ("two-sided bigram", "two_sided")):
        assert f"{losses[key]:.3f} nats" in facts[name]
    assert f"without a network: two-sided bigram {losses['two_sided']:.4f}, bigram " in out
    with (folder / "metrics.csv").open() as file:
        names = set(next(csv.reader(file)))
    assert {"val/loss", "val/top1"} <= names
    assert not {"val/bpb", "val/nats_per_char", "train_eval/bpb"} & names


def test_a_plan_does_not_print_the_losses_of_next_tokens(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*BERT, "--data.source", str(text)]
    data_verb.main(flags)  # it prepares the text
    capsys.readouterr()
    run("fit", [*flags, "--trainer.max_steps", "5", "--plan"])
    out = capsys.readouterr().out
    assert "ln V" in out
    assert "by frequency" not in out
    assert "1 training, 1 validation" in out


def test_a_vocabulary_that_is_none_is_one_sentence(text: Path) -> None:
    with pytest.raises(UserError, match=r"my text\.txt is no WordPiece vocabulary"):
        data_verb.main([*BERT, "--data.source", str(text), "--data.tokenizer", str(text), "--data.vocab_size", "null"])


@pytest.mark.slow  # a minute and a half of one core
def test_the_small_config_leaves_the_plateau_of_the_unigram(tmp_path: Path) -> None:
    """150 of its 800 steps are enough to be 0.3 nats a masked token better than frequencies."""
    config = Path(__file__).parents[1] / "configs" / "bert_tiny.yaml"
    steps = ["--trainer.max_steps", "150", "--trainer.val_check_interval", "150", "--data.train_eval_rows", "0"]
    run("fit", ["--config", str(config), *steps, "--tensorboard.every_n_validations", "0"])
    summary = json.loads((tmp_path / "logs" / "bert_tiny" / "version_0" / "summary.json").read_text())
    assert summary["final"]["val/loss"] < summary["baselines"]["unigram"] - 0.3
