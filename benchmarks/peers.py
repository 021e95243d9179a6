"""The peers that ours is measured against: nanoGPT from a clone, and `transformers` from pip."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Shape = dict[str, int]


def clone(text: str) -> Path:
    """The value of --nanogpt."""
    if not Path(text, "model.py").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} has no model.py: give the folder of a clone of nanoGPT")
    return Path(text)


def nanogpt_module(clone: Path) -> Any:
    """The model.py of a clone of nanoGPT."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", clone / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nanogpt(clone: Path, shape: Shape) -> Any:
    """nanoGPT's network of a shape (n_layer, n_head, n_embd, block_size, vocab_size), without dropout."""
    module = nanogpt_module(clone)
    return module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=True))


def transformers_gpt2(shape: Shape) -> nn.Module:
    """`GPT2LMHeadModel` of a shape, without dropout, with the exact GELU that nanoGPT takes, and SDPA."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        n_embd=shape["n_embd"],
        n_positions=shape["block_size"],
        vocab_size=shape["vocab_size"],
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config).train()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats of targets (B, T) under logits (B, T, V)."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
