"""`--shrink`: any configuration in small, on this machine, without a network."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from datamodules import downloads
from datamodules.errors import UserError
from lit_gpt.cli import shrink
from lit_gpt.cli.lightning_cli import LitCLI, run
from lit_gpt.cli.parsed import ParsedCLI
from lit_gpt.config import PRESETS, GPTConfig
from lit_gpt.methods.config import ExtendedGPTConfig

Fit = Callable[..., Path]
ROOT = Path(__file__).parents[3]
GPT2 = ["--config", str(ROOT / "configs" / "gpt2_124m.yaml")]


def parsed(*flags: str) -> Namespace:
    return ParsedCLI("fit", list(flags)).config.fit


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_every_shape_that_is_valid_stays_valid() -> None:
    sizes = itertools.product((1, 3, 6, 12, 25), (8, 40, 64, 128), (False, True), ("relu2", "swiglu"))
    for heads, head_size, tied, activation in sizes:
        for kv in (n for n in range(1, heads + 1) if heads % n == 0):
            shape = {"n_head": heads, "n_kv_head": kv, "n_embd": heads * head_size, "n_layer": 24}
            config = GPTConfig(**shape, mlp_width=heads * 100, tied_head=tied, activation=activation)
            small = shrink.shrunk_config(config)  # a GPTConfig refuses an invalid combination
            assert small.n_layer == 2
            assert small.n_embd == min(64, config.n_embd)
            assert (small.n_head, small.n_kv_head) == (heads, kv) or config.n_embd > 64
            assert small.mlp_width == pytest.approx(config.mlp_width * small.n_embd / config.n_embd, abs=1)
    for preset in PRESETS.values():
        assert shrink.shrunk_config(GPTConfig(**preset, vocab_size=100)).matrix_parameters < 150_000


def test_methods_are_shrunk_and_stay_on() -> None:
    large = ExtendedGPTConfig(members=4, token_parts=True, ngrams=[2, 3], kneser_ney=4, vocab_size=1000, n_parts=500)
    small = shrink.shrunk_config(large)
    assert (small.members, small.ngram_rows) == (2, 1024)
    assert (small.token_parts, small.ngrams, small.kneser_ney) == (True, [2, 3], 4)


@pytest.mark.usefixtures("no_gpu")
def test_a_run_for_eight_gpus_becomes_one_for_this_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    cluster = ["--trainer.accelerator", "gpu", "--trainer.devices", "8", "--trainer.strategy", "ddp"]
    config = parsed(*GPT2, *cluster, "--shrink", "--trainer.num_nodes", "4")
    trainer, data, model = config.trainer, config.data.init_args, config.model.init_args
    assert (trainer.accelerator, trainer.devices, trainer.strategy, trainer.num_nodes) == ("auto", 1, "auto", 1)
    assert (trainer.precision, model.compile) == ("32-true", False)
    assert (trainer.max_steps, trainer.val_check_interval, model.optimizer.warmup) == (20, 10, 0.1)
    assert (data.source, data.documents, data.column, data.tokenizer) == (None, None, None, "bpe")
    assert (data.max_bytes, data.val_fraction) == (1_000_000, 0.1)
    assert (data.tokens_per_step, data.micro_batch_size) == (8 * 128, 4)  # still several micro-batches
    assert (config.name, config.shrink) == ("gpt2_124m-shrink", False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("shrunk: n_layer 12 to 2, block_size 1024 to 128, n_embd 768 to 64, n_head 12 to 8, ")
    assert "source hf:Skylion007/openwebtext@main to an embedded text (it is not on this machine)" in line
    assert "tokenizer gpt2 to bpe (its files are not on this machine)" in line


def test_what_a_gpu_can_do_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(shrink.shutil, "which", lambda name: f"/usr/bin/{name}")
    for has_bf16, precision in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **options: has)
        config = shrink.shrunk(parsed(*GPT2))
        assert (config.trainer.precision, config.model.init_args.compile) == (precision, True)
    on_cpu = shrink.shrunk(parsed(*GPT2, "--trainer.accelerator", "cpu", "--model.residual_dtype", "bfloat16"))
    assert (on_cpu.trainer.precision, on_cpu.model.init_args.residual_dtype) == ("32-true", "float32")
    monkeypatch.setattr(shrink.shutil, "which", lambda name: None)
    assert not shrink.shrunk(parsed(*GPT2)).model.init_args.compile


def test_a_smaller_run_stays_as_small() -> None:
    tiny = ["--model.config.n_layer", "1", "--model.config.n_head", "3", "--model.config.n_embd", "24"]
    more = ["--model.config.block_size", "32", "--data.tokens_per_step", "64", "--trainer.max_steps", "6"]
    every = ["--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "3", "--data.max_bytes", "500"]
    before = parsed(*tiny, *more, *every)
    after = shrink.shrunk(before)
    assert after.model == before.model
    assert after.data == before.data
    for name in ("max_steps", "val_check_interval", "limit_val_batches"):
        assert after.trainer[name] == before.trainer[name]


def test_downloads_that_are_here_are_used(tmp_path: Path) -> None:
    flags = ["--data.source", '["moby_dick", "tiny_shakespeare"]', "--data.cache_dir", str(tmp_path)]
    assert shrink.shrunk(parsed(*flags)).data.init_args.source is None
    apart = shrink.shrunk(parsed(*flags, "--data.val_source", "taylor_swift", "--data.val_fraction", "0"))
    assert (apart.data.init_args.val_source, apart.data.init_args.val_fraction) == (None, 0.1)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "tiny_shakespeare.txt").touch()
    assert shrink.shrunk(parsed(*flags)).data.init_args.source == ["tiny_shakespeare"]
    (tmp_path / "downloads" / "moby_dick.txt").touch()
    assert shrink.shrunk(parsed(*flags)).data.init_args.source == ["moby_dick", "tiny_shakespeare"]


def test_only_the_beginning_of_a_text_is_read_and_the_checkpoint_knows(
    fit: Fit, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shrink, "MAX_BYTES", 3000)
    text.write_text(text.read_text() + "ÿ never read")
    folder = fit("--shrink", runs="run-shrink")
    assert folder.parts[-2:] == ("run-shrink", "version_0")
    assert not Path("logs/run").exists()
    config = (folder / "config.yaml").read_text()
    assert "max_bytes: 3000" in config
    assert "shrink: false" in config
    cli = LitCLI("validate", ["--ckpt_path", str(folder), "--trainer.accelerator", "cpu"])
    stores = cli.datamodule.stores
    beginning = text.read_text()[:3000]
    assert sum(len(store) for store in stores.values()) == 3000
    assert cli.datamodule.tokenizer.vocab_size == len(set(beginning))
    assert "my text.txt, as in the run" in capsys.readouterr().out


@pytest.mark.slow  # 2.4 s
def test_any_config_takes_any_text(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own is a table of the hub, one column of which is read."""
    monkeypatch.chdir(tmp_path)
    run("fit", [*GPT2, "--shrink", "--data.source", str(text), "--trainer.max_steps", "1"])
    (summary,) = Path("logs").glob("gpt2_124m-shrink/version_0/summary.json")
    assert json.loads(summary.read_text())["steps"] == 1


def test_a_real_run_never_goes_on_from_a_shrunk_one(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    real = fit()
    before = {path.name: path.read_bytes() for path in real.rglob("*.ckpt")}
    fit("--shrink", "--ckpt_path", str(real), runs="run-shrink")
    assert "ckpt_path" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in real.rglob("*.ckpt")} == before
    assert fit("--resume", "auto").name == "version_1"


def test_weights_of_another_size_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed("--model.init_from", "gpt2", "--preset", "gpt2", "--shrink")
    assert config.model.init_args.init_from is None
    assert "init_from gpt2 left out: its weights have another size" in capsys.readouterr().out


def test_weights_and_biases_stays_offline() -> None:
    config = parsed()
    wandb = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace(offline=False, id="x"))
    csv = Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace(save_dir="logs"))
    for given in (wandb, [csv, wandb]):
        config.trainer.logger = given
        smaller = shrink.shrunk(config).trainer.logger
        assert str(smaller) == str(given).replace("offline=False", "offline=True")
        assert not wandb.init_args.offline
    assert "loggers offline" in shrink.described(config)


def test_what_has_no_known_size_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed("--model", "LitBigram", "--shrink")
    assert config.model.init_args.config.block_size == 8
    assert capsys.readouterr().out.strip().endswith("LitBigram has no n_layer or n_embd to shrink")


def test_no_download_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object) -> None:
        raise UserError("a download was tried")

    monkeypatch.setattr(downloads, "_receive", refuse)
    monkeypatch.chdir(tmp_path)
    run("fit", ["--data.source", "moby_dick", "--shrink", "--trainer.max_steps", "1", "--samples.max_new_tokens", "0"])
