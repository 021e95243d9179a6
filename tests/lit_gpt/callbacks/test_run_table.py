"""What a run says of itself: the table before its first step, the time left, and the lines at its end."""

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from datamodules import CharDataModule
from lit_gpt import load
from lit_gpt.callbacks import summary as summary_module
from lit_gpt.cli.lightning_cli import run
from tests.conftest import TINY

Fit = Callable[..., Path]
QUICK = ("--samples.max_new_tokens", "0", "--trainer.logger", "false")


def cells(out: str) -> dict[str, str]:
    """The rows of the table by their names. A value that takes several lines is joined."""
    rows: dict[str, str] = {}
    last = ""
    for line in out.splitlines():
        if re.match(r"step \d|about |memory of", line):
            break
        name, value = line[9:34].strip(), line[34:].strip()
        if name and value:
            last, rows[name] = name, value
        elif last and value and not line[:34].strip():
            rows[last] += f" {value}"
    return rows


def numbers(cell: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", cell)]


def test_the_table_says_what_the_run_is(fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(*QUICK, "--data.micro_batch_size", "4")
    out = capsys.readouterr().out
    table, net = cells(out), load(folder).net
    data = CharDataModule(str(text), block_size=16)
    data.setup()
    train, val = (data.stores[split].counts for split in ("train", "val"))
    losses = data.text_facts.baselines
    assert numbers(table["documents"]) == [1, 1]
    assert numbers(table["characters"]) == [train.chars, val.chars]
    assert numbers(table["tokens"])[:1] == [6 * 128]  # the last row of this name is the run's
    assert numbers(table["vocabulary"]) == [data.vocab_size]
    assert numbers(table["bytes a token"]) == [1.0]
    assert numbers(table["parameters"]) == [net.num_parameters()]
    assert numbers(table["without embeddings"]) == [net.num_parameters(embeddings=False)]
    assert numbers(table["FLOPs a token"])[0] == pytest.approx(net.flops_per_token(16), rel=0.01)
    assert [numbers(table[f"{name} loss"])[0] for name in ("uniform", "unigram", "bigram")] == pytest.approx(
        [math.log(data.vocab_size), losses.unigram, losses.bigram], abs=6e-4
    )
    assert numbers(table["steps"]) == [6]
    assert numbers(table["epochs"])[0] == pytest.approx(6 / -(-train.tokens // 128), abs=0.02)
    assert numbers(table["tokens a parameter"])[0] == pytest.approx(6 * 128 / net.num_parameters(), abs=0.006)
    assert numbers(table["batch"]) == [128, 8, 16]
    assert numbers(table["gradient accumulation"]) == [2, 4]
    assert table["precision"] == "32-true"
    assert table["device"].startswith("cpu")
    assert "MB a process" in table["memory expected"]


def test_the_table_is_above_all_else_and_fits_80_columns(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(*QUICK)
    out = capsys.readouterr().out
    top = out[: out.index("\nstep ")]
    assert max(map(len, top.splitlines())) <= 80
    assert re.match(r"\s+text +source", top)
    assert "decay" not in out
    assert "tensors" not in out


def test_the_end_has_the_losses_to_compare_with(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(*QUICK)
    stored = json.loads((folder / "summary.json").read_text())["baselines"]
    told = re.search(
        r"^without a network: bigram ([\d.]+), unigram ([\d.]+), ln V ([\d.]+)$", capsys.readouterr().out, 8
    )
    assert told is not None
    assert [float(loss) for loss in told.groups()] == pytest.approx(
        [stored["bigram"], stored["unigram"], stored["uniform"]], abs=1e-4
    )


def test_data_of_other_kinds_have_a_table_of_dashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kinds.py").write_text(OTHER_KINDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    flags = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", "2", *QUICK]
    run("fit", [*TINY[:8], "--data", "kinds.Ids", *flags])
    out = capsys.readouterr().out
    table = cells(out)
    assert [table[name] for name in ("source", "documents", "batch", "memory expected")] == ["-"] * 4
    assert numbers(table["uniform loss"])[0] == pytest.approx(math.log(7), abs=6e-4)
    assert "without a network" not in out
    assert json.loads(Path("logs/run/version_0/summary.json").read_text())["baselines"]["bigram"] is None


OTHER_KINDS = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

class Ids(LightningDataModule):
    vocab_size = 7
    def train_dataloader(self):
        ids = torch.arange(85).view(5, 17) % 7
        return DataLoader([{"input_ids": row[:-1], "targets": row[1:]} for row in ids], batch_size=2)
    val_dataloader = train_dataloader
"""


def test_a_network_that_cannot_be_traced_is_trained_all_the_same(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("lit_gpt.sizes.memory", fail)
    fit(*QUICK)
    assert cells(capsys.readouterr().out)["memory expected"] == "-"


# ---- the end


def test_a_resumed_run_names_its_folder_as_the_first_run_did(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(*QUICK)
    first = ends(capsys)
    fit(*QUICK, "--trainer.max_steps", "8", "--ckpt_path", str(folder))
    assert ends(capsys) == first
    assert first[0] == "everything about this run is in logs/run/version_0"
    assert "--ckpt_path logs/run/version_0 --prompt" in first[2]
    assert len(first[2]) <= 80
    fit(*QUICK, "--trainer.max_steps", "8", "--resume", "auto")
    told = capsys.readouterr().out
    assert "logs/run/version_0 is finished: a new run starts in logs/run/version_1 (--ckpt_path logs/run/v" in told


def ends(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    return lines[lines.index(next(line for line in lines if line.startswith("everything about"))) :]


def test_lines_to_type_are_whole_and_quoted(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    far = "a folder with a long name " * 5
    run("fit", [*TINY, "--data.source", str(text), "--logs_dir", far.strip(), *QUICK])
    command = shlex.split(next(line for line in ends(capsys) if "generate" in line))
    assert command[command.index("--ckpt_path") + 1] == f"{far.strip()}/run/version_0"
    assert command[-2] == "--prompt"


@pytest.mark.parametrize(("share", "is_told"), [(0.5, True), (0.34, True), (0.33, False)])
def test_validations_that_take_much_of_the_time_are_told_with_the_option(
    share: float, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"training_seconds": 10 * (1 - share), "validation_seconds": 10 * share}
    monkeypatch.setattr(summary_module, "_pace", lambda trainer: times)
    lines = summary_module._validation_lines(Trainer(logger=False, accelerator="cpu", enable_progress_bar=False))
    begins = f"validations took {share:.0%} of the time: for fewer, raise --trainer.val_check_interval;"
    assert [line.startswith(begins) for line in lines] == [True] * is_told


@pytest.mark.parametrize("value", [1, None])
def test_a_run_whose_summary_does_not_say_finished_is_finished_by_a_resume(value: object, fit: Fit) -> None:
    folder = fit(*QUICK)
    path = folder / "summary.json"
    told = json.loads(path.read_text())
    if value is None:
        path.unlink()
    else:
        path.write_text(json.dumps(told | {"finished": value}))
    assert fit(*QUICK, "--resume", "auto") == folder
    again = json.loads(path.read_text())
    assert (again["finished"], again["steps"], again["best"]) == (True, told["steps"], told["best"])
