"""What the system refuses, at every kind of read and write: one sentence with the path, and status 2."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import UserError, refusal
from datamodules.files import write_atomically
from datamodules.tokenizers import ByteTokenizer, save_tokenizer
from datamodules.tokens import TokenWriter
from lit_gpt import __main__ as command
from lit_gpt.callbacks.checkpoints import AtomicCheckpointIO
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from lit_gpt.callbacks.predictions import WritePredictions
from lit_gpt.callbacks.run_folder import RunFolder
from lit_gpt.cli.lightning_cli import run
from tests.conftest import TINY

Fit = Callable[..., Path]


def full(*_: Any, **__: Any) -> Any:
    """A write on a full disk, which does not say of which file."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_after_first(write: Callable[..., Any]) -> Callable[..., Any]:
    """A write that succeeds once."""
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return write(*args, **kwargs) if len(calls) == 1 else full()

    return call


def status_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and stderr of the command line in this process."""
    hook = threading.excepthook
    try:
        with pytest.raises(SystemExit) as caught:
            command._guarded(arguments)
    finally:
        threading.excepthook = hook
    return int(str(caught.value.code)), capsys.readouterr().err


def check_sentence(found: tuple[int, str], *parts: str) -> None:
    status, err = found
    assert status == 2
    assert err.startswith("lit_gpt: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def flags(text: Path, *more: str) -> list[str]:
    return ["fit", *TINY, "--data.source", str(text), *more]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_up_between_two_rows_of_tensorboard(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    target = "tensorboard.summary.writer.record_writer.RecordWriter"
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer").RecordWriter
    monkeypatch.setattr(f"{target}.write", full_after_first(writer.write))
    found = status_of(flags(text, "--trainer.max_steps", "400"), capsys)
    check_sentence(found, "the run in logs/run/version_0", "No space left on device", "free some room")


def test_metrics_csv_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsCSV(tmp_path)
    log.log_metrics({"a": 1}, 1)
    before = log.path.read_bytes()
    monkeypatch.setattr("lit_gpt.callbacks.metrics_csv.csv.writer", full)
    with pytest.raises(UserError, match=r"metrics\.csv cannot be written \(No space left on device\)"):
        log.log_metrics({"a": 2}, 2)
    assert log.path.read_bytes() == before


def test_a_full_disk_says_how_many_bytes_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"weights": torch.zeros(1000)}
    torch.save(stored, tmp_path / "whole")
    size = (tmp_path / "whole").stat().st_size
    predictions = WritePredictions(str(tmp_path / "p.jsonl"))
    predictions._documents = {0: [{"nats": 1.0}]}
    line = len(json.dumps({"document": 0, "nats": 1.0, "tokens": [{"nats": 1.0}]})) + 1
    save_tokenizer(ByteTokenizer(eos=True), tmp_path / "whole.json")
    tokenizer = (tmp_path / "whole.json").stat().st_size
    monkeypatch.setattr(os, "fsync", full)
    for write, name, needed in (
        (lambda: AtomicCheckpointIO().save_checkpoint(stored, tmp_path / "last.ckpt"), "last.ckpt", size),
        (lambda: predictions.on_predict_end(None, None), "p.jsonl", line),  # type: ignore[arg-type]
        (lambda: save_tokenizer(ByteTokenizer(eos=True), tmp_path / "t.json"), "t.json", tokenizer),
    ):
        with pytest.raises(
            UserError, match=rf"{name} cannot be written \(No space left on device; it needs "
        ) as caught:
            write()
        told = int(str(caught.value).split("it needs ")[1].split(" bytes")[0].replace(",", ""))
        assert told == pytest.approx(needed, rel=0.02), name  # a zip file holds its own name


def test_the_last_checkpoint_stays_whole(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", full_after_first(torch.save))
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written"):
        fit()
    folder = Path("logs/run/version_0")
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS])
def test_the_token_store(number: int, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(TokenWriter, "close", refuse)
    with pytest.raises(UserError) as caught:
        run("fit", [*flags(text)[1:], "--data.cache_dir", str(tmp_path / "cache"), "--logs_dir", str(tmp_path / "l")])
    assert str(tmp_path / "cache") in str(caught.value)
    assert not list((tmp_path / "cache").rglob("meta.json"))


@pytest.mark.parametrize(
    ("number", "what"),
    [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system"), (errno.EIO, "Input/output error")],
)
def test_files_and_folders_that_are_closed_to_us(
    number: int,
    what: str,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Root may read everything, so the system's answer is made up."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "my.yaml"
    config.write_text("name: run")

    def refuse(self: Path, *_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number), str(self))

    for method, arguments, path in (
        ("read_text", flags(text, "--config", str(config)), "my.yaml"),
        ("mkdir", flags(text), "logs/run"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, refuse)
            check_sentence(status_of(arguments, capsys), path, what)


def test_a_file_in_the_place_of_the_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody moves the run's folder away before training begins, and a file gets its name."""
    monkeypatch.chdir(tmp_path)
    start = RunFolder.on_fit_start

    def replaced(self: RunFolder, *args: Any) -> None:
        self.folder.rename(tmp_path / "elsewhere")
        self.folder.write_text("a file")
        start(self, *args)

    monkeypatch.setattr(RunFolder, "on_fit_start", replaced)
    check_sentence(status_of(flags(text), capsys), "logs/run/version_0", "a file, where a folder is needed")
    assert Path("logs/run/version_0").read_text() == "a file"


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), OSError("no number"), KeyError("x")])
def test_bugs_keep_their_tracebacks(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(command, "_dispatch", fail)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with pytest.raises(type(error)):
        command._guarded(["fit"])


def test_a_refusal_names_what_the_error_knows() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/a/file")
    assert str(refusal(error)).startswith("/a/file cannot be used (Permission denied): ")
    assert str(refusal(error, "the run")).startswith("the run cannot be used")


def test_a_bug_in_a_write_is_no_sentence(tmp_path: Path) -> None:
    def wrong(file: Any) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write_atomically(tmp_path / "x", wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_output_that_is_full() -> None:
    code = "from lit_gpt import __main__ as m; m._dispatch = lambda *_: print('x'); m._guarded(['fit'])"
    with Path("/dev/full").open("w") as out:
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    check_sentence((done.returncode, done.stderr), "the output", "No space left on device")
