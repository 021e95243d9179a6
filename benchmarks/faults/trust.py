"""Files from a stranger that name code, or lie: no code runs, and one sentence says what they are."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.harness import REFUSED, RIGHT, Trial, WrongError, is_sentence, typed
from benchmarks.faults.kills import Base, make_base
from benchmarks.faults.tiny import Setup

#: Made by any code of a file's that runs.
CANARY = "the canary has sung"
#: A module beside the file: whoever imports it by a name that stands in a file has let the file choose.
CODE = f"open({CANARY!r}, 'w').close()\n\nclass Net:\n    pass\n"


class Sings:
    """Unpickled by a reader that runs code, it makes the canary's file."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


SINGERS: dict[str, Callable[[], Sings]] = {
    "os.mkdir": lambda: Sings(os.mkdir, CANARY),
    "os.system": lambda: Sings(os.system, f"touch '{CANARY}'"),
    "eval": lambda: Sings(eval, f"open({CANARY!r}, 'w')"),
    "exec": lambda: Sings(exec, CODE),
    "shutil.copy": lambda: Sings(shutil.copy, "text.txt", CANARY),
}
VERBS = {
    "generate": "generate --ckpt_path={file} --device=cpu",
    "export": "export --ckpt_path={file} --out=out",
    "validate": "validate --ckpt_path={file} --trainer.accelerator=cpu",
    "predict": "predict --ckpt_path={file} --trainer.accelerator=cpu",
    "fit --ckpt_path": "fit --ckpt_path={file}",
    "fit --model.init_from": "fit --model.init_from={file}",
    "fit --resume": "fit --resume=auto",
}
NAMED = "canary.Net"


def trials(root: Path, quick: bool, rng: random.Random) -> Iterator[Trial]:
    """Pickles, forged checkpoints, folders in Hugging Face's form, tokenizers."""
    (root / "trust").mkdir(parents=True)
    base = make_base(Setup(), root / "trust")
    made: list[tuple[str, str, Callable[[Path], None]]] = [
        ("pickles", f"{how} with {name}", partial(write, name)) for name in SINGERS for how, write in PICKLES.items()
    ]
    made += [("forged checkpoints", where, partial(_forge, where, value)) for where, value in FORGED]
    for kind, name, write in made:
        for verb in rng.sample(sorted(VERBS), 1 if quick else 4):
            yield Trial(f"trust: {kind}", f"{name}, {verb}", partial(_read, base, write, VERBS[verb]))
    for name in FOLDERS:
        for command in ("import --source=folder --out=new.ckpt", "fit --model.init_from=folder"):
            yield Trial("trust: Hugging Face folders", f"{name}, {command}", partial(_folder, base, name, command))
    for name, content in TOKENIZERS.items():
        for command in (
            "fit --data=BPEDataModule --data.tokenizer=t.json",
            "tokenizer eval --tokenizer=t.json --source=text.txt",
            "tokenizer export --tokenizer=t.json --out=out.json",
        ):
            yield Trial("trust: tokenizer files", f"{name}, {command}", partial(_tokenizer, base, content, command))


def _silent(base: Base, command: str, may_work: bool = False) -> str:
    """Run a verb beside a module of canaries.

    Raises:
        WrongError: code has run, or no sentence came.
    """
    Path("canary.py").write_text(CODE)
    text = next(a for a in base.arguments if a.startswith("--data.source=")).partition("=")[2]
    shutil.copy(text, "text.txt")
    verb, *rest = command.split()
    if verb == "fit":
        own = [a for a in base.arguments[1:] if a != "--resume=auto"]
        rest = [*(a for a in own if not (a.startswith("--data=") and "--data=" in command)), *rest]

    def here() -> None:
        import sys

        sys.path.insert(0, os.getcwd())

    done = typed([verb, *rest], here)
    if Path(CANARY).exists():
        raise WrongError("CODE HAS RUN")
    if done.status == 0 and may_work:
        return RIGHT
    if not is_sentence(done):
        raise WrongError(f"no sentence: status {done.status}, {done.err[-300:]}")
    return REFUSED


def _read(base: Base, write: Callable[[Path], None], command: str) -> str:
    shutil.copytree(base.folder, run := Path("logs/run/version_0"))
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    source = base.folder / "checkpoints" / "last.ckpt"
    target = run / "checkpoints" / "last.ckpt"
    shutil.copy(source, target)
    write(target)
    told = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**told, "finished": False}))
    # Where the file is no checkpoint, --resume begins a new run; and a verb need not read every entry of a forged one.
    may_work = "--resume" in command or (isinstance(write, partial) and write.func is _forge)
    return _silent(base, command.format(file=target), may_work)


# ---- pickles


def _bare(name: str, path: Path, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps({"state_dict": SINGERS[name]()}, protocol=protocol))


def _torch(name: str, path: Path, zipped: bool) -> None:
    import torch

    torch.save({"state_dict": SINGERS[name]()}, path, _use_new_zipfile_serialization=zipped)


def _inside(name: str, path: Path) -> None:
    """One value of a checkpoint that is whole otherwise."""
    import torch

    stored = torch.load(path, weights_only=True)
    stored["callbacks"]["ExactResume"] = SINGERS[name]()
    torch.save(stored, path)


PICKLES: dict[str, Callable[[str, Path], None]] = {
    "a pickle": _bare,
    "a pickle of protocol 0": partial(_bare, protocol=0),
    "a pickle of protocol 4": partial(_bare, protocol=4),
    "torch's file": partial(_torch, zipped=True),
    "torch's old file": partial(_torch, zipped=False),
    "a value of a checkpoint": _inside,
}


# ---- forged checkpoints: whole files of plain values that lie

FORGED: list[tuple[str, Any]] = [
    ("lit_gpt/module", NAMED),
    ("lit_gpt/module", "os.system"),
    ("lit_gpt/module", 3),
    ("lit_gpt/format", "2"),
    ("lit_gpt/format", 10**9),
    ("lit_gpt/data", {"class_path": NAMED, "init_args": {}}),
    ("lit_gpt/data", {"class_path": "os.system", "init_args": {"command": f"touch '{CANARY}'"}}),
    ("lit_gpt/data", "text"),
    ("lit_gpt/data", {"class_path": "datamodules.char.CharDataModule", "init_args": {"source": {"class_path": NAMED}}}),
    ("lit_gpt/data", {"class_path": "datamodules.char.CharDataModule", "init_args": {"gone": 1}}),
    ("lit_gpt/data", {"class_path": "datamodules.char.CharDataModule", "init_args": [1]}),
    ("lit_gpt/data", {"init_args": {}}),
    ("lit_gpt/tokenizer", {"kind": NAMED}),
    ("lit_gpt/tokenizer", {"kind": "char", "characters": 5}),
    ("lit_gpt/tokenizer", {}),
    ("lit_gpt/fingerprints", []),
    ("lit_gpt/config", {"n_layer": 10**9}),
    ("lit_gpt/config/n_embd", 10**12),
    ("lit_gpt/config/n_layer", "six"),
    ("lit_gpt/config/activation", NAMED),
    ("lit_gpt/config/block_size", -1),
    ("lit_gpt/config/vocab_size", 10**12),
    ("lit_gpt/config/unknown", 1),
    ("hyper_parameters", {"_class_path": NAMED, "_instantiator": "canary.Net"}),
    ("hyper_parameters/optimizer", {"kind": NAMED}),
    ("hyper_parameters/optimizer", "adamw"),
    ("hyper_parameters", [1]),
    ("datamodule_hyper_parameters", {"_class_path": NAMED, "_instantiator": "canary.Net"}),
    ("optimizer_states", [{"state": {0: "x"}, "param_groups": []}]),
    ("optimizer_states", []),
    ("lr_schedulers", [{"_class_path": NAMED}]),
    ("loops", {"fit_loop": 1}),
    ("loops", {}),
    ("callbacks", {"RunCheckpoints": 1}),
    ("callbacks", {NAMED: {"a": 1}, "ExactResume": {"random": 3}}),
    ("callbacks", {"ExactResume": {"random": [{"torch": 1}], "accumulation": 0}}),
    ("global_step", -1),
    ("global_step", 10**30),
    ("epoch", "x"),
    ("pytorch-lightning_version", "0.0"),
    ("pytorch-lightning_version", "canary"),
    ("state_dict/net.wte.weight", "x"),
]


def _forge(where: str, value: Any, path: Path) -> None:
    import torch

    stored = torch.load(path, weights_only=True)
    *parts, last = where.split("/")
    inner = stored
    for part in parts:
        inner = inner[part]
    inner[last] = value
    torch.save(stored, path)


# ---- folders and tokenizers

GPT2 = {
    **{"model_type": "gpt2", "vocab_size": 40, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2},
    "architectures": ["GPT2LMHeadModel"],
}
FOLDERS: dict[str, dict[str, Any]] = {
    "auto_map": {**GPT2, "auto_map": {"AutoModelForCausalLM": "canary.Net", "AutoConfig": "canary.Net"}},
    "custom code": {**GPT2, "model_type": "canary", "trust_remote_code": True},
    "architecture": {**GPT2, "architectures": [NAMED]},
    "activation": {**GPT2, "activation_function": NAMED},
    "sizes": {**GPT2, "n_embd": 10**12, "n_layer": 10**12},
    "types": {**GPT2, "n_layer": {"class_path": NAMED}},
    "a list": [1],  # type: ignore[dict-item]
    "nothing": {},
}
FOLDERS |= {f"{name}, pickled weights": config for name, config in FOLDERS.items()}


def _folder(base: Base, name: str, command: str) -> str:
    import torch
    from safetensors.torch import save_file

    (folder := Path("folder")).mkdir()
    for file in ("canary.py", "modeling_canary.py", "tokenization_canary.py", "configuration_canary.py"):
        (folder / file).write_text(CODE)
    (folder / "config.json").write_text(json.dumps(FOLDERS[name]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": [NAMED, None]}}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": NAMED, "vocab": {}}, "kind": NAMED}))
    if "pickled" in name:
        torch.save({"wte.weight": SINGERS["os.system"]()}, folder / "pytorch_model.bin")
    else:
        entry = json.dumps({"format": 2, "module": NAMED, "config": {}, "tokenizer": None, "fingerprints": {}})
        metadata = {"lit_gpt": entry} if name == "architecture" else None
        save_file({"wte.weight": torch.zeros(40, 8)}, folder / "model.safetensors", metadata=metadata)
    return _silent(base, command)


_BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
TOKENIZERS: dict[str, Any] = {
    "a kind of code": {"kind": NAMED},
    "a list as kind": {"kind": [NAMED]},
    "a byte tokenizer with code": {"kind": "byte", "eos": {"class_path": NAMED}},
    "characters of no text": {"kind": "char", "characters": {"__reduce__": NAMED}},
    "a model of code": {"model": {"type": NAMED, "vocab": {}}},
    "ids beyond all": {"model": {**_BPE, "vocab": {"a": 10**9}}},
    "ids below zero": {"model": {**_BPE, "vocab": {"a": -1}}},
    "merges of nothing": {"model": {**_BPE, "merges": [["x", "y"]]}},
    "a decoder of code": {"model": _BPE, "decoder": {"type": NAMED}, "pre_tokenizer": {"type": NAMED}},
    "a pattern that never ends": {
        "model": _BPE,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    },
    "special tokens of code": {"model": _BPE, "added_tokens": [{"id": 10**9, "content": NAMED, "special": True}]},
    "deep": "deep",
    "a number": 5,
    "nothing": {},
}


def _tokenizer(base: Base, content: Any, command: str) -> str:
    text = "[" * 100_000 + "]" * 100_000 if content == "deep" else json.dumps(content)
    Path("t.json").write_text(text)
    return _silent(base, command)
