"""`python -m lit_gpt import`: turn a Hugging Face model into a checkpoint of ours."""

import torch

from datamodules.files import write_atomically
from lit_gpt.checkpoint import build_network
from lit_gpt.interop import import_checkpoint


def import_(source: str, out: str) -> None:
    """Turn a GPT-2 or Llama of Hugging Face into a checkpoint for generate, validate and --model.init_from.

    Args:
        source: A folder with config.json, weights and tokenizer.json, or the name of a model on the hub, such as gpt2.
        out: The checkpoint to write.
    """
    checkpoint = import_checkpoint(source)
    parameters = sum(p.numel() for p in build_network(checkpoint).parameters())
    write_atomically(out, lambda file: torch.save(checkpoint, file))
    print(f"{parameters:,} parameters: {out}")
    print(f"Write with it:  python -m lit_gpt generate --ckpt_path {out}")
    print(f"Fine-tune it:   python -m lit_gpt fit --config configs/finetune_gpt2.yaml --model.init_from {out}")
    print(
        "                (that config is for the small GPT-2: another shape is a --preset or --model.config of its own)"
    )
