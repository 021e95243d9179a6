"""The page for people who bring a network, data, loss, metric and callback of their own: its code in every verb."""

import csv
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import lit_gpt
from datamodules.errors import UserError
from lit_gpt import checkpoint
from lit_gpt.cli.lightning_cli import run
from lit_gpt.commands import run as run_command

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.log_every_n_steps", "1"]
#: Enough for the checks here.
SHORT = {"--trainer.max_steps": {"40": "4", "60": "6"}, "--trainer.val_check_interval": {"20": "2"}}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands(verb: str) -> list[list[str]]:
    """The arguments of the page's commands of a verb, with fewer steps."""
    lines = [shlex.split(line) for line in blocks("sh")[-1].splitlines()]
    found = [line[4:] for line in lines if line[3] == verb]
    return [[SHORT.get(before, {}).get(part, part) for before, part in zip(["", *a], a, strict=False)] for a in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the page's code is ``mine.py``, and its first ``fit`` has run."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "mine.py").write_text("\n\n".join(blocks("python")), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        run("fit", [*commands("fit")[0], *CPU])
        yield folder
    del sys.modules["mine"]


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def rows() -> list[dict[str, str]]:
    with Path("logs/run/version_0/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """Nats (N,) of the scored targets of the test split, and the targets, from weights and sums alone."""
    import mine

    stored = torch.load(checkpoint.file_of("logs/run/version_0"), weights_only=True)
    net = mine.GRU(mine.GRUConfig(**stored["lit_gpt"]["config"]))
    net.load_state_dict({k.removeprefix("net."): v for k, v in stored["state_dict"].items() if k.startswith("net.")})
    texts = [f"{n // 100}+{n % 100:02d}={n // 100 + n % 100:03d}\n" for n in range(9000, 10000)]
    ids = torch.tensor([mine.Sums().tokenizer.encode(text) for text in texts])  # (1000, 10)
    with torch.no_grad():
        logits = net(ids[:, :-1])[:, 5:]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 6:].flatten(), reduction="none"), ids[:, 6:].flatten()


def test_each_piece_is_about_twenty_lines() -> None:
    classes = [part for code in blocks("python") for part in re.split(r"^(?=class |@)", code, flags=re.MULTILINE)[1:]]
    assert len(classes) >= 7
    assert max(len(part.strip().splitlines()) for part in classes) <= 32


def test_fit_logs_the_loss_the_metric_and_the_callback_and_goes_on() -> None:
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):  # as the page says
        run("fit", [*commands("fit")[1], *CPU])
    found = {int(row["step"]): row for row in rows() if row["val/loss"]}
    assert set(found) == {2, 4, 6}
    assert {int(row["step"]) for row in rows() if row["val/largest_state"]} == {2, 4, 6}
    assert all(float(row["train/z_loss"]) > 0 for row in rows() if row["train/loss"])
    last = json.loads(Path("logs/run/version_0/summary.json").read_text())["final"]
    assert last["val/answer_probability"] == pytest.approx(math.exp(-4 * last["val/loss"]), rel=1e-3)


def test_the_line_that_fit_ends_with_generates(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", [*commands("fit")[0], *CPU, "--name", "closing"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "lit_gpt generate" in line)
    assert "--model mine.LitGRU" in line
    arguments = shlex.split(line.split("lit_gpt generate ")[1])
    run_command("generate", [*arguments[:-1], "1", "--device", "cpu"])
    assert capsys.readouterr().out.startswith("1")


def test_a_network_and_data_of_ones_own_are_shrunk(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", [*commands("fit")[0], *CPU, "--shrink", "--name", "own"])
    line = capsys.readouterr().out.splitlines()[0]
    assert line == "shrunk: batch_size 32 to 8, LitCalmGRU has no n_layer or n_embd to shrink"
    assert json.loads(Path("logs/own-shrink/version_0/summary.json").read_text())["steps"] == 4


def test_the_other_verbs_score_what_the_network_says(capsys: pytest.CaptureFixture[str]) -> None:
    nats, targets = by_hand()
    run("validate", [*commands("validate")[0], *CPU])
    assert re.search(r"^val \d.*  answer_probability 0\.\d+$", capsys.readouterr().out, re.MULTILINE)
    run("test", [*commands("test")[0], *CPU])
    assert f"test {float(nats.mean()):.4f}" in capsys.readouterr().out
    run("predict", [*commands("predict")[0], *CPU])
    lines = [json.loads(line) for line in Path("logs/run/version_0/predictions.jsonl").read_text().splitlines()]
    assert [line["document"] for line in lines] == list(range(1000))
    tokens = [token for line in lines for token in line["tokens"]]
    assert [token["id"] for token in tokens] == targets.tolist()
    assert [token["nats"] for token in tokens] == pytest.approx(nats.tolist(), abs=2e-5)
    assert "".join(token["token"] for token in lines[7]["tokens"]) == "097\\n"


def test_generate_and_load_are_one_network(capsys: pytest.CaptureFixture[str]) -> None:
    import mine

    (arguments,) = commands("generate")
    run_command("generate", [*arguments, "--temperature", "0", "--device", "cpu"])
    answer = mine.answer("logs/run/version_0", "27+65=")
    assert capsys.readouterr().out == f"27+65={answer}\n"
    model = lit_gpt.load("logs/run/version_0", model="mine.LitGRU")
    several = ["27+65=", "1", "34+", "27+65"]
    alone = [model.generate(one, temperature=0, max_new_tokens=3)[0] for one in several]
    assert model.generate(several, temperature=0, max_new_tokens=3) == alone


def test_export_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    tensors = pytest.importorskip("safetensors.torch", reason="the hf extra is not installed")
    run_command("export", commands("export")[0])
    stored = checkpoint.read("logs/run/version_0")["state_dict"]
    exported = tensors.load_file("exported/model.safetensors")
    assert exported.keys() == {name.removeprefix("net.") for name in stored if name.startswith("net.")}
    assert torch.equal(exported["gru.weight_hh_l0"], stored["net.gru.weight_hh_l0"])
    with pytest.raises(UserError, match=r"mine\.LitGRU has no counterpart .* --format safetensors"):
        run_command("export", ["--ckpt_path", "logs/run/version_0", "--out", "hf"])
    capsys.readouterr()
    run_command("data", commands("data")[0])
    assert "input   00+00=000\n" in capsys.readouterr().out


def test_a_file_alone_never_chooses_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", None)  # an import would fail
    path = "logs/run/version_0"
    for use in (
        lambda: lit_gpt.load(path),
        lambda: run_command("generate", ["--ckpt_path", path, "--device", "cpu"]),
        lambda: run("validate", ["--ckpt_path", path, "--data", "CharDataModule", *CPU]),
    ):
        with pytest.raises(UserError, match=r"is of mine\.LitGRU, .* add --model mine\.LitGRU,"):
            use()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("mine.LitGUR", r"--model 'mine\.LitGUR' cannot be imported .*: check its spelling"),
        ("mine.GRU", r"--model 'mine\.GRU' is no LitLanguageModel"),
        ("lit_gpt.LitGPT", r"is of mine\.LitGRU, not of lit_gpt\.module\.LitGPT"),
        ("mine.LitDemanding", r"cannot be made from its config alone .*'depth'"),
    ],
)
def test_a_wrong_class_is_a_sentence(model: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mine

    class LitDemanding(mine.LitGRU):
        def __init__(self, depth: int, **options: Any) -> None:
            super().__init__(**options)

    monkeypatch.setattr(mine, "LitDemanding", LitDemanding, raising=False)
    with pytest.raises(UserError, match=told):
        run_command("generate", ["--ckpt_path", "logs/run/version_0", "--model", model, "--device", "cpu"])
