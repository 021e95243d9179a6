"""Export: which fields of a GPT each format of Hugging Face's has, folders with the network's own code, safetensors."""

import ast
import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import UserError
from datamodules.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from lit_gpt.baselines.bigram import BigramConfig, build_bigram
from lit_gpt.checkpoint import KEY
from lit_gpt.commands import run
from lit_gpt.interop.exporting import export_huggingface, export_safetensors, huggingface_files
from lit_gpt.interop.gpt2_llama import FAMILIES, to_huggingface, without_counterpart
from lit_gpt.interop.importing import import_checkpoint, load_weights
from lit_gpt.interop.own_code import code_files
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.extended_gpt import ExtendedGPT
from lit_gpt.model import GPT, GPTConfig
from tests.lit_gpt.interop.cases import checkpoint_of, exported

Fit = Callable[..., Path]

safetensors = pytest.importorskip("safetensors.torch")

SIZES = {"vocab_size": 257, "n_layer": 1, "n_head": 2, "n_kv_head": None, "n_embd": 16, "block_size": 16}


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


# What each format has


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_each_field_is_decided_once(family: Any) -> None:
    """A new field of `GPTConfig` fails here until it is in one of the three tables of each format."""
    decided = [*family.mapped, *family.needs, *family.irrelevant]
    assert sorted(decided) == sorted(field.name for field in fields(GPTConfig))


@pytest.mark.parametrize("preset", FAMILIES)
def test_fields_without_effect_change_neither_config_nor_tensors(preset: str) -> None:
    other = {"rope_base": 500.0, "init": "normal", "position_std": 0.5, "pad_vocab_to": 64, "dropout": 0.3}
    plain = GPTConfig.from_preset(preset, **SIZES, attention_dropout=0.0)
    config, tensors = to_huggingface(plain, GPT(plain).state_dict())
    for name in FAMILIES[preset].irrelevant:
        changed = replace(plain, **{name: other[name]})
        again, its_tensors = to_huggingface(changed, GPT(changed).state_dict())
        assert again == config, name
        assert {n: t.shape for n, t in its_tensors.items()} == {n: t.shape for n, t in tensors.items()}, name


@pytest.mark.parametrize(
    ("preset", "options", "named"),
    [
        ("gpt2", {"norm": "rmsnorm"}, "norm rmsnorm"),
        ("gpt2", {"n_kv_head": 1}, "n_kv_head 1"),
        ("gpt2", {"activation": "swiglu"}, "activation swiglu"),
        ("gpt2", {"layer_scale": 0.1}, "layer_scale 0.1"),
        ("llama", {"norm": "layernorm"}, "norm layernorm"),
        ("llama", {"learned_positions": True}, "learned_positions true"),
        ("llama", {"activation": "relu2"}, "activation relu2"),
        ("llama", {"qk_norm": True}, "qk_norm true"),
        ("llama", {"softcap": 15.0}, "softcap 15.0"),
        ("llama", {"attention_gate": True}, "attention_gate true"),
        ("llama", {"bias_head": True}, "bias_head true"),
        ("modern", {}, "qk_norm true, softcap 15.0, activation relu2"),
        ("gpt2", {"n_kv_head": 2}, ""),  # as many as heads
        ("llama", {}, ""),
    ],
)
def test_options_without_a_counterpart(preset: str, options: dict[str, Any], named: str, tmp_path: Path) -> None:
    net = GPT(GPTConfig.from_preset(preset, **{**SIZES, **options}))
    assert ", ".join(without_counterpart(net.config)) == named
    export_huggingface(checkpoint_of(net), tmp_path)
    assert ("auto_map" in config_of(tmp_path)) == bool(named)


def test_a_bigram_has_no_counterpart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a NeuralBigram has no counterpart"):
        export_huggingface(checkpoint_of(build_bigram(BigramConfig(vocab_size=257))), tmp_path)
    assert not any(tmp_path.iterdir())


def test_ngrams_have_no_counterpart(tmp_path: Path) -> None:
    config = ExtendedGPTConfig(**SIZES, ngrams=[2], ngram_rows=64, ngram_width=4)
    with pytest.raises(UserError, match=r"an ExtendedGPT has no counterpart .* export with --format safetensors"):
        export_huggingface(checkpoint_of(ExtendedGPT(config)), tmp_path)


# Folders with the network's own code


def test_the_default_model_is_exported_and_gone_on_from(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    first = fit()
    for _ in range(2):  # again over its own files
        run("export", ["--ckpt_path", str(first / "checkpoints" / "last.ckpt"), "--out", "hf"])
    said = capsys.readouterr().out
    assert "No GPT-2 or Llama has qk_norm true, softcap 15.0, activation relu2: the folder brings" in said
    assert "from_pretrained('hf', trust_remote_code=True)" in said
    assert f"fit --config {first}/config.yaml --model.init_from hf" in said
    frozen = ["--model.optimizer.lr", "0", "--trainer.max_steps", "3", "--model.init_from", "hf"]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (first, fit(*frozen))]
    assert summaries[0]["final"]["val/loss"] == summaries[1]["final"]["val/loss"]


def test_no_file_of_somebody_else_is_replaced(fit: Fit, tmp_path: Path) -> None:
    folder, mine = fit(), tmp_path / "hf" / "attention.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"hf/attention\.py is there already and is no part of an export"):
        run("export", ["--ckpt_path", str(folder), "--out", "hf"])
    assert [path.name for path in mine.parent.iterdir()] == ["attention.py"]


def modern(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.from_preset("modern", **{**SIZES, "pad_vocab_to": 64, **options})).eval()


def test_the_code_needs_torch_and_transformers_alone() -> None:
    files = code_files()
    assert len(files["modeling_lit_gpt.py"].splitlines()) <= 81  # a line says where the copy comes from
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in files, name
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                known = {"torch", "transformers"} | sys.stdlib_module_names
                assert {str(module).split(".")[0] for module in modules} <= known, name


def test_a_folder_with_code_comes_back(tmp_path: Path) -> None:
    net, tokenizer = modern(tied_head=True), CharTokenizer(map(chr, range(32, 289)))
    checkpoint = checkpoint_of(net, tokenizer)
    export_huggingface(checkpoint, tmp_path)
    back = import_checkpoint(tmp_path)
    assert back[KEY] == checkpoint[KEY]
    assert all(torch.equal(tensor, back["state_dict"][name]) for name, tensor in checkpoint["state_dict"].items())


def saved_by_transformers(net: GPT, folder: Path) -> dict[str, torch.Tensor]:
    """As ``save_pretrained`` writes it: its own names, and without our metadata."""
    export_huggingface(checkpoint_of(net), folder)
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    safetensors.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


def test_a_folder_that_transformers_saved_again_comes_back(tmp_path: Path) -> None:
    net = modern()
    saved_by_transformers(net, tmp_path)
    config, state = load_weights(tmp_path)
    assert GPTConfig(**config) == replace(net.config, pad_vocab_to=1)
    back = GPT(GPTConfig(**config)).eval()
    back.load_state_dict(state)
    ids = torch.randint(257, (2, 16))
    torch.testing.assert_close(back(ids), net(ids), atol=1e-6, rtol=0)
    assert import_checkpoint(tmp_path)[KEY]["tokenizer"]["eos"] == "<|endoftext|>"  # from tokenizer.json


@pytest.mark.parametrize(
    "value", [None, 3, [], {}, {"n_layer": 1, "extra": 1}, {"vocab_size": 257, "n_layer": 2}, {"n_layer": "x"}]
)
def test_a_folder_with_code_and_hostile_options(value: Any, tmp_path: Path) -> None:
    saved_by_transformers(modern(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_of(tmp_path) | {"gpt": value}))
    with pytest.raises(UserError) as caught:
        load_weights(tmp_path)
    assert "\n" not in str(caught.value)


# Tokenizers


@pytest.mark.parametrize(
    ("preset", "tokenizer", "pad"),
    [
        ("gpt2", ByteTokenizer(eos=True), "<|endoftext|>"),
        ("llama", ByteTokenizer(eos=True), "<|endoftext|>"),
        ("modern", ByteTokenizer(eos=True), "<|endoftext|>"),
        ("modern", ByteTokenizer(), "<pad>"),
        ("gpt2", ByteTokenizer(), None),  # its every id is a token of text
    ],
)
def test_the_pad_token_is_the_eos_token_where_there_is_one(preset: str, tokenizer: Tokenizer, pad: str | None) -> None:
    net = GPT(GPTConfig.from_preset(preset, **{**SIZES, "vocab_size": tokenizer.vocab_size}))
    files = huggingface_files(checkpoint_of(net, tokenizer))
    assert json.loads(files["tokenizer_config.json"]).get("pad_token") == pad
    assert json.loads(files["generation_config.json"]).get("pad_token_id") == tokenizer.eos_id
    assert json.loads(files["config.json"])["pad_token_id"] is None


# Plain safetensors


@pytest.mark.parametrize("preset", ["gpt2", "llama", "modern"])
def test_every_gpt_is_safetensors(preset: str, tmp_path: Path) -> None:
    config = GPTConfig.from_preset(preset, vocab_size=257, n_layer=1, n_head=4, n_embd=16, block_size=16)
    net = GPT(config)
    export_safetensors(checkpoint_of(net), tmp_path)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == net.state_dict().keys()
    assert load_weights(tmp_path)[0] == vars(config)
    back = import_checkpoint(tmp_path)
    assert back[KEY] == checkpoint_of(net)[KEY]
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in tensors.items())


def test_an_export_replaces_one_of_another_kind(tmp_path: Path) -> None:
    export_huggingface(checkpoint_of(modern()), tmp_path)
    net = exported(tmp_path)
    assert "auto_map" not in config_of(tmp_path)
    assert torch.equal(load_weights(tmp_path)[1]["wte.weight"], net.wte.weight)
