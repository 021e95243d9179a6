"""Small networks and their checkpoints, for the tests of import and export."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamodules.tokenizers import ByteTokenizer, Tokenizer
from lit_gpt.bert.model import Bert
from lit_gpt.checkpoint import KEY, PREFIX
from lit_gpt.config import GPTConfig
from lit_gpt.interop.exporting import export_huggingface
from lit_gpt.methods.extended_gpt import ExtendedGPT
from lit_gpt.model import GPT


def small(**options: Any) -> GPTConfig:
    sizes = {"block_size": 16, "vocab_size": 257, "n_layer": 1, "n_head": 2, "n_embd": 8}
    return GPTConfig.from_preset("gpt2", **{**sizes, **options})


def checkpoint_of(net: Any, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    names = {GPT: "module.LitGPT", ExtendedGPT: "methods.module.LitExtendedGPT", Bert: "bert.module.LitBERT"}
    module = names.get(type(net), "baselines.module.LitBigram")
    entry = {"format": 2, "module": f"lit_gpt.{module}", "config": asdict(net.config), "fingerprints": {}}
    state = {PREFIX + key: tensor for key, tensor in net.state_dict().items()}
    return {KEY: {**entry, "tokenizer": (tokenizer or ByteTokenizer(eos=True)).to_dict()}, "state_dict": state}


def exported(folder: Path, **options: Any) -> GPT:
    net = GPT(small(**options)).eval()
    export_huggingface(checkpoint_of(net), folder)
    return net
