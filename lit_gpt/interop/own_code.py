"""A folder for `transformers` that includes the network's code, for a GPT that `transformers` does not have.

Its config.json names the code (``auto_map``) and holds the `GPTConfig` (``gpt``). The code is modeling_lit_gpt.py and
the modules of this project that it imports, with imports that are relative to the folder.
"""

import re
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from datamodules.errors import UserError
from lit_gpt.interop.gpt2_llama import shapes_of
from lit_gpt.model import GPTConfig
from lit_gpt.version import __version__

MODEL_TYPE = "lit_gpt"
ARCHITECTURE = "LitGPTForCausalLM"
ENTRY = "lit_gpt.interop.modeling_lit_gpt"
#: An import of a module of this project. In the exported folder all modules are side by side.
OWN_IMPORT = re.compile(r"^from ((?:lit_gpt|datamodules)\.(?:\w+\.)*(\w+)) import", re.MULTILINE)


def config_of(config: GPTConfig) -> dict[str, Any]:
    """The content of ``config.json``."""
    file = ENTRY.rpartition(".")[2]
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "auto_map": {"AutoConfig": f"{file}.LitGPTConfig", "AutoModelForCausalLM": f"{file}.{ARCHITECTURE}"},
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "hidden_size": config.n_embd,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "tie_word_embeddings": False,  # a tied head has no tensor of its own that transformers could tie
        "gpt": asdict(config),
    }


def code_files() -> dict[str, str]:
    """The content of each code file, by name: modeling_lit_gpt.py and every module of this project that it needs."""
    files: dict[str, str] = {}
    wanted = [ENTRY]
    for module in wanted:  # the list grows during the loop
        source = _source(module)
        wanted += [name for name, _ in OWN_IMPORT.findall(source) if name not in wanted]
        head = f"# {module} of lit-gpt {__version__}, MIT License.\n"
        files[f"{module.rpartition('.')[2]}.py"] = head + OWN_IMPORT.sub(r"from .\2 import", source)
    assert len(files) == len(set(wanted)), "two modules of one name, in a folder that is flat"
    return files


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    loader: Any = spec.loader
    return str(loader.get_source(module))


def from_own(theirs: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The configuration and tensors of a folder that `transformers` has saved again, without lit_gpt's metadata.

    Raises:
        UserError: The tensors do not fit the configuration.
    """
    config = GPTConfig(**theirs["gpt"])
    state = {name.removeprefix("net."): tensor for name, tensor in tensors.items()}
    if {name: tensor.shape for name, tensor in state.items()} != shapes_of(config):
        raise UserError("the imported weights are not those that their config.json describes: use a matching pair.")
    return config, {name: tensor.float() for name, tensor in state.items()}
