"""A run's folder is moved or deleted at the very moment when one of its files is opened: the run goes on."""

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule

from lit_gpt import LitGPT, checkpoint

Fit = Callable[..., Path]
FOLDER, MOVED = Path("logs", "run", "version_0"), Path("logs", "mine")


class Opened:
    """Counts the opened files of a run's folder, and acts once, right before the one with a certain number."""

    def __init__(self) -> None:
        self.names: list[str] | None = None  # None: training has not begun, or all is over
        self.when: tuple[str, int] | None = None  # a name, and how often it has been opened by then
        self.act: Callable[[], object] = list
        self.lock = threading.RLock()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.names is None or event not in ("open", "os.rename", "os.link"):
            return
        name = arguments[event != "open"]
        if isinstance(name, int):  # of a file that is open
            return
        path = Path(os.path.abspath(os.fsdecode(name)))
        if not path.is_relative_to(FOLDER.absolute()):
            return
        with self.lock:
            self.names.append(kind(path, event))
            if self.when == (self.names[-1], self.names.count(self.names[-1])):
                names, self.names = self.names, None  # what the act opens itself does not count
                self.act()
                self.names, self.when = names, None


def kind(path: Path, event: str) -> str:
    """What is done with which file, without the part of its name that differs from run to run."""
    return f"{event} " + re.sub(r"(\.[a-z0-9_]{8}\.tmp|\.tfevents.*)$", "", path.name)


OPENED = Opened()
sys.addaudithook(OPENED)  # stays until the process ends


@pytest.fixture(autouse=True)
def _from_the_second_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    step = LitGPT.training_step

    def training_step(self: LightningModule, *args: Any) -> Any:
        if self.global_step == 1 and OPENED.names is None:
            OPENED.names = []
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(LitGPT, "training_step", training_step)
    yield
    OPENED.names = OPENED.when = None


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_the_run_goes_on(every: int, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--trainer.max_steps", "4", "--trainer.val_check_interval", "4", "--samples.max_new_tokens", "0")
    fit(*flags)
    names, OPENED.names = OPENED.names, None
    assert names is not None
    acts = {"moved": lambda: FOLDER.rename(MOVED), "deleted": lambda: shutil.rmtree(FOLDER)}
    for number, name in enumerate([*dict.fromkeys(names)][::every]):
        act = ("moved", "deleted")[number % 2]
        shutil.rmtree("logs")
        OPENED.when, OPENED.act = (name, max(1, names.count(name) - 1)), acts[act]
        fit(*flags)
        assert OPENED.when is None, name
        OPENED.names = None
        assert checkpoint.read(FOLDER / "checkpoints" / "best.ckpt")["global_step"] == 4, name
        assert json.loads((FOLDER / "summary.json").read_text())["steps"] == 4
        assert (FOLDER / "config.yaml").is_file()
        assert f"{FOLDER} was {act}" in capsys.readouterr().out, name
