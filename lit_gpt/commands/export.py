"""`python -m lit_gpt export`: turn a checkpoint into files for other programs."""

import json
import shlex
from pathlib import Path
from typing import Literal

from lit_gpt.checkpoint import KEY, file_of, read
from lit_gpt.config import GPTConfig
from lit_gpt.interop import bert
from lit_gpt.interop.exporting import Files, huggingface_files, safetensors_files, write_files
from lit_gpt.interop.files import is_written_here
from lit_gpt.interop.gpt2_llama import without_counterpart
from lit_gpt.outputs import check_output


def export(ckpt_path: str, out: str, format: Literal["huggingface", "safetensors"] = "huggingface") -> None:
    """Write a checkpoint as a Hugging Face folder or as plain safetensors.

    Args:
        ckpt_path: A checkpoint that fit saved, or a run's folder, for its best.ckpt.
        out: The folder to write.
        format: huggingface writes a model and tokenizer for transformers: a BERT, GPT-2 or Llama if the network is one,
            else a folder that includes the network's code (trust_remote_code). safetensors writes the tensors of any
            model, with its configuration in the file's metadata.
    """
    checkpoint = read(ckpt_path)
    files = huggingface_files(checkpoint) if format == "huggingface" else safetensors_files(checkpoint)
    for name in files:
        check_output("--out", Path(out) / name, "part of an export", lambda path: is_written_here(path.parent))
    write_files(files, out)
    if format == "safetensors":
        print(f"Read it with safetensors.torch.load_file({out + '/model.safetensors'!r})")
    else:
        _print_how_to_load(files, out)
    if checkpoint[KEY]["module"] in ("lit_gpt.module.LitGPT", bert.MODULE):
        print(f"Fine-tune it:  python -m lit_gpt fit --config {_config_of_run(ckpt_path)} --model.init_from {out}")


def _config_of_run(ckpt_path: str) -> str:
    """The config.yaml of the checkpoint's run, or a word in its place: a copy of the checkpoint lies anywhere."""
    config = file_of(ckpt_path).parents[1] / "config.yaml"
    return shlex.quote(str(config)) if config.is_file() else "CONFIG_OF_THE_RUN"


def _print_how_to_load(files: Files, out: str) -> None:
    config = json.loads(files["config.json"])
    print(f"{config['architectures'][0]}: {out}")
    trust, task = "", "MaskedLM" if config["model_type"] == bert.MODEL_TYPE else "CausalLM"
    if "auto_map" in config:
        options = ", ".join(without_counterpart(GPTConfig(**config["gpt"])))
        print(f"No GPT-2 or Llama has {options}: the folder brings the network's code")
        trust = ", trust_remote_code=True"
    print(f"Read it with transformers.AutoModelFor{task}.from_pretrained({out!r}{trust}), AutoTokenizer likewise")
