"""Modules, data and callbacks of other people's: what the command line makes of them, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.errors import UserError
from lit_gpt import checkpoint
from lit_gpt.cli.lightning_cli import run
from tests.conftest import TINY

Fit = Callable[..., Path]
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
CODE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader
from lit_gpt import LitGPT

class Lazy(LightningModule):
    '''Knows nothing of ours, and logs nothing.'''
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(1)
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0].float()).square().mean()
    def validation_step(self, batch, batch_idx):
        pass
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)

class LazyGPT(LitGPT):
    def build_network(self):
        net = super().build_network()
        net.blocks[0].mlp.fc = nn.LazyLinear(64)
        return net

class Pairs(LightningDataModule):
    '''Batches are pairs of tensors.'''
    def train_dataloader(self):
        ids = torch.arange(80).view(5, 16) % 7
        return DataLoader(list(zip(ids, ids)), batch_size=1)
    val_dataloader = predict_dataloader = train_dataloader

class Ids(LightningDataModule):
    '''No tokenizer, no text, no documents.'''
    vocab_size = 7
    def train_dataloader(self):
        ids = torch.arange(85).view(5, 17) % 7
        return DataLoader([{"input_ids": row[:-1], "targets": row[1:]} for row in ids], batch_size=2)
    val_dataloader = predict_dataloader = train_dataloader
"""


@pytest.fixture(autouse=True)
def _classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "others.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "others", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_module_that_knows_nothing_of_ours_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "others.Lazy", "--data", "others.Pairs", "--checkpoint.monitor", "null"]
    run("fit", [*flags, *CPU, "--trainer.max_steps", "3"])
    out = capsys.readouterr().out
    assert "0 and lazy layers" in out
    assert "generate" not in out
    summary = json.loads(Path("logs/run/version_0/summary.json").read_text())
    assert (summary["finished"], summary["parameters"]) == (True, 17)


def test_a_lazy_layer_in_a_network_of_ours_is_a_sentence(fit: Fit) -> None:
    with pytest.raises(UserError, match=r"^blocks\.0\.mlp\.fc\.weight of GPT has no shape before the first batch"):
        fit("--model", "others.LazyGPT")


def test_ids_alone_are_trained_and_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    shape = [*TINY[:8], *CPU, "--data", "others.Ids"]
    run("fit", [*shape, "--trainer.max_steps", "3", "--trainer.val_check_interval", "3"])
    assert "generate" not in capsys.readouterr().out  # there is no tokenizer
    run("predict", ["--ckpt_path", "logs/run/version_0", *CPU, "--data", "others.Ids"])
    lines = [json.loads(line) for line in Path("logs/run/version_0/predictions.jsonl").read_text().splitlines()]
    assert [line["document"] for line in lines] == [0, 1, 2, 3, 4]
    assert [token["id"] for line in lines for token in line["tokens"]] == [
        i % 7 for row in range(5) for i in range(17 * row + 1, 17 * row + 17)
    ]
    assert all(token.keys() == {"id", "nats", "rank", "probability"} for token in lines[0]["tokens"])


def test_batches_of_another_form_are_a_sentence(fit: Fit) -> None:
    folder = fit()
    told = "batches are each a list, without input_ids and targets: let its dataset return dicts"
    pairs = ["--data", "others.Pairs", "--model.config.vocab_size", "7", "--trainer.max_steps", "3"]
    with pytest.raises(UserError, match=told):
        run("fit", [*TINY[:8], *CPU, *pairs])
    for verb in ("validate", "predict"):
        with pytest.raises(UserError, match=told):
            run(verb, ["--ckpt_path", str(folder), *CPU, "--data", "others.Pairs"])


@pytest.mark.parametrize("name", ["LearningRateFinder", "BatchSizeFinder"])
def test_a_callback_that_looks_for_one_rate_or_size_is_a_sentence(name: str, fit: Fit) -> None:
    with pytest.raises(
        UserError, match=rf"^{name} .*: leave it out, and .* --(model\.optimizer\.lr|data\.micro_batch)"
    ):
        fit(f"--trainer.callbacks+={name}")


def test_a_checkpoint_callback_of_ones_own_writes_beside_the_run_s(fit: Fit) -> None:
    own = "{class_path: ModelCheckpoint, init_args: {every_n_train_steps: 2, save_top_k: -1%s}}"
    folder = fit(f"--trainer.callbacks+={own % ''}")
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {"best.ckpt", "last.ckpt", "epoch=0-step=2.ckpt"} <= names
    assert {path.parent for path in Path().rglob("*.ckpt")} == {Path("logs/run/version_0/checkpoints")}
    for wrong in (", save_last: true", ", filename: best"):
        with pytest.raises(UserError, match=r"would replace the run's own best\.ckpt or last\.ckpt"):
            fit(f"--trainer.callbacks+={own % wrong}")


def test_a_checkpoint_in_the_home_folder_and_a_folder_of_several_runs(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fit()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint.file_of("~/logs/run/version_0") == folder / "checkpoints" / "best.ckpt"
    for above in ("logs/run", "logs"):
        with pytest.raises(UserError, match=r"holds no checkpoint: .* of a run, such as logs/run/version_0\.$"):
            checkpoint.read(above)
    Path("empty").mkdir()
    with pytest.raises(UserError, match="give the folder of a run, logs/NAME/version_N"):
        checkpoint.read("empty")


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook"])
def test_processes_that_are_forked_train(strategy: str, fit: Fit, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    folder = fit("--trainer.strategy", strategy, "--trainer.devices", "2", "--trainer.max_steps", "2")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["finished"], summary["processes"], summary["steps"]) == (True, 2, 2)
    out = capfd.readouterr().out
    assert [out.count(line) for line in (" without embeddings ", ", 2 processes", "without a network")] == [1, 1, 1]
    assert checkpoint.read(folder)["global_step"] == 2
    with pytest.raises(UserError, match=r"^a step of 8 rows .* cannot be divided among 3 process"):
        fit("--trainer.strategy", strategy, "--trainer.devices", "3")


OWN = """
import torch
from lightning.pytorch import LightningModule
from lit_gpt import LitGPT

class Own(LitGPT):
    def validation_step(self, *given, **named):
        print("my own scores")
        super().validation_step(*given, **named)

class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        return self.net(batch["input_ids"].float()[..., None]).square().mean()
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)
"""


@pytest.fixture
def own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_classes.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("own_classes")
def test_a_class_of_ones_own_scores_its_checkpoint(fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit("--model", "own_classes.Own")
    capsys.readouterr()
    flags = ["--ckpt_path", str(folder), "--data.source", str(text), "--trainer.accelerator", "cpu"]
    run("validate", ["--model", "own_classes.Own", *flags])
    assert "my own scores" in capsys.readouterr().out
    run("validate", flags)
    assert "my own scores" not in capsys.readouterr().out


@pytest.mark.usefixtures("own_classes")
def test_a_plain_lightning_module_is_trained_and_resumed(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "own_classes.Plain", "--data.source", str(text), "--data.block_size", "16", "--resume", "auto"]
    flags += ["--trainer.accelerator", "cpu", "--checkpoint.monitor", "null"]
    run("fit", [*flags, "--trainer.max_steps", "4"])
    run("fit", [*flags, "--trainer.max_steps", "6", "--ckpt_path", "logs/run/version_0/checkpoints/last.ckpt"])
    stored = torch.load("logs/run/version_0/checkpoints/last.ckpt", weights_only=True)
    assert stored["global_step"] == 6
