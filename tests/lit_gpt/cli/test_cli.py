"""The command line in this process: layered configs, precedence, run folders, resume, every mistake by its sentence."""

import argparse
import configparser
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

import lit_gpt
from datamodules.errors import UserError
from lit_gpt import checkpoint
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from lit_gpt.cli import arguments, values
from lit_gpt.cli.arguments import with_packaged_configs
from lit_gpt.cli.lightning_cli import LitCLI, run
from lit_gpt.commands import run as run_command
from tests.conftest import TINY
from tests.lit_gpt.cli.conftest import rows

Fit = Callable[..., Path]
ROOT = Path(__file__).parents[3]


def test_a_run_leaves_everything_in_its_folder(fit: Fit) -> None:
    folder = fit()
    names = {path.name for path in folder.rglob("*")}
    assert {"metrics.csv", "config.yaml", "summary.json", "best.ckpt", "last.ckpt"} <= names
    assert any("tfevents" in name for name in names)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"]
    assert summary["steps"] == 6
    assert summary["tokens"] == 6 * 128
    assert summary["best"]["val/loss"] <= summary["final"]["val/loss"]
    assert summary["best"]["step"] == checkpoint.read(folder / "checkpoints" / "best.ckpt")["global_step"]
    assert summary["hashes"].keys() == {"config", "data", "tokenizer"}
    for name in ("loss", "top1", "top5", "bpb", "nats_per_char"):
        assert {f"val/{name}", f"train_eval/{name}"} <= summary["final"].keys()
    losses = [float(row["train/loss"]) for row in rows(folder) if row["train/loss"]]
    assert [int(row["step"]) for row in rows(folder) if row["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert losses[-1] < losses[0]


def test_the_metrics_of_the_headline_challenge_come_on_request_only(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    headlines = ("--data", "HeadlinesDataModule", "--data.tokenizer", "byte")
    folder = fit(*headlines)
    assert "challenge" not in (folder / "metrics.csv").read_text() + (folder / "summary.json").read_text()
    assert "challenge" not in capsys.readouterr().out
    folder = fit(*headlines, "--data.challenge_metrics", "true")
    out, summary = capsys.readouterr().out, json.loads((folder / "summary.json").read_text())
    assert {name for name in summary["final"] if "challenge" in name} == {
        "val/challenge_loss",
        "val/challenge_coverage",
    }
    assert 0 < summary["final"]["val/challenge_coverage"] < 1
    assert f"  challenge_loss {summary['final']['val/challenge_loss']:.4f}  challenge_coverage 0." in out
    assert {row["step"]: row["val/challenge_loss"] for row in rows(folder) if row["val/loss"]}.keys() == {"3", "6"}
    assert not [name for name in summary["final"] if "train_eval/challenge" in name]


def test_the_best_of_the_summary_is_what_was_monitored_over_all_parts_of_a_run(fit: Fit) -> None:
    monitor = ["--checkpoint.monitor", "train_eval/top1", "--checkpoint.mode", "max", "--model.optimizer.lr", "0.1"]
    folder = fit(*monitor, "--trainer.max_steps", "9")
    flags = [*monitor, "--trainer.max_steps", "12", "--trainer.val_check_interval", "1"]
    fit("--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), *flags)
    found = {int(row["step"]): float(row["train_eval/top1"]) for row in rows(folder) if row["train_eval/top1"]}
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert set(found) == {3, 6, 9, 10, 11, 12}
    assert best["step"] == max(found, key=found.__getitem__)
    assert best["train_eval/top1"] == pytest.approx(max(found.values()), abs=1e-5)
    assert checkpoint.read(folder / "checkpoints" / "best.ckpt")["global_step"] == best["step"]


def test_two_runs_get_two_folders(fit: Fit) -> None:
    assert [fit().name, fit().name] == ["version_0", "version_1"]


def test_layers_of_configs_and_flags(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("model: {config: {n_layer: 3, n_head: 1}}\nname: first\n")
    Path("b.yaml").write_text("model: {config: {n_layer: 2}}\n")
    flags = ["--config", "a.yaml", "--config", "b.yaml", "--model.config.n_head", "4", "--data.source", str(text)]
    flags += ["--model.config.n_embd", "8", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    flags += ["--model.config.block_size", "16", "--trainer.limit_val_batches", "1"]
    run("fit", flags)
    resolved = yaml.safe_load(Path("logs/first/version_0/config.yaml").read_text())
    config = resolved["model"]["init_args"]["config"]
    assert (config["n_layer"], config["n_head"], config["n_embd"]) == (2, 4, 8)


@pytest.mark.parametrize("config", [["--config", "x.yaml"], ["--config=x.yaml"]])
@pytest.mark.parametrize("flag", [["--preset", "llama"], ["--preset=llama"]])
def test_the_last_preset_wins(
    config: list[str], flag: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("preset: gpt2\n")
    assert values.preset([*config, *flag]) == "llama"
    assert values.preset([*flag, *config]) == "gpt2"


def test_explicit_values_win_over_a_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run("fit", [*TINY, "--data.source", str(text), "--preset", "llama", "--model.config.n_kv_head", "1"])
    config = checkpoint.read("logs/run/version_0/checkpoints/last.ckpt")["lit_gpt"]["config"]
    assert (config["activation"], config["n_kv_head"], config["n_layer"]) == ("swiglu", 1, 1)


def test_fit_obeys_the_command_line_when_it_resumes(fit: Fit) -> None:
    folder = fit("--model.optimizer.lr", "0.01", "--model.optimizer.schedule", "constant")
    fit(
        *("--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--model.optimizer.lr", "0.5"),
        *("--model.optimizer.schedule", "constant", "--trainer.max_steps", "8"),
    )
    rates = {int(row["step"]): float(row["lr/matrices"]) for row in rows(folder) if row["lr/matrices"]}
    assert rates == {**dict.fromkeys(range(1, 7), 0.01), 7: 0.5, 8: 0.5}


def test_validate_obeys_the_checkpoint(fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit()
    expected = json.loads((folder / "summary.json").read_text())["final"]["val/loss"]
    path = str(folder / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    run("validate", ["--ckpt_path", path, "--data.source", str(text), "--trainer.accelerator", "cpu"])
    assert f"val {expected:.4f}" in capsys.readouterr().out


def test_a_test_says_what_a_validation_says(fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--ckpt_path", str(fit()), "--data.source", str(text), "--trainer.accelerator", "cpu"]
    capsys.readouterr()
    run("validate", [*flags, "--data.train_eval_rows", "0"])
    validated = capsys.readouterr().out
    line = r"scoring the val split of .*my text\.txt, as in the run\n"
    assert re.fullmatch(line + r"val [\d.]+  top-1 [\d.]+%  top-5 [\d.]+%  [\d.]+ bits/byte\n", validated)
    text.with_name("held out.txt").write_text(text.read_text()[-len(text.read_text()) // 10 :])
    run("test", [*flags, "--data.test_source", "held out.txt"])
    named, found = capsys.readouterr().out.splitlines()
    assert named == "scoring the test split of held out.txt, not the text and split of the run"
    assert found.startswith("test ")


def test_predict_writes_every_token_of_a_text(
    fit: Fit, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit()
    other = tmp_path / "other.txt"
    other.write_text("the model stops.")
    flags = ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--data.source", str(text)]
    run("predict", [*flags, "--data.predict_source", str(other), "--trainer.accelerator", "cpu"])
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 1
    assert "wrote 1 document, 15 tokens to " in capsys.readouterr().out
    tokens = lines[0]["tokens"]
    assert "".join(t["token"] for t in tokens) == "he model stops."
    model = lit_gpt.load(folder / "checkpoints" / "last.ckpt")
    ids = torch.tensor(model.tokenizer.encode("the model stops."))
    logits = model.net(ids[None, :-1])[0].detach()  # (T, V)
    for token, scores, target in zip(tokens, logits, ids[1:], strict=True):
        nats = float(F.cross_entropy(scores, target))
        assert (token["id"], token["rank"]) == (target, (scores > scores[target]).sum())
        assert token["nats"] == pytest.approx(nats, abs=1e-4)
        assert token["probability"] == pytest.approx(math.exp(-nats), abs=1e-4)
    assert lines[0]["nats"] == pytest.approx(sum(token["nats"] for token in tokens), abs=1e-3)


def test_early_stopping_by_one_key(fit: Fit) -> None:
    folder = fit("--early_stopping", "1", "--model.optimizer.lr", "0", "--trainer.max_steps", "30")
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        (["--help"], "--checkpoint.every_n_steps"),
        (["--model.help", "LitGPT"], "--optimizer.betas"),
        (["--model.help", "LitBigram"], "--config.kind"),
        (["--data.help", "CharDataModule"], "--stride"),
        (["--data.help", "BPEDataModule"], "--vocab_size"),
        (["--data.help", "HeadlinesDataModule"], "--strip"),
    ],
)
def test_every_option_has_a_sentence(asked: list[str], known: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        LitCLI("fit", asked)
    options = re.findall(r"^  (--[\w.]+)([^\n]*(?:\n {10,}[^\n]*)*)", capsys.readouterr().out, re.MULTILINE)
    assert any(name.endswith(known.removeprefix("--")) for name, _ in options)
    for name, rest in options:
        _, _, friendly_error = re.sub(r" {2,}", "\n", rest).partition("\n")  # after NAME's value
        assert len(friendly_error.split("(type:")[0].split()) > 3, name


MISTAKES: dict[str, tuple[list[str], str]] = {
    "typo in a flag": (["--model.config.n_layr", "3"], "did you mean --model.config.n_layer"),
    "typo in an optimizer flag": (["--model.optimizer.wramup", "3"], "did you mean --model.optimizer.warmup"),
    "typo in a trainer flag": (["--trainer.max_stps", "3"], "did you mean --trainer.max_steps"),
    "typo in a data flag": (["--data.sorce", "x"], "did you mean --data.source"),
    "a word for a number": (["--model.config.n_layer", "six"], "option --model.config.n_layer cannot be 'six'"),
    "an unknown choice": (["--model.config.norm", "batchnorm"], "use layernorm, rmsnorm"),
    "heads that do not divide": (["--model.config.n_head", "3"], "n_embd 16 is not divisible by n_head 3"),
    "a preset that is none": (["--preset", "lama"], "did you mean llama"),
    "no config": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "no source": (["--data.source", "nowhere.txt"], "nowhere.txt"),
    "an empty source": (["--data.source", "empty.txt"], "empty.txt"),
    "a folder without text": (["--data.source", "hollow"], "hollow"),
    "not UTF-8": (["--data.source", "latin1.txt"], "offset 3"),
    "too short a text": (["--data.source", "short.txt"], "short.txt has"),
    "a checkpoint that is none": (["--ckpt_path", "nowhere.ckpt"], "'nowhere.ckpt' does not exist"),
    "a checkpoint cut short": (["--ckpt_path", "torn.ckpt"], "is cut short or damaged"),
    "a text as checkpoint": (["--ckpt_path", "short.txt"], "is no checkpoint: give one that `fit` saved."),
    "a foreign checkpoint": (["--ckpt_path", "foreign.ckpt"], "was not written by lit_gpt"),
    "a newer checkpoint": (["--ckpt_path", "newer.ckpt"], "upgrade lit-gpt"),
    "an abbreviated trainer flag": (["--trainer.max_step", "3"], "did you mean --trainer.max_steps"),
    "an abbreviated model flag": (["--model.config.n_lay", "3"], "did you mean --model.config.n_layer"),
    "an abbreviated flag": (["--pres", "gpt2-medium"], "did you mean --preset"),
    "part of an epoch": (["--trainer.val_check_interval", "0.5"], "`val_check_interval` should be an integer"),
    "no devices": (["--trainer.devices", "0"], "devices='0'"),
    "a logger that is not installed": (["--trainer.logger", "MLFlowLogger"], "mlflow"),
    "an optimizer that is none": (["--model.optimizer.kind", "torch.optim.Nope"], "has no attribute 'Nope'"),
    "a class that is no optimizer": (["--model.optimizer.kind", "torch.nn.Linear"], "is no optimizer: give a class"),
    "a growing weight": (["--model.optimizer.weight_decay", "-0.1"], "decay -0.1 is out of range: give 0 or more."),
    "arguments of another optimizer": (
        ["--model.optimizer.kind", "torch.optim.SGD", "--model.optimizer.args", "{beta: 1}"],
        "unexpected keyword argument 'beta'",
    ),
    "a config without its option": (["tiny.yaml"], "'tiny.yaml' stands alone: give it as --config tiny.yaml."),
    "a strategy that is none": (["--trainer.strategy", "dpp"], "trainer.strategy 'dpp' is unknown: did you mean ddp?"),
    "a strategy like none": (["--trainer.strategy", "x"], "use auto, ddp, fsdp2, ddp_notebook, ddp_fork."),
    "a strategy of another name": (["--trainer.strategy", "zero"], "did you mean fsdp2?"),
    "a strategy that copies objects": (["--trainer.strategy", "ddp_spawn"], "use --trainer.strategy ddp, or ddp_noteb"),
    "another one": (["--trainer.strategy", "ddp_spawn_find_unused_parameters_true"], "use --trainer.strategy ddp, or"),
    "a class that shards weights": (["--trainer.strategy", "FSDPStrategy"], "use --trainer.strategy fsdp2, or ddp,"),
    "fsdp": (["--trainer.strategy", "fsdp"], "use --trainer.strategy fsdp2, or ddp,"),
    "fsdp with an offload": (["--trainer.strategy", "fsdp_cpu_offload"], "use --trainer.strategy fsdp2, or ddp,"),
    "deepspeed": (["--trainer.strategy", "deepspeed"], "use --trainer.strategy fsdp2, or ddp,"),
    "a stage of deepspeed": (["--trainer.strategy", "deepspeed_stage_3_offload_nvme"], "use --trainer.strategy fsdp2,"),
    "machines without a launcher": (
        ["--trainer.num_nodes", "2"],
        "trainer.num_nodes is 2, and nothing has told this process which machine it is on: use torchrun or srun to "
        "start it on each machine, or set NODE_RANK",
    ),
    "an accelerator that is none": (["--trainer.accelerator", "cpuu"], "invalid accelerator name"),
    "a validation after the epoch": (
        ["--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "100000"],
        "`val_check_interval` (100000) must be less than or equal to the number of the training batches",
    ),
    "an optimizer of one group": (["--model.optimizer.kind", "torch.optim.LBFGS"], "per-parameter options"),
    "a word without its option": (["more"], "'more' stands alone: put its option before it."),
    "a validation after no step": (["--trainer.val_check_interval", "0"], "val_check_interval is 0: give at least 1"),
    "fewer devices than none": (["--trainer.devices", "-1"], "should be an int > 0"),
    "a word for devices": (["--trainer.devices", "two"], "should be an int > 0"),
    "a file for the runs": (["--logs_dir", "short.txt"], "cannot be made in 'short.txt/run' (Not a directory): choose"),
    "a list of presets": (["--config", "presets.yaml"], "preset \"['gpt2']\" is unknown"),
    "a number for a preset": (["--config", "preset5.yaml"], "preset '5' is unknown"),
    "no trainer": (["--config", "no_trainer.yaml"], "trainer is null: leave it out"),
    "a precision that is none": (["--trainer.precision", "fp8"], "16-true, 16-mixed, bf16-true, bf16-mixed, 32-true"),
    "a foreign object": (
        ["--ckpt_path", "object.ckpt"],
        "'object.ckpt' names code, argparse.Namespace, which is never run",
    ),
    "no patience": (["--early_stopping", "0"], "early_stopping is 0: give at least 1"),
    "a word for the optimizer": (["--model.optimizer", "muon"], "set them, such as --model.optimizer.kind."),
    "a choice of one": (["--resume", "yes"], "option --resume cannot be 'yes': use auto."),
}


@pytest.fixture
def broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("hollow").mkdir()
    Path("latin1.txt").write_bytes("caf\xe9 au lait".encode("latin-1") * 100)
    Path("short.txt").write_text("too short")
    torch.save({"state_dict": {}}, "foreign.ckpt")
    torch.save({"lit_gpt": {"format": 99}}, "newer.ckpt")
    torch.save({"hyper_parameters": argparse.Namespace(a=1)}, "object.ckpt")
    for name, lines in (("presets", "preset: [gpt2]"), ("preset5", "preset: 5"), ("no_trainer", "trainer: null")):
        Path(f"{name}.yaml").write_text(lines)
    Path("torn.ckpt").write_bytes(Path("newer.ckpt").read_bytes()[:200])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told(fit: Fit) -> None:
    with pytest.raises(UserError, match="a device that this machine has not"):
        fit("--trainer.accelerator", "gpu")


def test_a_part_of_the_configs_folder_is_found_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """setup.cfg installs ``configs`` as a folder of the package, with its folders."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "lit_gpt.configs = configs" in setup["options"]["package_dir"]
    assert "debug/*.yaml" in setup["options.package_data"]["lit_gpt.configs"]
    shutil.copytree(ROOT / "configs", tmp_path / "site" / "lit_gpt" / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arguments, "PACKAGE", tmp_path / "site" / "lit_gpt")
    name = next((ROOT / "configs" / "debug").glob("*.yaml")).relative_to(ROOT)
    assert with_packaged_configs(["--config", str(name)]) == ["--config", str(tmp_path / "site" / "lit_gpt" / name)]


@pytest.mark.parametrize("spelling", [["--config", "char.yaml"], ["--config=char.yaml"], ["-c=configs/char.yaml"]])
def test_our_configs_are_found_from_everywhere(
    spelling: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = (part.split("=")[-1] for part in with_packaged_configs(spelling) if part.endswith(".yaml"))
    assert "name: char" in Path(path).read_text()


def test_our_own_verbs_take_no_abbreviations() -> None:
    with pytest.raises(UserError, match="did you mean --temperature"):
        run_command("generate", ["--ckpt_path", "x", "--temp", "0.5"])


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.usefixtures("broken_files")
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(name: str, text: Path) -> None:
    flags, expected = MISTAKES[name]
    given = [*TINY, "--data.source", str(text), *flags]
    with pytest.raises(UserError) as caught:
        run("fit", given)
    friendly_error = str(caught.value)
    assert expected in friendly_error
    assert "\n" not in friendly_error
    assert "Namespace(" not in friendly_error, "a report of the parser, not a sentence"
    assert "Subtypes" not in friendly_error, "a report of the parser, not a sentence"
    assert not list(Path().glob("logs/*"))


def test_metrics_csv_goes_on_without_duplicates(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path)
    for step in (1, 2, 3):
        log.log_metrics({"a": step}, step)
    log.log_metrics({"b": 0.5}, 3)
    again = MetricsCSV(tmp_path)
    again.rewind(2)
    again.log_metrics({"a": 30, "b": 1}, 3)
    assert [(r["step"], r["a"], r["b"]) for r in rows(tmp_path)] == [("1", "1", ""), ("2", "2", ""), ("3", "30", "1")]


@pytest.mark.parametrize("null", [["--model.config.softcap", "null"], ["--model.config.softcap=null"]])
def test_null_turns_an_option_off(null: list[str], fit: Fit) -> None:
    folder = fit(*null)
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["config"]["softcap"] is None
