"""`python -m lit_gpt import`: turn a Hugging Face model into a lit_gpt checkpoint."""

from pathlib import Path

import torch

from datamodules.errors import UserError
from datamodules.files import write_atomically
from lit_gpt.checkpoint import build_network, read
from lit_gpt.interop.importing import import_checkpoint
from lit_gpt.outputs import check_output


def import_(source: str, out: str) -> None:
    """Turn a GPT-2 or Llama of Hugging Face into a checkpoint for generate, validate and --model.init_from.

    Args:
        source: A folder with config.json, weights and tokenizer.json, or the name of a model on the hub, such as gpt2.
        out: The checkpoint to write.
    """
    check_output("--out", out, "imported checkpoint", _is_imported)
    checkpoint = import_checkpoint(source)
    parameters = sum(p.numel() for p in build_network(checkpoint).parameters())
    write_atomically(out, lambda file: torch.save(checkpoint, file))
    print(f"{parameters:,} parameters: {out}")
    print(f"Write with it:  python -m lit_gpt generate --ckpt_path {out}")
    print(f"Fine-tune it:   python -m lit_gpt fit --config configs/finetune_gpt2.yaml --model.init_from {out}")
    print(
        "                (that config is for the small GPT-2: another shape is a --preset or --model.config of its own)"
    )


def _is_imported(path: Path) -> bool:
    """Whether a file holds only weights, which can be imported again. A run's checkpoint also has optimizer states."""
    try:
        return "optimizer_states" not in read(path, mmap=True)
    except UserError:
        return False
