"""What is said when several processes of a run meet one refusal."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamodules import CharDataModule
from datamodules.errors import UserError
from lit_gpt import __main__

ROOT = Path(__file__).parents[2]
#: A process that starts two others, as ``ddp`` does; all of them are refused.
SCRIPT = """
import os, subprocess, sys
from lit_gpt.__main__ import _say_and_exit
if "LOCAL_RANK" in os.environ:
    print("is there", flush=True)
else:
    start = lambda rank: subprocess.Popen(
        [sys.executable, __file__], env={**os.environ, "LOCAL_RANK": rank}, stdout=subprocess.PIPE
    )
    others = [start("1"), start("2")]
    for other in others:
        other.stdout.readline()
_say_and_exit(ValueError("refused"))
"""


def test_a_refusal_of_all_processes_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "start.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "lit_gpt: refused\n")


def test_a_refusal_of_one_process_alone_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(__main__, "SECONDS_TO_BE_SAID", 0.01)
    with pytest.raises(SystemExit) as left:
        __main__._say_and_exit(ValueError("refused"))
    assert (left.value.code, capsys.readouterr().err) == (2, "lit_gpt: refused\n")


@pytest.mark.parametrize(
    ("micro", "world", "tokens"), [(None, 3, (480, 528)), (None, 48, (768,)), (4, 3, (384, 576)), (5, 1, (480, 560))]
)
def test_a_step_that_cannot_be_divided_names_one_that_can(
    micro: int | None, world: int, tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CharDataModule, "_rank_and_world", (0, world))

    def share(tokens_per_step: int) -> object:
        data = CharDataModule(block_size=16, tokens_per_step=tokens_per_step, micro_batch_size=micro)
        data._size = 16
        return data._share(100)

    with pytest.raises(UserError, match=f"set tokens_per_step to {' or '.join(map(str, tokens))}\\.$"):
        share(512)
    assert all(share(one) for one in tokens)


def _messages(path: Path) -> Iterator[str]:
    """The beginnings of the literal messages of UserErrors."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
            text = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(text, ast.Constant):
                yield str(text.value)


def test_a_message_after_the_program_s_name_begins_in_lower_case() -> None:
    files = [path for name in ("lit_gpt", "datamodules") for path in (ROOT / name).rglob("*.py")]
    messages = [message for path in files for message in _messages(path)]
    assert len(messages) > 150
    assert not [message for message in messages if message[:1].isupper()]
