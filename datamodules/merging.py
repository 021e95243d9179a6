"""The last step of a preparation: the finished units of a text become one token store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import UserError
from datamodules.files import SummedFile
from datamodules.integrity import STAMPS, file_record, write_meta
from datamodules.recipe import Recipe
from datamodules.tokenizers import Tokenizer
from datamodules.tokens import META, SPLITS, Counts, token_dtype
from datamodules.units import Plan, unit_record

_CHUNK = 1 << 20  # positions that are copied at a time


def merge(recipe: Recipe, plan: Plan, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the positions of the documents of all units into one file a split, and ``meta.json``.

    Files of ids stay as they are.

    Raises:
        UserError: the units together do not have the text's characters.
    """
    records = [record for unit in range(len(plan.parts)) if (record := unit_record(folder, unit)) is not None]
    assert len(records) == len(plan.parts)
    splits = {split: [record for record in records if split in record["splits"]] for split in SPLITS}
    splits = {split: of_split for split, of_split in splits.items() if of_split}
    counts = {split: _added(record["splits"][split] for record in of_split) for split, of_split in splits.items()}
    _check_characters(recipe, counts, folder)
    files: dict[str, Any] = {}
    for record in records:
        files |= record["files"]
    if len(plan.parts) > 1:
        files = {name: file for name, file in files.items() if not name.endswith(".starts")}
        for split in splits:
            files |= _merge_starts(plan, split, records, folder, tokenizer.eos_id is not None)
    shards = {
        split: [shard for record in of_split for shard in record["shards"][split]] for split, of_split in splits.items()
    }
    prints = {"data": recipe.data_fingerprint, "tokenizer": tokenizer.fingerprint}
    facts = {"eos_id": tokenizer.eos_id, "source": recipe.source.name, "fingerprints": prints}
    dtype = token_dtype(tokenizer.vocab_size).name
    write_meta(folder, {"splits": counts, "shards": shards, "files": files}, dtype=dtype, **facts)


def remove_units(folder: Path, files: dict[str, Any]) -> None:
    """Removes everything that is no file of the store: the plan, and what the units have beside their tokens."""
    for path in folder.iterdir():
        if path.name not in files and path.name not in (META, STAMPS):
            path.unlink()


def _added(counts: Iterator[dict[str, int]]) -> dict[str, int]:
    """The sum of each field of `Counts`."""
    of_all = list(counts)
    return {name: sum(count[name] for count in of_all) for name in Counts.__dataclass_fields__}


def _check_characters(recipe: Recipe, counts: dict[str, dict[str, int]], folder: Path) -> None:
    """Compares the characters of the store with those of the text, where nothing is dropped or added."""
    found = sum(count["chars"] for count in counts.values())
    dropped = recipe.scanned.keep is not None
    added = sum(max(count["documents"] - 1, 0) for count in counts.values()) * recipe.joins_by_newlines
    if not dropped and found - added != recipe.chars:
        raise UserError(
            f"the tokens in {folder} are of {found - added:,} characters, and the text has {recipe.chars:,}: remove "
            "that folder and start again."
        )


def _merge_starts(plan: Plan, split: str, records: list[dict[str, Any]], folder: Path, has_eos: bool) -> dict[str, Any]:
    """Writes the positions of a split's documents, counted from the beginning of the split, and the end of the last."""
    file = SummedFile(folder / f"{split}.starts")
    try:
        tokens = 0
        for unit, record in enumerate(records):
            if split in record["splits"]:
                positions = np.fromfile(folder / f"{plan.stem(unit, split)}.starts", "<i8")
                for low in range(0, len(positions), _CHUNK):
                    file.write((positions[low : low + _CHUNK] + tokens).tobytes())
                tokens += record["splits"][split]["tokens"]
        file.write((tokens - has_eos).to_bytes(8, "little"))
    finally:
        file.close()
    return {file.name: file_record(file)}
