"""A file that a verb writes never takes the place of a text, a checkpoint or a model of somebody's."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.errors import UserError
from datamodules.synthetic import headlines
from datamodules.tokenizers import ByteTokenizer, save_tokenizer, to_huggingface, train_tokenizer
from lit_gpt.cli.lightning_cli import run as run_trainer
from lit_gpt.commands import run

Fit = Callable[..., Path]
SMALL = ["--vocab_size", "280"]


@pytest.fixture
def novel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "novel.txt"
    path.write_text("\n".join(headlines(50)))
    return path


def refused(verb: Callable[[], None], path: Path, message: str) -> None:
    """Runs a verb that must end with a sentence and leave a file as it is."""
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        verb()
    assert path.read_bytes() == before


@pytest.mark.parametrize("out", ["novel.txt", "./novel.txt", "link.txt", "notes.txt"])
def test_a_trained_tokenizer_replaces_no_text(novel: Path, out: str) -> None:
    os.symlink(novel, "link.txt")
    Path("notes.txt").write_text("mine")
    why = "is there already and is no tokenizer" if out == "notes.txt" else "is what is read"
    refused(
        lambda: run("tokenizer", ["train", "--source", "novel.txt", "--out", out, *SMALL]),
        Path(out),
        rf"--out {Path(out)} {why}.*choose another name",
    )


def test_a_tokenizer_that_is_the_text_is_not_replaced(novel: Path) -> None:
    save_tokenizer(train_tokenizer("bpe", ["a b c"], 257), "mine.json")
    refused(
        lambda: run("tokenizer", ["train", "--source", "mine.json", "--out", "mine.json", *SMALL]),
        Path("mine.json"),
        "mine.json is what is read",
    )


def test_tokenizers_of_ours_are_replaced_and_others_are_not(novel: Path) -> None:
    Path("published.json").write_text(json.dumps(to_huggingface(ByteTokenizer()) | {"post_processor": {"type": "X"}}))
    Path("empty.json").touch()
    for out in ("mine.json", "mine.json", "empty.json"):
        run("tokenizer", ["train", "--source", "novel.txt", "--out", out, *SMALL])
    for _ in range(2):
        run("tokenizer", ["export", "--tokenizer", "mine.json", "--out", "hf.json"])
    for name in ("mine.json", "novel.txt", "published.json"):
        refused(
            lambda name=name: run("tokenizer", ["export", "--tokenizer", "mine.json", "--out", name]),  # type: ignore[misc]
            Path(name),
            rf"--out {name} is ",
        )


def test_predictions_replace_predictions_alone(fit: Fit, text: Path) -> None:
    checkpoint = fit("--trainer.max_steps", "1") / "checkpoints" / "last.ckpt"
    flags = ["--ckpt_path", str(checkpoint), "--data.source", str(text), "--trainer.accelerator", "cpu"]
    for path in (text, checkpoint):
        refused(
            lambda path=path: run_trainer("predict", [*flags, "--predictions.path", str(path)]),  # type: ignore[misc]
            path,
            "--predictions.path .* is there already and is no predictions that lit_gpt wrote",
        )
    run_trainer("predict", flags)
    first = Path("logs/run/version_0/predictions.jsonl").read_text()
    run_trainer("predict", flags)
    assert Path("logs/run/version_0/predictions.jsonl").read_text() == first


def test_export_and_import_replace_what_they_wrote_alone(fit: Fit, text: Path) -> None:
    pytest.importorskip("safetensors")
    folder = fit("--preset", "gpt2", "--data", "BPEDataModule", "--data.tokenizer", "byte", "--trainer.max_steps", "1")
    checkpoint = folder / "checkpoints" / "last.ckpt"

    def export(out: str, *more: str) -> None:
        run("export", ["--ckpt_path", str(checkpoint), "--out", out, *more])

    for _ in range(2):
        export("hf")
        export("plain", "--format", "safetensors")
    shutil.copytree("hf", "theirs")
    for name in ("model.safetensors", "tokenizer.json"):
        Path("theirs", name).unlink()
    refused(lambda: export("theirs"), Path("theirs", "config.json"), "config.json is there already and is no part")
    Path("theirs", "model.safetensors").write_bytes(b"weights that took a year")
    for more in ((), ("--format", "safetensors")):
        refused(lambda more=more: export("theirs", *more), Path("theirs", "model.safetensors"), "there already")  # type: ignore[misc]
    refused(lambda: export(str(text)), text, "cannot be written")

    for _ in range(2):
        run("import", ["--source", "hf", "--out", "back.ckpt"])
    for path in (checkpoint, text, Path("hf", "model.safetensors")):
        refused(
            lambda path=path: run("import", ["--source", "hf", "--out", str(path)]),  # type: ignore[misc]
            path,
            "is there already and is no imported checkpoint that lit_gpt wrote",
        )
