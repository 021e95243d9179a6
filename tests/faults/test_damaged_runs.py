"""What a run leaves behind, damaged: files cut, changed, forged, deleted, moved. One sentence, or the next best."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules.errors import UserError
from datamodules.files import write_atomically, write_text
from lit_gpt import LitGPT, checkpoint
from lit_gpt.callbacks.checkpoints import AtomicCheckpointIO
from lit_gpt.cli.lightning_cli import run
from lit_gpt.commands import run as run_command
from tests.conftest import TINY
from tests.lit_gpt.cli.conftest import rows, unfinished

Fit = Callable[..., Path]


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 6 steps that kept every third and validated at each, its best the first."""
    place = tmp_path_factory.mktemp("trained")
    words = random.Random(0).choices(["the", "model", "reads", "a", "token", "and", "stops"], k=2400)
    (place / "my.txt").write_text("\n".join(" ".join(words[i : i + 8]) for i in range(0, 2400, 8)))
    run("fit", [*TINY, *FLAGS, "--data.source", str(place / "my.txt"), "--logs_dir", str(place / "logs")])
    unfinished(place / "logs" / "run" / "version_0")
    return place


FLAGS = ("--checkpoint.mode", "max", "--checkpoint.every_n_steps", "2", "--model.optimizer.lr", "0.01")


@pytest.fixture
def again(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs ``fit`` on a copy of that run, which lies in logs/run/version_0."""
    shutil.copytree(trained / "logs", tmp_path / "logs")
    files = tmp_path / "logs" / "run" / "version_0" / "checkpoints"
    monkeypatch.chdir(tmp_path)

    def call(*flags: str) -> Path:
        run("fit", [*TINY, *FLAGS, "--data.source", str(trained / "my.txt"), "--trainer.max_steps", "8", *flags])
        return files.parent

    return call


VERSION_0 = Path("logs", "run", "version_0")
FILES = VERSION_0 / "checkpoints"


def flip(path: Path, place: int) -> None:
    """One bit, in a file of its own: names of the same file stay whole."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.unlink()
    path.write_bytes(content)


def weight_in(path: Path) -> int:
    """Where a weight lies in the file."""
    value = torch.load(path, weights_only=True)["state_dict"]["net.wte.weight"][0, :8].numpy().tobytes()
    return path.read_bytes().index(value) + 2


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


# ---- one bit


def read_or_refused(path: Path) -> Any:
    try:
        return checkpoint.read(path)
    except UserError as error:
        return str(error)


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(trained: Path, tmp_path: Path) -> None:
    whole = trained / "logs" / "run" / "version_0" / "checkpoints" / "last.ckpt"
    content, expected = whole.read_bytes(), checkpoint.read(whole)
    rng, accepted = random.Random(0), 0
    head, tail = range(400), range(len(content) - 3000, len(content))
    places = [*rng.choices(range(len(content)), k=60), *rng.choices(head, k=30), *rng.choices(tail, k=60)]
    for number, place in enumerate(places):
        path = tmp_path / f"{number}.ckpt"
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        found = read_or_refused(path)
        assert "is cut short or damaged" in found if isinstance(found, str) else same(found, expected), place
        accepted += not isinstance(found, str)
        path.unlink()
    assert accepted < 60  # padding between records, times and the like


@pytest.mark.usefixtures("again")
@pytest.mark.parametrize("verb", ["validate", "test", "predict", "generate", "export", "load", "module", "import"])
def test_a_flipped_weight_is_named_by_every_verb(verb: str, trained: Path) -> None:
    best = FILES / "best.ckpt"
    flip(best, weight_in(best))
    text = ("--data.source", str(trained / "my.txt"), "--trainer.accelerator", "cpu")
    acts: dict[str, Callable[[], object]] = {
        "generate": lambda: run_command("generate", ["--ckpt_path", str(VERSION_0)]),
        "export": lambda: run_command("export", ["--ckpt_path", str(best), "--out", "out"]),
        "load": lambda: checkpoint.load(best),
        "module": lambda: LitGPT.load_from_checkpoint(best),
        "import": lambda: run("fit", [*TINY, *text, "--name", "new", "--model.init_from", str(best)]),
    }
    sentence = refused(acts.get(verb, lambda: run(verb, ["--ckpt_path", str(best), *text])))
    assert sentence == f"checkpoint '{best}' is cut short or damaged: use {FILES / 'last.ckpt'}."
    assert not Path("logs", "new").exists()


@pytest.mark.parametrize("how", ["our module", "another module", "from Python"])
def test_a_flipped_weight_stops_a_resume(how: str, again: Fit, trained: Path) -> None:
    last = FILES / "last.ckpt"
    flip(last, weight_in(last))
    before = sorted(path.name for path in VERSION_0.rglob("*"))
    acts: dict[str, Callable[[], object]] = {
        "our module": lambda: again("--ckpt_path", str(VERSION_0)),
        "another module": lambda: AtomicCheckpointIO().load_checkpoint(last),
        "from Python": lambda: Trainer(
            max_steps=9, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        ).fit(LitGPT(checkpoint.read(FILES / "best.ckpt")["lit_gpt"]["config"]), FakeData(), ckpt_path=str(last)),
    }
    assert f"{last}' is cut short or damaged: use {FILES / 'best.ckpt'}." in refused(acts[how])
    assert sorted(path.name for path in VERSION_0.rglob("*")) == before


class FakeData(list):  # type: ignore[type-arg]
    """No batches are asked for."""

    def __init__(self) -> None:
        super().__init__([{"input_ids": torch.zeros(1, 16).long(), "targets": torch.zeros(1, 16).long()}])


def test_a_file_without_checksums_is_read(trained: Path, tmp_path: Path) -> None:
    stored = checkpoint.read(trained / "logs" / "run" / "version_0")
    torch.serialization.set_crc32_options(False)
    torch.save(stored, tmp_path / "unchecked.ckpt")
    torch.serialization.set_crc32_options(True)
    assert same(checkpoint.read(tmp_path / "unchecked.ckpt"), stored)


# ---- the newest whole one


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros", "gone"])
def test_resume_auto_goes_on_from_the_newest_whole_checkpoint(
    damage: str, again: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    last, size = FILES / "last.ckpt", (FILES / "last.ckpt").stat().st_size
    shutil.copy(FILES / "best.ckpt", FILES / "step_000003.ckpt")
    flip(FILES / "step_000003.ckpt", weight_in(FILES / "step_000003.ckpt"))  # as new, and damaged too
    if damage == "flipped":
        flip(last, weight_in(last))
    elif damage == "gone":
        last.unlink()
    else:
        content = {"cut": last.read_bytes()[: size // 2], "zeros": bytes(size)}[damage]
        last.unlink()
        last.write_bytes(content)
    assert again("--resume", "auto").resolve() == VERSION_0.resolve()
    best = FILES / "best.ckpt"
    told = f"its last.ckpt is damaged or gone: resuming from step 3, {best}, the newest intact one\n"
    assert told in capsys.readouterr().out
    assert [int(row["step"]) for row in rows(VERSION_0) if row["train/loss"]] == list(range(1, 9))
    assert checkpoint.read(last)["global_step"] == 8
    assert (FILES / "last.ckpt.damaged").exists() == (damage != "gone")


def test_a_run_without_a_whole_checkpoint_is_left_alone(again: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    for path in FILES.iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    sentence = refused(lambda: again("--ckpt_path", str(VERSION_0)))
    assert sentence.endswith(
        "last.ckpt' is cut short or damaged: no intact one is beside it, so use a copy or start a new run."
    )
    before = {path: path.read_bytes() for path in VERSION_0.rglob("*.*") if path.is_file()}
    again("--resume", "auto")
    assert f"{VERSION_0} has no intact checkpoint: a new run starts in" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_every_cut_is_one_sentence(trained: Path, tmp_path: Path) -> None:
    content = (trained / "logs" / "run" / "version_0" / "checkpoints" / "last.ckpt").read_bytes()
    for share in range(40):
        path = tmp_path / f"{share}.ckpt"
        path.write_bytes(content[: share * len(content) // 40])
        assert f"{path}' is " in refused(lambda path=path: checkpoint.read(path, mmap=True))
        path.unlink()


# ---- forged


class Code:
    """Pickled, it names a function, and what to call it with."""

    def __init__(self, made: Path) -> None:
        self.made = str(made)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.made,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_names_code_is_called_that_and_is_not_run(kind: str, tmp_path: Path) -> None:
    path, code = tmp_path / "code.ckpt", {"state_dict": Code(tmp_path / "made")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(code))
    else:
        torch.save(code, path, _use_new_zipfile_serialization=kind == "torch")
    assert f"'{path}' names code, posix.mkdir, which is never run" in refused(lambda: checkpoint.read(path))
    assert not (tmp_path / "made").exists()


def set_in(stored: dict[str, Any], where: str, value: Any) -> None:
    *path, last = where.split("/")
    for part in path:
        stored = stored[part]
    if value is None:
        del stored[last]
    else:
        stored[last] = value


FORGED: dict[str, tuple[str, Any, str]] = {
    "a word for the format": ("lit_gpt/format", "1", "was not written by lit_gpt"),
    "a format before the first": ("lit_gpt/format", -1, "was not written by lit_gpt"),
    "a step before the first": ("global_step", -5, "was not written by lit_gpt"),
    "integers for weights": ("state_dict/net.wte.weight", "int32", "has other weights than its configuration"),
    "no module": ("lit_gpt/module", None, "has no module, which `fit` never writes"),
    "a number for the module": ("lit_gpt/module", 3, "has int as its module"),
    "a list for the configuration": ("lit_gpt/config", [1], "has list as its config"),
    "no fingerprints": ("lit_gpt/fingerprints", None, "has no fingerprints"),
    "no weights": ("state_dict", None, "has no state_dict"),
    "a word for weights": ("state_dict/net.wte.weight", "w", "has str as its net.wte.weight"),
    "weights gone": ("state_dict/net.wte.weight", None, "has other weights than its configuration describes"),
    "other weights": ("state_dict/net.wte.weight", torch.zeros(3, 3), "has other weights than its configuration"),
    "a wide network": ("lit_gpt/config/n_embd", 10**6, "has other weights than its configuration describes"),
    "a network too wide for a number": ("lit_gpt/config/n_embd", 10**12, "describes no network"),
    "a deep network": ("lit_gpt/config/n_layer", 10**9, "describes no network (more layers than the file's"),
    "a crowd": ("lit_gpt/config/members", 10**9, "describes no network (more layers than the file's"),
    "a word for a number": ("lit_gpt/config/n_layer", "six", "describes no network"),
    "part of a layer": ("lit_gpt/config/n_layer", 1.5, "describes no network"),
    "no heads": ("lit_gpt/config/n_head", 0, "describes no network"),
    "no step": ("global_step", None, "has no global_step"),
    "NaN weights": ("state_dict/net.wte.weight", torch.nan, "has weights that are not finite, in wte.weight"),
    "an infinite weight": ("state_dict/net.wte.weight", torch.inf, "has weights that are not finite, in wte.weight"),
    "no tokens": ("lit_gpt/tokenizer", {"kind": "char", "characters": 5}, "tokenizer is damaged"),
    "a tokenizer of no kind": ("lit_gpt/tokenizer", {"kind": []}, "tokenizer kind [] is not known"),
    "a tokenizer of another network": ("lit_gpt/tokenizer", {"kind": "byte", "eos": True}, "a tokenizer of 257 tokens"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint_is_one_sentence(name: str, trained: Path, tmp_path: Path) -> None:
    where, value, expected = FORGED[name]
    stored = checkpoint.read(trained / "logs" / "run" / "version_0")
    if isinstance(value, float) and where.startswith("state_dict"):
        value = stored["state_dict"]["net.wte.weight"].index_fill(0, torch.tensor([2]), value)
    if value == "int32":
        value = stored["state_dict"]["net.wte.weight"].to(torch.int32)
    if "members" in where:
        set_in(stored, "lit_gpt/module", "lit_gpt.methods.module.LitExtendedGPT")
    set_in(stored, where, value)
    torch.save(stored, tmp_path / "forged.ckpt")
    assert expected in refused(lambda: checkpoint.load(tmp_path / "forged.ckpt"))


@pytest.mark.parametrize("key", ["loops", "callbacks", "lr_schedulers", "pytorch-lightning_version", "epoch"])
def test_a_run_does_not_go_on_from_a_file_without(key: str, again: Fit, tmp_path: Path) -> None:
    stored = checkpoint.read(FILES / "last.ckpt")
    del stored[key]
    torch.save(stored, "less.ckpt")
    assert f"has no {key}, which `fit` never writes" in refused(lambda: again("--ckpt_path", "less.ckpt"))


def test_a_run_does_not_go_on_without_the_state_of_its_optimizer(again: Fit) -> None:
    stored = checkpoint.read(FILES / "last.ckpt")
    torch.save({**stored, "optimizer_states": []}, "less.ckpt")
    assert "holds weights alone" in refused(lambda: again("--ckpt_path", "less.ckpt"))


def test_an_unreadable_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "a.ckpt")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "a.ckpt' cannot be read (Permission denied)" in refused(lambda: checkpoint.read(tmp_path / "a.ckpt"))


# ---- the other files of a run


@pytest.mark.parametrize("content", [b"[1]", b"\xff", b"[" * 100_000, b'{"finished": "no"}', None])
def test_a_resume_needs_no_summary(content: bytes | None, again: Fit) -> None:
    path = VERSION_0 / "summary.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again("--resume", "auto")
    assert not Path("logs", "run", "version_1").exists()
    assert json.loads(path.read_text())["steps"] == 8


@pytest.mark.parametrize("content", [b"\xff: 1", None])
def test_a_resume_needs_no_config(content: bytes | None, again: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    path = VERSION_0 / "config.yaml"
    for flags, folder in (((), VERSION_0), (("--model.optimizer.lr", "0.5"), VERSION_0.with_name("version_1"))):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        again("--resume", "auto", *flags)
        assert (folder / "config.yaml").read_text().count("seed_everything: 1337") == 1
        unfinished(VERSION_0)
    said = capsys.readouterr().out
    assert f"{VERSION_0} is of another version, or its config.yaml is damaged: a new run starts in" in said


METRICS = "step,epoch,train/loss\r\n1,0,3.5\r\n2,0,3.25\r\n3,0,3.0\r\n"
TORN = {
    "cut in a row": (b"4,0", "5", [1, 2, 3]),
    "cut in a number": (b"4,0,2.7", "5", [1, 2, 3]),
    "cut in a step": (b"4", "5", [1, 2, 3]),
    "a line of NULs": (b"\0" * 40, "5", [1, 2, 3]),
    "a byte of no text": (b"4,0,2.\xff\r\n5,0,2.5\r\n", "5", [1, 2, 3, 5]),
    "a quote": (b'4,0,"2.5\r\n5,0,2.5\r\n', "5", [1, 2, 3, 5]),
    "a word": (b"4,0,2.5x\r\n", "5", [1, 2, 3]),
}


@pytest.mark.parametrize("name", TORN)
def test_damaged_rows_are_dropped_and_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lit_gpt.callbacks.metrics_csv import MetricsCSV

    more, line, steps = TORN[name]
    path = tmp_path / "metrics.csv"
    path.write_bytes(content := METRICS.encode() + more)
    log = MetricsCSV(tmp_path)
    log.rewind(5)
    assert f"metrics.csv: damaged rows are dropped (lines {line});" in capsys.readouterr().out
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == content
    log.log_metrics({"epoch": 0, "val/loss": 2.0}, 6)
    found = [(int(row["step"]), row["train/loss"]) for row in rows(tmp_path)]
    assert [step for step, _ in found] == [*steps, 6]
    assert found[:3] == [(1, "3.5"), (2, "3.25"), (3, "3.0")]


@pytest.mark.parametrize("content", [b"", b"\xffstep,epoch\r\n1,0\r\n", b"step,epoch,train/l"])
def test_a_resume_needs_no_metrics(content: bytes, again: Fit) -> None:
    (VERSION_0 / "metrics.csv").write_bytes(content)
    again("--resume", "auto")
    assert [int(row["step"]) for row in rows(VERSION_0) if row["train/loss"]] == [7, 8]


# ---- the folder


def at_step(number: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen to the folder while the run trains."""
    step = LitGPT.training_step

    def training_step(self: LightningModule, *args: Any) -> Any:
        if self.global_step == number:
            act()
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(LitGPT, "training_step", training_step)


@pytest.mark.parametrize("act", ["config renamed", "moved", "deleted"])
def test_a_folder_in_which_training_began_is_never_removed(
    act: str, fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, moved = Path("logs", "run", "version_0"), Path("logs", "mine")
    acts: dict[str, Callable[[], object]] = {
        "config renamed": lambda: (folder / "config.yaml").rename(folder / "old.yaml"),
        "moved": lambda: folder.rename(moved),
        "deleted": lambda: shutil.rmtree(folder),
    }
    at_step(4, acts[act], monkeypatch)
    fit()
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] == 6
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6
    assert (folder / "config.yaml").is_file()
    said = capsys.readouterr().out
    if act == "moved":
        assert f"{folder} was moved to {moved.resolve()}, where its files until then are, while the run" in said
        assert checkpoint.read(moved / "checkpoints" / "last.ckpt")["global_step"] == 3
    assert (f"{folder} was deleted while the run went on" in said) == (act == "deleted")


def test_a_moved_folder_of_a_run_that_fails_stays(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("logs", "run", "version_0")

    def fail() -> None:
        (folder / "config.yaml").unlink()
        raise ZeroDivisionError

    at_step(4, fail, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        fit()
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert (folder / "config.yaml").is_file()


def test_what_somebody_put_into_a_folder_before_the_first_step_is_not_removed(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(*_: object) -> None:
        Path("logs", "run", "version_0", "notes.txt").write_text("why")
        raise UserError("no.")

    monkeypatch.setattr(LitGPT, "configure_model", note)
    with pytest.raises(UserError, match=r"no\."):
        fit()
    assert Path("logs", "run", "version_0", "notes.txt").read_text() == "why"


def test_temporary_files_of_a_killed_save_are_removed_by_the_next_run(
    again: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as kill:
        kill.setattr(os, "unlink", lambda _: None)  # a killed process removes nothing
        for name in (FILES / "last.ckpt", VERSION_0 / "summary.json"):
            with pytest.raises(KeyboardInterrupt):
                write_atomically(name, killed)
    (FILES / ".best.ckpt.link.tmp").write_text("")
    assert len([*VERSION_0.rglob(".*")]) == 3
    mine = [VERSION_0 / ".notes.tmp", FILES / ".hidden", FILES / ".a.abcdefgh"]
    for path in mine:
        write_text(path, "mine")
    again("--resume", "auto")
    assert sorted(VERSION_0.rglob(".*")) == sorted(mine)
