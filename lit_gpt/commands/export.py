"""`python -m lit_gpt export`: turn a checkpoint into files that others read."""

from pathlib import Path
from typing import Literal

from lit_gpt.checkpoint import KEY, read
from lit_gpt.interop.files import FILES, export_huggingface, export_safetensors, written_here
from lit_gpt.outputs import check_output


def export(ckpt_path: str, out: str, format: Literal["huggingface", "safetensors"] = "huggingface") -> None:
    """Write a checkpoint as a Hugging Face folder or as plain safetensors.

    Args:
        ckpt_path: A checkpoint that fit saved, or a run's folder, for its best.
        out: The folder to write.
        format: huggingface is a model and tokenizer that transformers loads without code of ours (GPT-2's shape or
            Llama's); safetensors is the tensors of any model, with its configuration in the file's metadata.
    """
    folder = Path(out)
    for file in FILES if format == "huggingface" else FILES[:1]:
        check_output("--out", folder / file, "part of an export", lambda path: written_here(path.parent))
    checkpoint = read(ckpt_path)
    if format == "safetensors":
        export_safetensors(checkpoint, out)
        print(f"Read it with safetensors.torch.load_file({out + '/model.safetensors'!r})")
    else:
        print(f"{export_huggingface(checkpoint, out)}: {out}")
        print(f"Read it with transformers.AutoModelForCausalLM.from_pretrained({out!r}), AutoTokenizer likewise")
    if checkpoint[KEY]["module"] == "lit_gpt.module.LitGPT":
        print(f"Go on from it:  python -m lit_gpt fit --config CONFIG_OF_THE_RUN --model.init_from {out}")
