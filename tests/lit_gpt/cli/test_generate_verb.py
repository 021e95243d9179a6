"""What the verb generate is given on the command line."""

import io
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.errors import UserError
from lit_gpt.commands import run as run_command


class Asked:
    """Stands for a model, and keeps what it is asked for."""

    def __init__(self) -> None:
        self.given: dict[str, object] = {}

    def stream(self, prompt: str, **options: object) -> list[str]:
        self.given = {"prompt": prompt, **options}
        return ["."]


@pytest.mark.parametrize("text", ["# Chapter 1", "~", "null", "[x", "a: b", "'"])
def test_a_prompt_that_looks_like_yaml_is_a_prompt(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    monkeypatch.setattr("lit_gpt.commands.generate.load", lambda *_: asked)
    run_command("generate", ["--ckpt_path", "x", "--prompt", text])
    assert asked.given["prompt"] == text


def test_stop_texts_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    monkeypatch.setattr("lit_gpt.commands.generate.load", lambda *_: asked)
    run_command("generate", ["--ckpt_path", "x", "--prompt", "a", "--stop", "[END, '###']"])
    assert list(asked.given["stop"]) == ["END", "###"]  # type: ignore[call-overload]
    with pytest.raises(UserError, match="stop"):
        run_command("generate", ["--ckpt_path", "x", "--prompt", "a", "--stop", "###"])


def test_standard_input_in_another_encoding_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gpt.commands.generate.load", lambda *_: Asked())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"gr\xfc\xdfe"), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input is not UTF-8"):
        run_command("generate", ["--ckpt_path", "x", "--prompt", "-"])


@pytest.mark.parametrize("text_", ["Тише едешь, дальше будешь. " * 60, "こんにちは世界。" * 200, "1 2 3 it's 4 " * 150])
def test_the_line_that_fit_prints_works_on_any_text(
    text_: str, fit: Callable[..., Path], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text.write_text(text_, encoding="utf-8")
    fit()
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "lit_gpt generate" in line)
    run_command("generate", [*shlex.split(line.split("lit_gpt generate ")[1]), "--max_new_tokens", "3"])
    prompt = shlex.split(line)[-1]
    assert capsys.readouterr().out.startswith(prompt)
    assert prompt in text_
