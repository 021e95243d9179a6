"""Against `transformers`: the same logits, greedy continuations and token ids, from there to here and back."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.files import write_json
from datamodules.synthetic import headlines
from datamodules.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    open_tokenizer,
    to_huggingface,
    token_parts,
    train_tokenizer,
)
from lit_gpt.checkpoint import KEY, PREFIX, build_network
from lit_gpt.commands import run
from lit_gpt.decode import Sampling, decode
from lit_gpt.interop.exporting import export_huggingface
from lit_gpt.interop.importing import import_checkpoint, load_weights
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.extended_gpt import ExtendedGPT
from lit_gpt.model import GPT, GPTConfig
from tests.conftest import SHARED

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")

#: Layers and heads of the published sizes; heads are 4 wide instead of 64.
SIZES = {"gpt2": (12, 12), "gpt2-medium": (24, 16), "gpt2-large": (36, 20), "gpt2-xl": (48, 25)}
TEXTS = [
    *headlines(60),
    "It's  I'LL 12345\u00a0e\u0301 你好\uff0c世界 👍🏽 \x00\u200b\ufeff",
    " def f(x):\n\treturn x \r\n\n  ",
]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.enable_progress_bar()


def gpt2(folder: Path, **config: Any) -> Any:
    """A random GPT-2 of theirs, saved with a byte tokenizer; no bias is zero and no gain one."""
    torch.manual_seed(0)
    config = {"vocab_size": 257, "n_positions": 64, "bos_token_id": None, "eos_token_id": None} | config
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).eval()
    disturb(net)
    net.save_pretrained(folder)
    write_json(folder / "tokenizer.json", to_huggingface(ByteTokenizer(eos=True)))
    return net


@torch.no_grad()
def disturb(net: torch.nn.Module) -> None:
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)


def ids_for(vocab_size: int) -> torch.Tensor:
    return torch.randint(vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same(ours: GPT, theirs: Any) -> None:
    assert ours.config.vocab_size is not None
    ids = ids_for(ours.config.vocab_size)
    logits = theirs(ids).logits
    assert logits.std() > 0.1
    torch.testing.assert_close(ours(ids), logits, atol=1e-4, rtol=0)
    greedy = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    longer = theirs.generate(ids[:, :9], attention_mask=torch.ones(3, 9), **greedy)  # (3, 29)
    assert continued(ours, ids[:, :9]) == longer[:, 9:].T.tolist()


def continued(net: GPT, ids: torch.Tensor) -> list[list[int]]:
    greedy = {"sampling": Sampling(temperature=0), "generator": torch.Generator()}
    return list(decode(net, ids.tolist(), max_new_tokens=20, **greedy))


def reloaded(folder: Path) -> Any:
    net, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return net.eval()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "gpt2" else pytest.mark.slow) for n in SIZES])
def test_gpt2_of_each_published_depth_comes_and_goes(name: str, tmp_path: Path) -> None:
    n_layer, n_head = SIZES[name]
    theirs = gpt2(tmp_path / "in", n_layer=n_layer, n_head=n_head, n_embd=4 * n_head)
    checkpoint = import_checkpoint(tmp_path / "in")
    ours = build_network(checkpoint)
    assert_same(ours, theirs)
    export_huggingface(checkpoint, tmp_path / "out")
    assert_same(ours, reloaded(tmp_path / "out"))


def test_another_epsilon_of_the_norms_comes_and_goes(tmp_path: Path) -> None:
    theirs = gpt2(tmp_path / "in", n_layer=2, n_head=4, n_embd=64, layer_norm_epsilon=0.1)
    checkpoint = import_checkpoint(tmp_path / "in")
    assert_same(build_network(checkpoint), theirs)
    export_huggingface(checkpoint, tmp_path / "out")
    assert_same(build_network(checkpoint), reloaded(tmp_path / "out"))


@pytest.mark.slow
def test_gpt2_124m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (SHARED / "tiktoken_cache").exists():
        pytest.skip("gpt2's ranks are not in ../shared/tiktoken_cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    theirs = gpt2(tmp_path / "in", vocab_size=50257, n_positions=1024, bos_token_id=50256, eos_token_id=50256)
    (tmp_path / "in" / "tokenizer.json").unlink()  # tiktoken's ranks are taken instead
    checkpoint = import_checkpoint(tmp_path / "in")
    ours = build_network(checkpoint)
    assert ours.num_parameters() == theirs.num_parameters() == 124_439_808
    assert asdict(ours.config) == asdict(GPTConfig.from_preset("gpt2", vocab_size=50257, mlp_width=None, dropout=0.1))
    assert_same(ours, theirs)
    export_huggingface(checkpoint, tmp_path / "out")
    back = reloaded(tmp_path / "out")
    assert_same(ours, back)
    assert (back.config.bos_token_id, back.config.eos_token_id, back.generation_config.eos_token_id) == (50256,) * 3


def test_files_of_the_first_gpt2(tmp_path: Path) -> None:
    """They are pickles, their names lack the prefix, and they hold the causal mask."""
    theirs = gpt2(tmp_path, n_layer=2, n_head=2, n_embd=8)
    state = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    state |= {"h.0.attn.bias": torch.ones(64, 64).tril(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_same(build_network(import_checkpoint(tmp_path)), theirs)


def test_weights_in_several_files_and_half_precision(tmp_path: Path) -> None:
    theirs = gpt2(tmp_path, n_layer=2, n_head=2, n_embd=8).half()
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same(build_network(import_checkpoint(tmp_path)), theirs.float())


SHAPES = {
    "gpt2": {},
    "gpt2-erf": {"activation": "gelu", "dropout": 0.1, "mlp_width": 40},
    "gpt2-untied": {"tied_head": False, "activation": "relu"},
    "gpt2-no-bias": {"bias": False, "bias_qkv": False},
    "gpt2-parts": {"token_parts": True, "n_parts": 40},
    "gpt2-plain-norm": {"norm_gain": False},
    "gpt2-epsilon": {"norm_eps": 0.01},
    "llama": {"n_kv_head": 2},
    "llama-one-key": {"n_kv_head": 1, "rope_base": 500.0, "mlp_width": 48},
    "llama-tied": {"n_kv_head": None, "tied_head": True},
    "llama-plain-norm": {"n_kv_head": 2, "norm_gain": False},
    "llama-epsilon": {"norm_eps": 0.01},
    "llama-bias": {"n_kv_head": 2, "bias": True},
    "llama-bias-qkv": {"n_kv_head": 2, "bias_qkv": True},
}


def trained(tokenizer: Tokenizer, preset: str, **options: Any) -> tuple[GPT, dict[str, Any]]:
    """A random GPT of ours and its checkpoint; the vocabulary is padded."""
    torch.manual_seed(0)
    small = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64, "vocab_size": tokenizer.vocab_size}
    extended = "token_parts" in options
    kind, module = (ExtendedGPTConfig, "methods.module.LitExtendedGPT") if extended else (GPTConfig, "module.LitGPT")
    config = kind.from_preset(preset, **{**small, "pad_vocab_to": 64, **options})
    net = (ExtendedGPT if extended else GPT)(config).eval()
    disturb(net)
    if isinstance(net, ExtendedGPT):
        net.wte.parts.assign(token_parts(tokenizer))
    entry = {
        "module": f"lit_gpt.{module}",
        "config": asdict(config),
        "tokenizer": tokenizer.to_dict(),
        "fingerprints": {},
    }
    state = {PREFIX + name: tensor for name, tensor in net.state_dict().items()}
    return net, {KEY: {"format": 2, "fingerprints": {}, **entry}, "state_dict": state}


@pytest.mark.parametrize("shape", SHAPES)
def test_ours_goes_and_comes(shape: str, tmp_path: Path) -> None:
    preset = shape.split("-", maxsplit=1)[0]
    net, checkpoint = trained(ByteTokenizer(eos=True), preset, **SHAPES[shape])
    export_huggingface(checkpoint, tmp_path)
    theirs = reloaded(tmp_path)
    assert type(theirs).__name__ == {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[preset]
    assert theirs.config.vocab_size == 257
    assert theirs.generation_config.eos_token_id == 256
    assert_same(net, theirs)
    config, state = load_weights(tmp_path)
    assert config["norm_eps"] == net.config.norm_eps
    back = GPT(GPTConfig(**config)).eval()
    back.load_state_dict(state)
    ids = ids_for(257)
    torch.testing.assert_close(back(ids), net(ids), atol=1e-6, rtol=0)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5, 0.01])
def test_a_llama_of_theirs(epsilon: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 257}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 5e5}
    biased = {"attention_bias": True, "rms_norm_eps": epsilon, "bos_token_id": None, "eos_token_id": None}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **biased)).eval()
    disturb(theirs)
    theirs.save_pretrained(tmp_path)
    config, state = load_weights(tmp_path)
    assert GPTConfig(**config).resolved_norm_eps == epsilon
    ours = GPT(GPTConfig(**config)).eval()
    ours.load_state_dict(state)
    assert_same(ours, theirs)


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_texts_side_by_side_are_continued_as_each_alone(preset: str, tmp_path: Path) -> None:
    net, checkpoint = trained(ByteTokenizer(eos=True), preset)
    export_huggingface(checkpoint, tmp_path)
    tokenizer, theirs = transformers.AutoTokenizer.from_pretrained(tmp_path), reloaded(tmp_path)
    texts = ["the cat", "a", "on the mat and off"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    longer = theirs.generate(**batch, max_new_tokens=20, do_sample=False, eos_token_id=None)[:, -20:]
    alone = [continued(net, torch.tensor([tokenizer(text)["input_ids"]])) for text in texts]
    assert longer.tolist() == [[token for (token,) in row] for row in alone]


def test_the_line_that_tokenizer_export_prints_makes_one_that_pads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("tokenizer", ["export", "--tokenizer", "byte", "--out", str(tmp_path / "tokenizer.json")])
    expression = capsys.readouterr().out.splitlines()[0].removeprefix("Read it with ")
    tokenizer = eval(expression, {"transformers": transformers})
    assert tokenizer(["a", "abc"], padding=True)["input_ids"] == [[97, 256, 256], [97, 98, 99]]


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "unigram", "gpt2"])
def test_token_ids_are_equal_after_export(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    if kind == "gpt2" and not (SHARED / "tiktoken_cache").exists():
        pytest.skip("gpt2's ranks are not in ../shared/tiktoken_cache")
    ours = {
        "char": lambda: CharTokenizer.from_texts(TEXTS, eos=True),
        "byte": lambda: ByteTokenizer(eos=True),
        "gpt2": lambda: open_tokenizer("gpt2"),
    }.get(kind, lambda: train_tokenizer(kind, TEXTS, 400))()
    export_huggingface(trained(ours, "gpt2", n_layer=1, n_head=1, n_embd=2)[1], tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs(text)["input_ids"] for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert [theirs.decode(ours.encode(text)) for text in TEXTS] == TEXTS
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_id,) * 3
    assert theirs.model_max_length == 64
