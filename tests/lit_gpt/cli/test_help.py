"""The help of a verb: lit_gpt's options first, in 80 columns."""

import re

import pytest

from lit_gpt.cli.lightning_cli import LitCLI
from lit_gpt.cli.options import options_of_verb

IN_VALIDATION = ("samples of text, after validations", "pictures in TensorBoard")


def _help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str, *asked: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        LitCLI(verb, list(asked))
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "topics"),
    [
        ("fit", ["the run", "network and optimizer", "data", "checkpoints", *IN_VALIDATION]),
        ("predict", ["the run", "network and optimizer", "data", "predictions"]),
    ],
)
def test_the_help_has_each_option_once_and_lightning_s_last(
    verb: str, topics: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = _help(capsys, monkeypatch, verb, "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert re.findall(r"^(\w.*):$", text, re.MULTILINE) == [*topics, "lines of progress", "Lightning's Trainer"]
    shown = re.findall(r"^  (?:-c CONFIG, )?--([\w.]+)", text, re.MULTILINE)
    assert len(shown) == len(set(shown))
    assert set(options_of_verb(verb)) | {"model", "data", "model.help", "data.help"} <= set(shown)
    first = next(i for i, name in enumerate(shown) if name.startswith("trainer."))
    assert not set(shown[first:]) & {name for name in shown if name.startswith(("model", "data", "samples", "ckpt"))}
    for cls in ("--model.help LitGPT", "--data.help CharDataModule"):
        assert cls in " ".join(text[:500].split())


@pytest.mark.parametrize("asked", [("--model.help", "LitExtendedGPT"), ("--data.help", "HeadlinesDataModule")])
def test_the_help_of_a_class_fits_80_columns(
    asked: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(map(len, _help(capsys, monkeypatch, "fit", *asked).splitlines())) <= 80
