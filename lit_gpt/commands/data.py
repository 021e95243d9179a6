"""``data``: the first batches of a configuration, as a person wants to see them, and what its corpus is like."""

from argparse import ArgumentError
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

# Imported, the classes are known to --data by their short names.
from datamodules import BPEDataModule, CharDataModule, HeadlinesDataModule, TextDataModule
from datamodules.batches import IGNORED, Batch
from datamodules.errors import UserError
from datamodules.facts import document_lengths, overlap, token_counts
from datamodules.tokenizers import Tokenizer
from lit_gpt.parse_errors import sentence

_CLASSES = (CharDataModule, BPEDataModule, HeadlinesDataModule)
_BATCHES_FOR_PADDING = 50


def main(arguments: list[str]) -> None:
    """Runs the verb: ``--config`` files are those of ``fit``, of which only the data and the block size are read."""
    given = _parse(arguments)
    module: TextDataModule = given.data
    module.block_size = module.block_size or given.block_size
    module.prepare_data()
    module.setup("fit")
    show(module, given.batches, given.rows)


def show(module: TextDataModule, batches: int = 1, rows: int = 3) -> None:
    """Prints the corpus facts and the first training batches.

    Args:
        module: a datamodule after ``setup``.
        batches: how many batches to print.
        rows: how many rows of each.
    """
    print("\n".join(corpus_lines(module)))
    loader = module.train_dataloader()
    for number, batch in zip(range(1, batches + 1), loader, strict=False):
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
        print(f"\nbatch {number} of {len(loader)}: {shapes}")
        for row in range(min(rows, len(batch["input_ids"]))):
            print("\n".join(row_lines(batch, row, module.tokenizer)))


def corpus_lines(module: TextDataModule) -> list[str]:
    """Sizes of the splits, use of the vocabulary, lengths, padding, and what validation shares with train."""
    stores, tokenizer = module.stores, module.tokenizer
    lines = [f"{'split':<6}{'documents':>11}{'tokens':>14}{'characters':>14}{'bytes':>14}{'bytes/token':>13}"]
    for split, store in stores.items():
        c = store.counts
        per_token = c.bytes / max(c.tokens - c.end_marks, 1)
        lines.append(f"{split:<6}{c.documents:>11,}{c.tokens:>14,}{c.chars:>14,}{c.bytes:>14,}{per_token:>13.3f}")
    lines += _vocabulary_lines(stores["train"], tokenizer)
    if tokenizer.eos_id is not None:
        low, middle, high, top = np.percentile(document_lengths(stores["train"]), [10, 50, 90, 100])
        lines.append(f"tokens a document: 10 % {low:.0f}, median {middle:.0f}, 90 % {high:.0f}, longest {top:.0f}")
    lines.append(f"padding: {_padding(module):.2%} of the positions of the first training batches")
    if "val" in stores:
        shared = overlap(stores["train"], stores["val"], tokenizer)
        lines.append(f"validation documents also in train: {_share(shared.documents)}")
        lines.append(f"validation stretches of 50 characters also in train: {_share(shared.shingles)}")
    return lines


def row_lines(batch: Batch, row: int, tokenizer: Tokenizer) -> list[str]:
    """One row: its text and targets token by token, the ids, what is scored and what is padding."""
    ids, targets = batch["input_ids"][row], batch["targets"][row]
    mask = batch["attention_mask"][row]
    between = "" if all(len(tokenizer.token_bytes(i)) == 1 for i in ids[:32].tolist()) else "|"
    document = f", documents {_spans(batch['document_ids'][row])}" if "document_ids" in batch else ""
    return [
        f"  row {row}: {int(mask.sum())} tokens, {int((targets != IGNORED).sum())} scored{document}",
        f"    input   {between.join(tokenizer.token_text(i) for i in ids[mask].tolist())}",
        f"    target  {between.join('·' if i == IGNORED else tokenizer.token_text(i) for i in targets[mask].tolist())}",
        f"    ids     {' '.join(map(str, ids.tolist()))}",
        f"    targets {' '.join(map(str, targets.tolist()))}",
        f"    mask    {''.join('#' if real else '.' for real in mask.tolist())}",
    ]


def _vocabulary_lines(train: Any, tokenizer: Tokenizer) -> list[str]:
    counts = token_counts(train, tokenizer.vocab_size)
    top = np.argsort(-counts, kind="stable")[:12]
    used = int((counts > 0).sum())
    frequent = "  ".join(f"{tokenizer.token_text(int(i))!r} {counts[i] / counts.sum():.1%}" for i in top if counts[i])
    return [f"vocabulary: {used:,} of {tokenizer.vocab_size:,} ids occur in train", f"most frequent: {frequent}"]


def _padding(module: TextDataModule) -> float:
    loader = module.train_dataloader()
    shares = [
        batch["attention_mask"].float().mean() for _, batch in zip(range(_BATCHES_FOR_PADDING), loader, strict=False)
    ]
    return 1 - float(torch.stack(shares).mean())


def _share(value: float | None) -> str:
    return "nothing to compare" if value is None else f"{value:.2%}"


def _spans(document_ids: torch.Tensor) -> str:
    numbers, lengths = torch.unique_consecutive(document_ids[document_ids >= 0], return_counts=True)
    return " ".join(f"{number}:{length}" for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True))


def _parse(arguments: list[str]) -> Namespace:
    parser = ArgumentParser(prog="python -m lit_gpt data", description=__doc__, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="A configuration of `fit`; may be repeated.")
    parser.add_subclass_arguments(TextDataModule, "data", required=True)
    parser.add_argument("--block_size", type=int, default=64, help="Tokens in a row, where no configuration says it.")
    parser.add_argument("--batches", type=int, default=1, help="How many batches to print.")
    parser.add_argument("--rows", type=int, default=3, help="How many rows of each.")
    parser.set_defaults({"data": {"class_path": "datamodules.CharDataModule"}})
    try:
        return parser.instantiate(parser.parse_args(_data_only(arguments)))
    except ArgumentError as error:
        raise UserError(sentence(str(error), _known_options())) from error


def _known_options() -> list[str]:
    parser = ArgumentParser()
    for kind in _CLASSES:
        parser.add_class_arguments(kind, kind.__name__)
    return [
        "config",
        "batches",
        "rows",
        "block_size",
        *{"data." + key.split(".", 1)[1] for key in vars(parser.get_defaults().as_flat())},
    ]


def _data_only(arguments: list[str]) -> list[str]:
    """The arguments with each ``--config FILE`` replaced by what this verb needs of it."""
    result = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            result[i + 1] = _needed(Path(arguments[i + 1]))
        elif argument.startswith("--config="):
            result[i] = "--config=" + _needed(Path(argument.removeprefix("--config=")))
    return result


def _needed(path: Path) -> str:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"There is no configuration {path}; give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The configuration {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    needed = {key: config[key] for key in ("data",) if key in config}
    model = config.get("model") or {}
    block_size = (model.get("init_args", model).get("config") or {}).get("block_size")
    return yaml.safe_dump({**needed, **({"block_size": block_size} if block_size else {})})
