"""`fit --shrink`: the same run in small, to see in a minute whether a configuration works on this machine.

`shrunk` changes a parsed configuration and nothing else: it reads whether files exist, and writes none.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from datamodules.files import expanded
from datamodules.offline import encoding_needs_network, source_needs_network
from datamodules.options import SOURCES
from datamodules.reading import TextFile
from datamodules.sources import TABLE_SUFFIXES
from lit_gpt.config import format_value
from lit_gpt.language_model import print_rank_zero

LAYERS, WIDTH, BLOCK, ROWS, STEPS = 2, 64, 128, 8, 20
#: Of each text. A tenth of it is validation, of which this many batches are scored.
MAX_BYTES, VAL_BATCHES = 1_000_000, 8
VOCAB = 1_000  # of a tokenizer that is trained
SUFFIX = "-shrink"
MODEL, NETWORK, DATA = "model.init_args", "model.init_args.config", "data.init_args"
#: Options of a network that are lowered to these values.
LARGEST = {"n_layer": LAYERS, "block_size": BLOCK, "members": 2, "ngram_rows": 1024}
#: What a reader need not know of: how often things happen, and options that follow from others.
UNSAID = (
    *("name", "samples.max_new_tokens", "samples.every_n_validations"),
    *("checkpoint.every_n_steps", "checkpoint.keep_every_n_steps"),
    *("data.init_args.val_fraction", "data.init_args.test_fraction", "data.init_args.train_eval_rows"),
    *("data.init_args.num_workers", "data.init_args.column"),
    *("trainer.check_val_every_n_epoch", "trainer.limit_val_batches", "trainer.log_every_n_steps"),
    *("trainer.min_steps", "trainer.min_epochs", "trainer.num_nodes", "trainer.val_check_interval"),
)
HELP = (
    f"Try the configuration in a minute: {LAYERS} layers, width {WIDTH}, {STEPS} steps, one device, the first MB of "
    "the text, no network. The run goes into the folder NAME-shrink."
)
OTHER_SIZE = "left out: its weights have another size"


def shrunk(config: Namespace) -> Namespace:
    """A small version of a configuration of `fit`, which takes a minute on any machine and needs no network.

    Shrinking twice gives the same as shrinking once. Options that the model or the data do not have are left alone, so
    that it works for classes of a user's own too, as far as their options have the names of ours.
    """
    smaller = config.clone()
    for key, value in _changes(config).items():
        smaller[key] = value
    return smaller


def if_asked(config: Namespace) -> Namespace:
    """The configuration, shrunk if its option ``shrink`` is set; a line says how."""
    if not config.shrink:
        return config
    print_rank_zero([described(config)])
    smaller = shrunk(config)
    smaller.shrink = False  # so that the run's config.yaml is what was run
    return smaller


def shrunk_config(config: Any) -> Any:
    """A small version of the configuration of a network: of a dataclass such as `GPTConfig`."""
    return replace(config, **_network_changes(asdict(config)))


def described(config: Namespace) -> str:
    """The line that says what `shrunk` changes."""
    said = [_said(key, config[key], new) for key, new in _changes(config).items() if key not in UNSAID]
    return f"shrunk: {', '.join([*said, *_unknown(config)]) or 'nothing'}"


def _said(key: str, old: Any, new: Any) -> str:
    name = key.rpartition(".")[-1]
    if name in ("init_from", "ckpt_path"):
        return f"{name} {old} {OTHER_SIZE}"
    if name == "warmup":
        return f"warmup {old:g} steps to a tenth of the run"
    if name == "logger":
        return "loggers offline"
    if name == "max_bytes":
        return "the first MB of the text"
    if name in SOURCES:
        stand_in = "left out" if name != "source" else "an embedded text" if new is None else _plain(new)
        return f"{name} {_plain(old)} to {stand_in} (it is not on this machine)"
    where = " (its files are not on this machine)" if name == "tokenizer" else ""
    return f"{name} {_plain(old)} to {_plain(new)}{where}"


def _plain(value: Any) -> str:
    """A value as it is typed; of an object, its class."""
    if isinstance(value, Namespace):
        return str(value.get("class_path", "")).rpartition(".")[-1]
    return format_value(value)


def _unknown(config: Namespace) -> Iterator[str]:
    """What is said where a model has no option of the usual name for its size."""
    missing = [name for name in ("n_layer", "n_embd", "block_size") if f"{NETWORK}.{name}" not in config]
    if missing:
        names = " or ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        yield f"{config.model.class_path.rpartition('.')[-1]} has no {names} to shrink"


def _changes(config: Namespace) -> dict[str, Any]:
    """The new value of each option that has to change, by its dotted name."""
    found: dict[str, Any] = {}
    for options, prefix in (
        (_network_changes(_options(config, NETWORK)), NETWORK),
        (_model_changes(_options(config, MODEL)), MODEL),
        (_data_changes(config), DATA),
        (_trainer_changes(config.trainer), "trainer"),
        (_size_of_run(config), ""),
    ):
        found |= {f"{prefix}.{name}".lstrip("."): value for name, value in options.items()}
    if "trainer.precision" in found:
        found[f"{MODEL}.residual_dtype"] = "float32"  # bfloat16 is for a mixed precision
    # As they are typed: an interval of 1.0 is an epoch and one of 1 a step, but devices may be 1 or "1".
    return {key: new for key, new in found.items() if key in config and str(config[key]) != str(new)}


def _options(config: Namespace, key: str) -> dict[str, Any]:
    """The options below a key, by name; none where there is no such key."""
    options = config.get(key)
    return dict(vars(options)) if isinstance(options, Namespace) else {}


def _at_most(options: Mapping[str, Any], largest: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of ``largest`` in place of options that are greater."""
    return {name: most for name, most in largest.items() if _number(options.get(name)) > most}


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


# ---- model


def _network_changes(old: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a network's size. Heads divide the width, and key/value heads divide the heads."""
    new = _at_most(old, LARGEST)
    width = min(_number(old.get("n_embd")), WIDTH)
    if width and width != old["n_embd"]:
        heads = _divisor(WIDTH, int(_number(old.get("n_head"))))
        new |= {"n_embd": WIDTH, "n_head": heads}
        if old.get("n_kv_head"):
            new["n_kv_head"] = _divisor(heads, old["n_kv_head"])
        if old.get("mlp_width"):
            new["mlp_width"] = max(1, old["mlp_width"] * WIDTH // old["n_embd"])
    return {name: value for name, value in new.items() if name in old}


def _divisor(number: int, most: int) -> int:
    """The largest of 1, 2, 4, 8 and 16 that divides a number and is not above another."""
    return max((n for n in (1, 2, 4, 8, 16) if n <= most and number % n == 0), default=1)


def _model_changes(old: Mapping[str, Any]) -> dict[str, Any]:
    new: dict[str, Any] = _at_most(old, {"sampled_softmax": VOCAB // 4})
    optimizer = old.get("optimizer")
    if _number(optimizer.get("warmup") if isinstance(optimizer, Namespace) else None) >= 1:
        new["optimizer.warmup"] = 0.1  # a share of the run's steps
    if old.get("compile") and not can_compile():
        new["compile"] = False
    if old.get("init_from"):
        new["init_from"] = None
    return new


def can_compile() -> bool:
    """Whether there is a GPU, and a compiler for what torch.compile writes."""
    compilers = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return torch.cuda.is_available() and any(name and shutil.which(name) for name in compilers)


# ---- data


def _data_changes(config: Namespace) -> dict[str, Any]:
    old = _options(config, DATA)
    network = {**_options(config, NETWORK), **_network_changes(_options(config, NETWORK))}
    new = _at_most(old, {"train_eval_rows": ROWS, "num_workers": 1, "batch_size": ROWS})
    new |= _rows(old, _number(_options(config, NETWORK).get("block_size")), int(_number(network.get("block_size"))))
    if "max_bytes" in old:
        new |= {"max_bytes": min(old["max_bytes"] or MAX_BYTES, MAX_BYTES)}
        new |= _texts(old) | _tokenizer(old)
    return new


def _rows(old: Mapping[str, Any], model_block: float, block: int) -> dict[str, Any]:
    """A step of few rows of the new length. One of several micro-batches stays one."""
    own_block = int(old.get("block_size") or model_block)
    if not (own_block and block):
        return {}
    block = min(own_block, block)
    rows = max(1, int(old.get("tokens_per_step") or 32 * own_block) // own_block)
    new = {"tokens_per_step": min(rows, ROWS) * block}
    new |= _at_most(old, {"block_size": block, "stride": block, "val_stride": block, "mask_first": block - 1})
    micro = old.get("micro_batch_size")
    if isinstance(micro, int) and rows > ROWS:
        new["micro_batch_size"] = ROWS if micro >= rows else min(micro, ROWS // 2)
        new["tokens_per_step"] = ROWS // new["micro_batch_size"] * new["micro_batch_size"] * block
    return new


def _texts(old: Mapping[str, Any]) -> dict[str, Any]:
    """Sources that are on this machine, and splits that are long enough in a short text.

    A source of none means the class's embedded text.
    """
    new: dict[str, Any] = {name: 0.1 for name in ("val_fraction", "test_fraction") if 0 < _number(old.get(name)) < 0.1}
    for split in ("val", "test"):
        if old.get(f"{split}_documents"):
            new |= {f"{split}_documents": None, f"{split}_fraction": 0.1}
    for name in SOURCES:
        specs = _as_list(old.get(name))
        here = [spec for spec in specs if not source_needs_network(spec, old.get("cache_dir"))]
        if len(here) < len(specs):
            new[name] = here or None
    if "val_source" in new and not (new["val_source"] or old.get("val_fraction")):
        new["val_fraction"] = 0.1  # of the source, as there is no other text to validate on
    source = new.get("source", old.get("source"))
    if old.get("documents") == "column" and (source is None or _is_plain_text(source)):
        new |= {"documents": None, "column": None}
    return new


def _is_plain_text(source: str | list[str]) -> bool:
    """Whether a source is files that are no tables."""
    kinds = [TextFile(Path(spec).name).kind for spec in _as_list(source) if expanded(spec).is_file()]
    return bool(kinds) and not TABLE_SUFFIXES & set(kinds)


def _as_list(source: str | list[str] | None) -> list[str]:
    return source if isinstance(source, list) else [] if source is None else [source]


def _tokenizer(old: Mapping[str, Any]) -> dict[str, Any]:
    name = old.get("tokenizer")
    if name is not None and "vocab_size" in old and encoding_needs_network(name):  # it may be another one
        return {"tokenizer": "bpe", "vocab_size": VOCAB}
    if name in ("bpe", "unigram", "wordpiece") and (old.get("vocab_size") or VOCAB + 1) > VOCAB:
        return {"vocab_size": VOCAB}
    return {}


# ---- the run


def _trainer_changes(old: Namespace) -> dict[str, Any]:
    """One device of this machine, few steps, and a validation in the middle and at the end."""
    on_gpu = torch.cuda.is_available() and old.accelerator != "cpu"
    steps = min(old.max_steps, STEPS) if old.max_steps > 0 else STEPS
    new = {"devices": 1, "num_nodes": 1, "strategy": "auto", "max_steps": steps, "check_val_every_n_epoch": None}
    new |= {"min_steps": None, "min_epochs": None, "val_check_interval": _interval(old.val_check_interval, steps)}
    new |= {"log_every_n_steps": min(old.log_every_n_steps or STEPS, 5)}
    new |= {"accelerator": old.accelerator if old.accelerator == "cpu" else "auto"}
    if not _has_precision(str(old.precision), on_gpu):
        new["precision"] = "32-true"
    if old.limit_val_batches is None or isinstance(old.limit_val_batches, float) or old.limit_val_batches > VAL_BATCHES:
        new["limit_val_batches"] = 0 if old.limit_val_batches == 0 else VAL_BATCHES
    new["logger"] = [_offline(one) for one in old.logger] if isinstance(old.logger, list) else _offline(old.logger)
    return new


def _offline(logger: Any) -> Any:
    """A logger that keeps its run on this machine, if it has the option, as that of Weights & Biases."""
    if not isinstance(logger, Namespace) or "init_args.offline" not in logger:
        return logger
    logger = logger.clone()
    logger["init_args.offline"] = True
    return logger


def _interval(old: Any, steps: int) -> int:
    middle = max(1, steps // 2)
    return min(old, middle) if isinstance(old, int) else middle


def _has_precision(precision: str, on_gpu: bool) -> bool:
    """Whether the device computes in a precision at full speed. A CPU computes in float32 and float64 alone."""
    if precision == "None" or precision.startswith(("32", "64")):
        return True
    if precision.startswith("bf16"):
        return on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return on_gpu and precision.startswith("16")


def _size_of_run(config: Namespace) -> dict[str, Any]:
    """Changes outside of model, data and trainer. The run has a folder of its own, and `--resume auto` looks there."""
    new: dict[str, Any] = {"name": f"{config.name.removesuffix(SUFFIX)}{SUFFIX}", "ckpt_path": None}
    new |= _at_most(_flat(config, "samples"), {"samples.max_new_tokens": 20, "samples.every_n_validations": 1})
    new |= _at_most(_flat(config, "checkpoint"), {"checkpoint.every_n_steps": 10, "checkpoint.keep_every_n_steps": 10})
    return new


def _flat(config: Namespace, group: str) -> dict[str, Any]:
    return {f"{group}.{name}": value for name, value in _options(config, group).items()}
