"""`fit --plan`: for every shipped configuration, without its text, its device, a network or a trace on the disk."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules import CharDataModule
from datamodules.errors import UserError
from datamodules.files import default_cache_dir
from lit_gpt.cli import plan
from lit_gpt.cli.lightning_cli import run
from lit_gpt.sizes import Memory
from tests.conftest import TINY
from tests.lit_gpt.callbacks.test_run_table import cells, numbers

Fit = Callable[..., Path]
CONFIGS_FOLDER = Path(__file__).parents[3] / "configs"
CONFIGS = sorted(CONFIGS_FOLDER.rglob("*.yaml"))
#: Parameters that are published, or that the configuration's page or comments name.
PARAMETERS = {"gpt2_124m": 124_475_904, "finetune_gpt2": 123_849_984}


@pytest.fixture(autouse=True)
def _nothing_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, an empty cache, no ranks of tiktoken, and no network."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "ranks"))

    def refuse(*_: object) -> None:
        raise AssertionError("a plan used the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def planned(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    run("fit", [*flags, "--plan"])
    return capsys.readouterr().out


def memory_rows(out: str) -> dict[int, list[float]]:
    """The rows of the table of memory, in GB, by rows of a micro-batch."""
    body = out[out.index("memory of a process") : out.index("time for ")]
    rows = re.findall(r"^ ([\d,]+)(?: here)? +((?:[\d,.]+ +)*[\d,.]+) *$", body, re.MULTILINE)
    return {int(number.replace(",", "")): numbers(values) for number, values in rows}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_has_a_plan(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_around", lambda rows: [rows])  # one size suffices here
    base = ["--config", str(CONFIGS_FOLDER / "char.yaml")] if path.parent.name == "debug" else []
    out = planned(capsys, *base, "--config", str(path))
    table = cells(out)
    assert max(map(len, out[: out.index("disk:")].splitlines())) <= 80
    assert "…" not in out, "a column is cut"
    assert numbers(table["parameters"])[0] >= numbers(table["without embeddings"])[0]
    assert numbers(table["parameters"])[0] == PARAMETERS.get(path.stem, numbers(table["parameters"])[0])
    assert "bigram" in path.stem or memory_rows(out), "the memory is known"
    assert not list(Path().iterdir()), "a plan leaves nothing behind"
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_memory_grows_with_the_micro_batch_and_its_parts_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    preset = ("--preset", "gpt2", "--model.config.vocab_size", "50257", "--data.micro_batch_size", "8")
    kept = ("--trainer.max_steps", "1000", "--checkpoint.keep_every_n_steps", "250")
    out = planned(capsys, *preset, *kept, "--trainer.accelerator", "cpu")
    rows = memory_rows(out)
    assert list(rows) == [1, 2, 8, 32]
    for weights, gradients, optimizer, activations, logits, heap, total in rows.values():
        assert (weights, gradients, optimizer) == (0.5, 0.5, 1.0)  # 4, 4 and 8 bytes for each of 124M parameters
        assert total == pytest.approx(2 * 124_439_808 * 8 / 1e9 + activations + logits + heap, abs=0.03)
    assert rows[32][3] == pytest.approx(4 * rows[8][3], rel=0.01)
    assert re.search(r"^disk: 8\.96 GB for best\.ckpt, last\.ckpt and 4 kept files, 1\.49 GB each$", out, re.MULTILINE)


def test_a_plan_for_devices_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--trainer.accelerator", "gpu", "--trainer.devices", "8", "--trainer.strategy", "ddp")
    size = ("--data.micro_batch_size", "2", "--trainer.max_steps", "10000000", "--data.tokens_per_step", "8192")
    out = planned(capsys, *flags, *size, "--trainer.precision", "bf16-mixed")
    table = cells(out)
    assert table["device"] == "cuda x 8"
    assert "heap" not in out  # that is glibc's
    assert numbers(table["gradient accumulation"]) == [2, 2]  # 32 rows, 8 processes
    operations = numbers(table["FLOPs a token"])[0] * 1e6 * 10_000_000 * 8192
    hours = {name: float(value) for name, value in re.findall(r"^ (\S.*?) +[\d,]+ +([\d.]+) hours", out, re.MULTILINE)}
    assert hours["T4"] == pytest.approx(operations / (65e12 * 0.4) / 3600, rel=0.01)
    assert hours["RTX 4090"] == pytest.approx(operations / (165e12 * 0.4) / 3600, rel=0.01)


@pytest.mark.parametrize("name", ["fsdp2", "FSDP2"])
def test_a_plan_of_shards(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shards = ("--trainer.devices", "8", "--trainer.strategy", name)
    out = planned(capsys, *TINY, "--model.config.vocab_size", "20000", *shards)
    share = numbers(cells(out)["parameters"])[0] / 8 * 8 / 1e6  # AdamW's two moments, in MB
    assert {row[2] for row in memory_rows(out).values()} == {round(share, 2)}
    with pytest.raises(UserError, match=r"^an ensemble \(config\.members\) cannot be sharded: use .* ddp instead"):
        run("fit", ["--model", "LitExtendedGPT", "--model.config.members", "2", *shards, "--plan"])


def test_a_text_that_is_prepared_has_its_facts_and_the_plan_is_that_of_the_run(
    fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--trainer.max_steps", "-1", "--trainer.max_epochs", "1", "--trainer.val_check_interval", "1000")
    out = planned(capsys, *TINY, "--data.source", str(text), *flags)
    assert "vocabulary is unknown before the text is prepared: 100 tokens are assumed" in out
    assert cells(out)["steps"] == "-"
    assert "my text.txt (not prepared yet)" in cells(out)["source"]
    fit(*flags, "--trainer.logger", "false", "--samples.max_new_tokens", "0")
    table = cells(capsys.readouterr().out)
    known = cells(planned(capsys, *TINY, "--data.source", str(text), *flags))
    assert numbers(known.pop("steps"))[0] == pytest.approx(numbers(table.pop("steps"))[0], abs=1)
    for name in set(table) - {"device", "tokens", "epochs", "tokens a parameter"}:
        assert known[name] == table[name], name


def test_a_large_text_is_not_read(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CharDataModule(str(text), block_size=8, cache_dir=str(default_cache_dir()))
    data.setup()
    planning = plan.known_store.__globals__
    assert plan.known_store(data) == data.stores["train"].folder
    monkeypatch.setitem(planning, "MAX_BYTES", 100)
    assert plan.known_store(data) is None


OWN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

class Lazy(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.LazyLinear(1), nn.Linear(3, 1)

class Data(LightningDataModule):
    pass
"""


@pytest.mark.parametrize("model", [["--model", "own.Lazy"], ["--model.config.vocab_size", "9"]])
def test_classes_of_ones_own_have_a_plan_with_dashes(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    table = cells(planned(capsys, *model, "--data", "own.Data"))
    assert (table["source"], table["batch"], table["memory expected"]) == ("- (not prepared yet)", "-", "-")
    assert ("4 and lazy layers" in table["parameters"]) is ("own.Lazy" in model)


def test_the_total_is_the_larger_of_two_moments() -> None:
    assert Memory(1, 2, 3, 10, 5, update=4, heap=1).total == 22
    assert Memory(1, 2, 3, 1, 1, update=4).total == 10
