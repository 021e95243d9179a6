"""The work of a preparation in units: parts of the text that are encoded one by one, by any process.

The folder ``KEY.part`` has the tokenizer, ``plan.json`` with the parts of the text, and for each part that is finished
its files and ``unit-N.json`` with their sizes and checksums. That file is written last, so a process that is killed
loses the unit that it was at, and no other. Parts depend on the text and the size of a shard, not on who encodes them:
the files are the same from one process and from many.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.encoding import Encoded, Job, encode_all, useful_workers
from datamodules.files import crc32_of, locked, write_json
from datamodules.integrity import read_checked, with_checksum, written_by
from datamodules.progress import progress
from datamodules.recipe import Part, Recipe
from datamodules.splitting import Mark, Scan, SplitPiece, Stretch
from datamodules.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from datamodules.tokens import STORE_VERSION, TOKENIZER, TokenWriter, token_dtype

PLAN, _KEEP = "plan.json", "keep-{}.npy"
#: Characters that are encoded at a time. A worker process gets them in one message: a message for each headline of 50
#: characters would take longer than encoding it.
_JOB_CHARS = 1 << 20
#: About the characters of a token of English text, for the size of a part. A shard that becomes too large is cut.
_CHARS_A_TOKEN = 4


@dataclass(frozen=True)
class Plan:
    """The parts that a text is encoded in.

    Args:
        parts: the parts, in the order of the text.
        max_shard_bytes: most bytes of a file of ids.
    """

    parts: list[Part]
    max_shard_bytes: int

    def stem(self, unit: int, split: str) -> str:
        """How the names of a unit's files of a split begin."""
        return split if len(self.parts) == 1 else f"{split}-{unit:05d}"


def make_plan(recipe: Recipe, tokenizer: Tokenizer, folder: Path, max_shard_bytes: int) -> Plan:
    """Divides the text into parts and writes ``plan.json``. The folder has the tokenizer already."""
    per_token = 1 if isinstance(tokenizer, CharTokenizer | ByteTokenizer) else _CHARS_A_TOKEN
    chars = max_shard_bytes // token_dtype(tokenizer.vocab_size).itemsize * per_token
    plan = Plan(recipe.parts(max(chars, 1)), max_shard_bytes)
    scans = []
    for number, scan in enumerate(recipe.survey[0]):
        scans.append({"chars": scan.chars, "documents": scan.documents})
        if scan.keep is not None:
            np.save(folder / _KEEP.format(number), scan.keep)
    content = {"version": STORE_VERSION, "scans": scans, "max_shard_bytes": max_shard_bytes, "parts": plan.parts}
    content["files"] = {path.name: crc32_of(path) for path in (folder / TOKENIZER, *folder.glob(_KEEP.format("*")))}
    write_json(folder / PLAN, with_checksum(content))
    return plan


def read_plan(recipe: Recipe, folder: Path) -> Plan | None:
    """The plan that a process has written to the folder. The recipe then knows the sizes of its text.

    None: there is no plan, or it is damaged, or the tokenizer is, or what the plan says of documents.
    """
    content = read_checked(folder / PLAN)
    if content is None or content["version"] != STORE_VERSION or not _are_intact(folder, content["files"]):
        return None
    scans = []
    for number, sizes in enumerate(content["scans"]):
        keep = folder / _KEEP.format(number)
        scans.append(Scan(sizes["chars"], sizes["documents"], np.load(keep) if keep.exists() else None))
    recipe.know(scans)
    parts = [Part(source, Stretch(Mark(*start), stop)) for source, (start, stop) in content["parts"]]
    return Plan(parts, content["max_shard_bytes"])


def unit_record(folder: Path, unit: int) -> dict[str, Any] | None:
    """What ``unit-N.json`` says of a finished unit."""
    return read_checked(folder / f"unit-{unit:05d}.json")


def is_finished(folder: Path, unit: int) -> bool:
    """Whether a unit is finished and its files are there, with their sizes."""
    record = unit_record(folder, unit)
    with suppress(OSError):
        return record is not None and all(
            (folder / name).stat().st_size == file["size"] for name, file in record["files"].items()
        )
    return False


def unfinished(plan: Plan, folder: Path) -> list[int]:
    """The numbers of the units that are not finished."""
    return [unit for unit in range(len(plan.parts)) if not is_finished(folder, unit)]


def build_units(recipe: Recipe, plan: Plan, tokenizer: Tokenizer, folder: Path, units: Iterable[int]) -> set[int]:
    """Builds units that are not finished, and returns the numbers of those. Another process may build others."""
    built = set()
    wanted = [unit for unit in units if not is_finished(folder, unit)]
    share = recipe.chars * len(wanted) // len(plan.parts)
    with progress("Encoding", share) as advance:
        for unit in wanted:
            with locked(folder / f"unit-{unit:05d}.lock"):
                if (folder / PLAN).exists() and not is_finished(folder, unit):
                    for chars in _build_unit(recipe, plan, tokenizer, folder, unit, share // len(wanted)):
                        advance(chars)
                    built.add(unit)
    return built


def drop_damaged(plan: Plan, folder: Path) -> set[int]:
    """Removes the records of units whose files differ from their checksums, and returns their numbers."""
    damaged = {unit for unit in range(len(plan.parts)) if not _is_intact(folder, unit)}
    for unit in damaged:
        (folder / f"unit-{unit:05d}.json").unlink(missing_ok=True)
    return damaged


def has_damaged_starts(plan: Plan, folder: Path) -> bool:
    """Whether the positions of documents in one of several units differ from their checksum."""
    several = len(plan.parts) > 1  # the files of a single unit are those of the store
    return several and not all(_is_intact(folder, unit, ".starts") for unit in range(len(plan.parts)))


def _is_intact(folder: Path, unit: int, ending: str = "") -> bool:
    """Whether the files of a unit are as they were written, or those of them with names that end so."""
    record = unit_record(folder, unit)
    if record is None:
        return False
    files = {name: file["crc32"] for name, file in record["files"].items() if name.endswith(ending)}
    return _are_intact(folder, files)


def _are_intact(folder: Path, checksums: dict[str, int]) -> bool:
    with suppress(OSError):
        return all(crc32_of(folder / name) == checksum for name, checksum in checksums.items())
    return False


def _build_unit(recipe: Recipe, plan: Plan, tokenizer: Tokenizer, folder: Path, unit: int, chars: int) -> Iterator[int]:
    """Builds a unit of about ``chars`` characters, and yields the numbers of characters that are done."""
    part, dtype = plan.parts[unit], token_dtype(tokenizer.vocab_size)
    begun = recipe.begun(part)
    writers: dict[str, TokenWriter] = {}
    try:
        for split, end, encoded in _encoded(recipe.pieces(part), tokenizer, begun.inside is None, chars):
            if split not in writers:
                place = folder, plan.stem(unit, split), dtype, tokenizer.eos_id
                writers[split] = TokenWriter(*place, split in begun.splits, split == begun.inside, plan.max_shard_bytes)
            writers[split].add(*encoded, end)
            yield encoded.chars
        only = len(plan.parts) == 1
        write_json(folder / f"unit-{unit:05d}.json", with_checksum(written_by(writers, last=only)))
    finally:
        for writer in writers.values():
            with suppress(OSError):
                writer.abandon()


def _encoded(
    pieces: Iterable[SplitPiece], tokenizer: Tokenizer, begins: bool, chars: int
) -> Iterator[tuple[str, bool, Encoded]]:
    """For each piece its split, whether a document ends with it, and its ids.

    Args:
        pieces: the pieces.
        tokenizer: encodes them.
        begins: whether the first piece begins a document.
        chars: about the characters of all.
    """
    waiting: list[list[tuple[str, bool]]] = []  # split and end of each piece of the jobs whose ids have not come yet

    def jobs() -> Iterator[Job]:
        """The texts to encode, each with whether it begins a document. A worker needs to know nothing else."""
        first = begins
        for group in _grouped(pieces):
            waiting.append([(piece.split, piece.end) for piece in group])
            job = []
            for piece in group:
                job.append((piece.text, first))
                first = piece.end
            yield job

    for job in encode_all(tokenizer, jobs(), useful_workers(tokenizer, chars)):
        for (split, end), encoded in zip(waiting.pop(0), job, strict=True):
            yield split, end, encoded


def _grouped(pieces: Iterable[SplitPiece]) -> Iterator[list[SplitPiece]]:
    """Pieces in lists of about a million characters, each of which is one job."""
    group: list[SplitPiece] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.text)
        if size >= _JOB_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group
