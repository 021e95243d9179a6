"""What the verb generate is given on the command line."""

import io
import os
import pty
import select
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from datamodules.errors import UserError
from lit_gpt.commands import run as run_command
from lit_gpt.commands.generate import _prompt_loop


class Asked:
    """Stands for a model, and keeps what it is asked for."""

    def __init__(self) -> None:
        self.given: dict[str, object] = {}

    def stream(self, prompt: str, **options: object) -> list[str]:
        self.given = {"prompt": prompt, **options}
        return ["."]


class Echo:
    """Stands for a model, and says what it was given."""

    def stream(self, prompt: str, **options: object) -> list[str]:
        return ["\nheard ", prompt, ".\n"]


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
    for one in ("###", "whale", "5", "[x"):
        run_command("generate", ["--ckpt_path", "x", "--prompt", "a", "--stop", one])
        assert asked.given["stop"] == one


def test_the_line_of_a_prompt_can_be_edited_and_fetched_again() -> None:
    """In a child with a terminal: left, left, a letter; then the line before, by an arrow upwards."""
    pytest.importorskip("readline")
    child, terminal = pty.fork()
    if not child:  # pragma: no cover
        sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
        with suppress(BaseException):
            _prompt_loop(Echo(), 1, {})  # type: ignore[arg-type]
        os._exit(0)
    said = b""
    try:
        for typed in (b"ab\x1b[D\x1b[Dx\n", b"\x1b[A\n"):
            said += _read_until(terminal, b"> ")
            os.write(terminal, typed)
        said += _read_until(terminal, b"heard xab.")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)
    assert said.count(b"heard xab.") == 2


def _read_until(terminal: int, mark: bytes) -> bytes:
    """What a child writes, until a mark or for ten seconds."""
    said = b""
    while mark not in said and select.select([terminal], [], [], 10.0)[0]:
        said += os.read(terminal, 1000)
    return said


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
