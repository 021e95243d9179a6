"""Import and init_from: the verbs end to end, what is refused, names on the hub."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import UserError
from datamodules.files import write_json
from datamodules.tokenizers import to_huggingface, train_tokenizer
from lit_gpt import LitGPT, load
from lit_gpt.baselines.bigram import BigramConfig, build_bigram
from lit_gpt.checkpoint import KEY, read
from lit_gpt.cli.lightning_cli import run as run_trainer
from lit_gpt.commands import run
from lit_gpt.interop.exporting import export_huggingface, export_safetensors
from lit_gpt.interop.gpt2_llama import to_huggingface as to_theirs
from lit_gpt.interop.importing import _translated, import_checkpoint, load_pretrained, load_weights
from lit_gpt.model import GPT, GPTConfig
from tests.lit_gpt.interop.cases import checkpoint_of, exported, small

Fit = Callable[..., Path]

safetensors = pytest.importorskip("safetensors.torch")
hub = pytest.importorskip("huggingface_hub")

GPT2_LIKE = [*("--preset", "gpt2", "--data", "BPEDataModule", "--data.tokenizer", "byte")]
FROZEN = [*("--model.optimizer.lr", "0", "--trainer.max_steps", "3")]


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def final_loss(folder: Path) -> float:
    return float(json.loads((folder / "summary.json").read_text())["final"]["val/loss"])


# The verbs


def test_export_then_import_gives_the_same_checkpoint(
    fit: Fit, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(*GPT2_LIKE)
    run("export", ["--ckpt_path", str(last(folder)), "--out", "hf"])
    run("import", ["--source", "hf", "--out", "back.ckpt"])
    said = capsys.readouterr().out
    assert "GPT2LMHeadModel: hf" in said
    assert "python -m lit_gpt generate --ckpt_path back.ckpt" in said
    assert load("back.ckpt").generate("the", temperature=0) == load(last(folder)).generate("the", temperature=0)
    module = LitGPT.load_from_checkpoint("back.ckpt")
    for name, tensor in read(last(folder))["state_dict"].items():
        assert torch.equal(module.state_dict()[name], tensor), name
    run_trainer("validate", ["--ckpt_path", "back.ckpt", *GPT2_LIKE[2:4], "--data.source", str(text)])
    assert f"val {final_loss(folder):.4f}" in capsys.readouterr().out


def test_a_new_run_starts_at_the_loss_of_its_weights(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    first = fit(*GPT2_LIKE)
    export_huggingface(read(last(first)), "hf")
    export_safetensors(read(last(first)), "plain")
    for source in (last(first), "hf", "plain"):
        folder = fit(*GPT2_LIKE, *FROZEN, "--model.init_from", str(source))
        assert final_loss(folder) == final_loss(first)
        assert f"starting from the weights of {source}" in capsys.readouterr().out
    assert final_loss(fit(*GPT2_LIKE, *FROZEN)) > final_loss(first) + 0.01


def test_a_resumed_run_needs_no_initial_weights(fit: Fit, tmp_path: Path) -> None:
    exported(tmp_path / "hf", n_embd=16)
    start = [*("--model.init_from", str(tmp_path / "hf")), *("--model.optimizer.schedule", "constant")]
    straight = fit(*GPT2_LIKE, *start)
    fit(*GPT2_LIKE, *start, "--trainer.max_steps", "3", "--name", "other")
    broken_off = tmp_path / "logs" / "other" / "version_0"
    shutil.rmtree(tmp_path / "hf")
    fit(*GPT2_LIKE, *start, "--ckpt_path", str(last(broken_off)))
    assert final_loss(broken_off) == final_loss(straight)
    model = LitGPT.load_from_checkpoint(last(straight))
    assert torch.equal(model.net.wte.weight, read(last(straight))["state_dict"]["net.wte.weight"])


def test_the_fine_tuning_config_trains(fit: Fit, tmp_path: Path) -> None:
    config = Path(__file__).parents[3] / "configs" / "finetune_gpt2.yaml"
    exported(tmp_path / "hf", n_embd=16)
    folder = fit(
        *("--config", str(config), "--name", "run", "--model.init_from", str(tmp_path / "hf")),
        *("--data.tokenizer", "byte", "--data.micro_batch_size", "4", "--trainer.max_steps", "6"),
        *("--model.config.n_layer", "1", "--model.config.n_head", "2", "--model.config.n_embd", "16"),
        *("--model.config.block_size", "16", "--data.tokens_per_step", "128"),
    )
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6


# Weights that a run starts from


def test_an_imported_checkpoint_is_no_run_to_resume(fit: Fit, tmp_path: Path) -> None:
    exported(tmp_path / "hf", n_embd=16)
    run("import", ["--source", str(tmp_path / "hf"), "--out", "imported.ckpt"])
    data = ["--data", "BPEDataModule", "--data.tokenizer", str(tmp_path / "hf" / "tokenizer.json")]
    with pytest.raises(UserError, match=r"holds weights alone.*--model\.init_from instead of --ckpt_path"):
        fit("--preset", "gpt2", *data, "--ckpt_path", "imported.ckpt")


def test_fewer_positions_and_another_padding(tmp_path: Path) -> None:
    theirs = exported(tmp_path, pad_vocab_to=32)
    ours = GPT(small(block_size=8, pad_vocab_to=64, dropout=0.5, init="normal")).eval()
    load_pretrained(ours, tmp_path)
    ids = torch.randint(257, (2, 8))
    torch.testing.assert_close(ours(ids), theirs(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 12}, r"has n_embd 8, not 12: set --model.config.n_embd 8 --model.config.mlp_width 32"),
        (
            {"n_layer": 2, "activation": "relu"},
            r"n_layer 1, not 2: set .*n_layer 1 .*activation gelu_tanh",
        ),
        ({"tied_head": False}, r"tied_head true, not false"),
        ({"softcap": 15.0}, r"softcap null, not 15.0: set --model.config.softcap null"),
        ({"vocab_size": 65}, r"has vocab_size 257, not 65: give the data the tokenizer of these weights"),
        ({"block_size": 32}, r"has block_size 16, not 32: set it to 16 or less"),
    ],
)
def test_weights_of_another_shape(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    exported(tmp_path)
    with pytest.raises(UserError, match=message):
        load_pretrained(GPT(small(**options)), tmp_path)


def test_only_a_gpt_can_be_started_from(tmp_path: Path) -> None:
    export_safetensors(checkpoint_of(build_bigram(BigramConfig(vocab_size=257))), tmp_path)
    with pytest.raises(UserError, match="holds a NeuralBigram"):
        load_weights(tmp_path)


# What cannot be imported


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "model_type 't5' cannot be imported: gpt2, llama and bert can"),
        ({"layer_norm_epsilon": -1e-5}, "norm_eps is -1e-05: give a positive number"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"activation_function": "silu"}, "activation_function silu"),
        ({"n_layer": 2}, r"lack transformer\.h\.1\.ln_1\.weight"),
        ({"n_layer": None}, "lacks 'n_layer'"),
        ({"n_inner": 16}, r"h\.0\.mlp\.c_fc\.weight has another shape"),
        ({"vocab_size": 200}, r"wte\.weight has another shape"),
    ],
)
def test_folders_that_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    exported(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    write_json(tmp_path / "config.json", {name: value for name, value in config.items() if value is not None})
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": 0.0}, "norm_eps is 0.0: give a positive number"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type llama3"),
        ({"head_dim": 2}, "head_dim 2"),
    ],
)
def test_llamas_that_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = GPTConfig.from_preset("llama", vocab_size=257, n_layer=1, n_head=4, n_embd=16, block_size=16)
    export_huggingface(checkpoint_of(GPT(config)), tmp_path)
    write_json(tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text()) | change)
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path)


def test_broken_folders(tmp_path: Path) -> None:
    exported(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors = safetensors.load_file(weights)
    safetensors.save_file(tensors | {"transformer.extra": torch.ones(1)}, weights)
    with pytest.raises(UserError, match=r"hold transformer\.extra, which their config.json has no place for"):
        load_weights(tmp_path)
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_weights(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_weights(tmp_path)
    safetensors.save_file(tensors, weights)
    config.write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[1]", "1", "null", '"x"', "{}", "[" * 100_000, '{"model_type": []}', '{"model_type": {"gpt2": 1}}', "\x00"],
    ids=range(9),
)
def test_a_config_that_is_none(content: str, tmp_path: Path) -> None:
    exported(tmp_path)
    (tmp_path / "config.json").write_text(content)
    refused_in_a_sentence(tmp_path)


@pytest.mark.parametrize("value", ["x", [1], {}, -1, 0, 1.5, 10**11, math.inf, math.nan, None, True])
@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_a_config_with_hostile_values(preset: str, value: Any, tmp_path: Path) -> None:
    """Whatever stands in one place of config.json, there is a model or a sentence."""
    config = GPTConfig.from_preset(preset, vocab_size=257, n_layer=1, n_head=4, n_embd=16, block_size=16)
    theirs, tensors = to_theirs(config, GPT(config).state_dict())
    for name in theirs:
        try:
            from_folder(theirs | {name: value}, tensors, tmp_path)
        except UserError as error:
            assert "\n" not in str(error), name  # noqa: PT017


def from_folder(config: dict[str, Any], tensors: dict[str, Any], folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    _translated(folder, dict(tensors))


def refused_in_a_sentence(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_weights(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("weights", [[torch.ones(1)], {"transformer.wte.weight": 3}, torch.ones(2), "text"], ids=str)
def test_a_pickle_of_something_else(weights: Any, tmp_path: Path) -> None:
    exported(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    refused_in_a_sentence(tmp_path)


def test_tensors_of_other_shapes(tmp_path: Path) -> None:
    exported(tmp_path)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    for name in tensors:
        for other in (torch.zeros(()), torch.zeros(2, 3, 4), torch.zeros(0)):
            safetensors.save_file(tensors | {name: other}, tmp_path / "model.safetensors")
            refused_in_a_sentence(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        *({"config": 3}, {"config": {"n_embd": 10**9}}, {"config": {"n_layer": 2}}, {"config": {"n_head": 0}}),
        *({"config": {"vocab_size": None}}, {"config": {"n_embd": "x"}}, {"format": 99}, {"module": None}),
    ],
    ids=str,
)
def test_metadata_of_our_export_that_were_forged(change: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = checkpoint_of(GPT(small()))
    export_safetensors(checkpoint, tmp_path)
    entry = {**checkpoint[KEY], **change}
    if isinstance(change.get("config"), dict):
        entry["config"] = {**checkpoint[KEY]["config"], **change["config"]}
    for text in (json.dumps(entry), "[1]", "{", "3"):
        tensors = safetensors.load_file(tmp_path / "model.safetensors")
        safetensors.save_file(tensors, tmp_path / "model.safetensors", {KEY: text})
        refused_in_a_sentence(tmp_path)


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    exported(tmp_path)
    write_json(tmp_path / "tokenizer.json", to_huggingface(train_tokenizer("bpe", ["the cat sat on the mat"], 260)))
    with pytest.raises(UserError, match=r"has 26\d tokens, the model 257"):
        import_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        import_checkpoint(tmp_path)


@pytest.mark.parametrize(("module", "source"), [("safetensors.torch", "folder"), ("huggingface_hub", "gpt2")])
def test_without_the_extra(module: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"needs the hf extra: pip install -e '\.\[hf\]'"):
        load_weights(source)


def test_a_damaged_pickle(tmp_path: Path) -> None:
    exported(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK" * 50)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged or cut short"):
        load_weights(tmp_path)


# The hub


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub library's cache with one model, and no network."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--small" / "snapshots" / ("0" * 40)
    exported(snapshot)
    (cache / "models--someone--small" / "refs").mkdir()
    (cache / "models--someone--small" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_name_on_the_hub(offline_hub: Path) -> None:
    assert load_weights("someone/small")[0] == load_weights(offline_hub)[0]


def test_names_that_lead_nowhere(offline_hub: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^someone/large is no folder here .* no copy in the cache\): check its name",
    ):
        load_weights("someone/large")
    with pytest.raises(UserError, match=r"/nowhere/at/all does not exist"):
        load_weights("/nowhere/at/all")
