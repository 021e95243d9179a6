"""Exported folders with the network's own code: the same as ours in `transformers`, without lit_gpt."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, token_parts
from lit_gpt.interop import exporting
from lit_gpt.interop.importing import load_weights
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.extended_gpt import ExtendedGPT
from lit_gpt.model import GPT, GPTConfig
from tests.lit_gpt.interop.cases import checkpoint_of
from tests.parity.test_gpt2_llama import continued, disturb, ids_for

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

Facts = dict[str, dict[str, Any]]

TEXTS = ["the cat", "a", "on the mat and off"]
CHARS = CharTokenizer("abcdefghijklmnopqrstuvwxyz \n")
BYTES = ByteTokenizer(eos=True)
PLACES = {"rope": False, "learned_positions": True}
#: As `make train` makes it, then every option that it has not.
NETS: dict[str, tuple[Tokenizer, dict[str, Any]]] = {
    "make-train": (CHARS, {}),
    "tied": (BYTES, {"tied_head": True, "pad_vocab_to": 64, "n_kv_head": 2, "layer_scale": 0.5, "norm_eps": 0.01}),
    "gated": (BYTES, {"attention_gate": True, "learned_positions": True, "bias_head": True, "norm": "layernorm"}),
    "parts": (BYTES, {"token_parts": True, "n_parts": 40, "activation": "swiglu", "norm_gain": True, **PLACES}),
}


def net_of(tokenizer: Tokenizer, preset: str, **options: Any) -> GPT:
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64, "vocab_size": tokenizer.vocab_size}
    extended = "token_parts" in options
    config = (ExtendedGPTConfig if extended else GPTConfig).from_preset(preset, **sizes, **options)
    net = (ExtendedGPT if extended else GPT)(config).eval()
    disturb(net)
    if isinstance(net, ExtendedGPT):
        net.wte.parts.assign(token_parts(tokenizer))
    return net


@pytest.fixture(scope="module")
def nets() -> dict[str, GPT]:
    return {name: net_of(tokenizer, "modern", **options) for name, (tokenizer, options) in NETS.items()}


@pytest.fixture(scope="module")
def folder(nets: dict[str, GPT], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of the networks, and of one GPT-2 twice: as `transformers` has it, and with our code."""
    folder = tmp_path_factory.mktemp("own code")
    for name, net in nets.items():
        exporting.export_huggingface(checkpoint_of(net, NETS[name][0]), folder / name)
    gpt2 = checkpoint_of(net_of(BYTES, "gpt2"), BYTES)
    exporting.export_huggingface(gpt2, folder / "gpt2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "without_counterpart", lambda config: ["everything"])
        exporting.export_huggingface(gpt2, folder / "gpt2-own")
    return folder


@pytest.fixture(scope="module")
def facts(folder: Path, nets: dict[str, GPT]) -> Facts:
    """What `transformers` computes with them; see facts_of_folders.py."""
    sizes = {name: net.config.vocab_size or 0 for name, net in nets.items()} | {"gpt2": 257, "gpt2-own": 257}
    torch.save({name: ids_for(size) for name, size in sizes.items()}, folder / "ids.pt")
    environment = os.environ | {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("facts_of_folders.py")), str(folder), *TEXTS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(torch.load(folder / "facts.pt"))


def ids_of(net: GPT) -> torch.Tensor:
    assert net.config.vocab_size is not None
    return ids_for(net.config.vocab_size)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_logits_and_loss_are_ours(name: str, nets: dict[str, GPT], facts: Facts) -> None:
    ids = ids_of(nets[name])
    logits = nets[name](ids)
    assert logits.std() > 0.1
    nats = -logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).mean()
    right = {"logits": logits, "last": logits[:, -1:], "rest": logits[:, 30:], "loss": nats}
    for what, value in right.items():
        torch.testing.assert_close(facts[name][what], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_greedy_texts_are_ours(name: str, nets: dict[str, GPT], facts: Facts) -> None:
    ours = continued(nets[name], ids_of(nets[name])[:, :9])
    assert facts[name]["greedy"].T.tolist() == facts[name]["uncached"].T.tolist() == ours


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_padded_texts_are_as_each_alone(name: str, nets: dict[str, GPT], facts: Facts) -> None:
    prompts = [NETS[name][0].encode(text) for text in TEXTS]
    assert facts[name]["tokens"] == prompts
    alone = [continued(nets[name], torch.tensor([prompt])) for prompt in prompts]
    assert facts[name]["left"].tolist() == [[token for (token,) in row] for row in alone]
    logits = nets[name](torch.tensor([prompts[1]]))[0, 0]
    torch.testing.assert_close(facts[name]["right"], logits, atol=1e-5, rtol=0)


def test_beams_are_those_of_gpt2(facts: Facts) -> None:
    theirs, ours = facts["gpt2"], facts["gpt2-own"]
    torch.testing.assert_close(ours["logits"], theirs["logits"], atol=1e-5, rtol=0)
    assert ours["beams"].tolist() == theirs["beams"].tolist()
    assert ours["beams"].tolist() != theirs["greedy"].tolist()


def test_what_the_code_cannot_do_is_said(facts: Facts) -> None:
    static = "past_key_values is a StaticCache: use a DynamicCache, which is the default."
    assert facts["further"]["static"] == static
    assert facts["further"]["long"] == "65 tokens exceed the model's block_size 64: pass fewer."


def test_what_transformers_saves_again_is_the_same(folder: Path, nets: dict[str, GPT], facts: Facts) -> None:
    assert torch.equal(facts["further"]["again"], facts["make-train"]["logits"])
    _, state = load_weights(folder / "again")
    assert all(torch.equal(tensor, state[name]) for name, tensor in nets["make-train"].state_dict().items())
