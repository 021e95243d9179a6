"""`python -m lit_gpt import`: turn a Hugging Face model into a lit_gpt checkpoint."""

from pathlib import Path

import torch

from datamodules.errors import UserError
from datamodules.files import write_atomically
from lit_gpt.checkpoint import build_network, read
from lit_gpt.interop.importing import imported
from lit_gpt.outputs import check_output


def import_(source: str, out: str) -> None:
    """Turn a GPT-2, Llama or BERT of Hugging Face into a checkpoint for generate or fill-mask, and --model.init_from.

    Args:
        source: A folder with config.json, weights and tokenizer.json (of a BERT also vocab.txt), or the name of a model
            on the hub, such as gpt2 or bert-base-uncased.
        out: The checkpoint to write.
    """
    check_output("--out", out, "imported checkpoint", _is_imported)
    checkpoint, notes = imported(source)
    net = build_network(checkpoint)
    write_atomically(out, lambda file: torch.save(checkpoint, file))
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters: {out}")
    for line in (*notes, *(_GPT if net.causal else _BERT)):
        print(line.format(out=out))


_GPT = (
    "Write with it:  python -m lit_gpt generate --ckpt_path {out}",
    "Fine-tune it:   python -m lit_gpt fit --config configs/finetune_gpt2.yaml --model.init_from {out}",
    "                (that config is for the small GPT-2: another shape is a --preset or --model.config of its own)",
)
_BERT = ('Fill masks:     python -m lit_gpt fill-mask --ckpt_path {out} --text "The capital of France is [MASK]."',)


def _is_imported(path: Path) -> bool:
    """Whether a file holds only weights, which can be imported again. A run's checkpoint also has optimizer states."""
    try:
        return "optimizer_states" not in read(path, mmap=True)
    except UserError:
        return False
