"""Token files of other tools to a store that reads them in place.

The store's folder has what a store of text has (sizes, starts of documents, tokenizer), but no ids: it names the files
that hold them. All ids are read once, when the folder is made. That reading checks that the tokenizer knows them, finds
where documents end, and measures their text: the bytes of a text are those of its tokens, which counts of ids give.
The next start finds the folder by the names, sizes and times of the files, and reads none of them.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from datamodules.errors import UserError
from datamodules.files import SummedFile, cache_folder, locked
from datamodules.integrity import file_record, is_whole, write_meta
from datamodules.prepare import writable
from datamodules.progress import progress
from datamodules.scoring import size_of_tokens
from datamodules.splitting import Split
from datamodules.text_facts import store_text_facts
from datamodules.token_files import TokenFile, TokenSource
from datamodules.tokenizers import Tokenizer, save_tokenizer
from datamodules.tokens import SPLITS, STORE_VERSION, TOKENIZER, Counts, read_meta

_CHUNK = 1 << 20  # ids that are read at a time
_EOS = "eos.bin"  # the file of one EOS token


def prepare_tokens(recipe: "TokenRecipe", cache_dir: str | Path | None = None) -> Path:
    """The folder of the recipe's store, which is made now if it is missing or damaged.

    Several processes may call it at once: the first makes it, and the others wait.

    Raises:
        UserError: the tokens are damaged or of another tokenizer, or the cache cannot be written.
    """
    folder = cache_folder(cache_dir) / recipe.key
    if is_whole(folder):
        return folder
    with writable(folder.parent), locked(folder.with_suffix(".lock")):
        if not is_whole(folder):  # no process has made it while this one waited
            part = folder.with_suffix(".part")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(part, ignore_errors=True)
            try:
                with recipe.unchanging():
                    recipe.build(part)
                store_text_facts(part, recipe.tokenizer)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class TokenRecipe:
    """All that decides the content of a store of token files.

    Args:
        source: the tokens that are split.
        tokenizer: the tokenizer that they were made with.
        split: the shares of the tokens that are validation and test.
        val_source: tokens that are the validation split, instead of a part of ``source``.
        test_source: tokens that are the test split, likewise.
    """

    source: TokenSource
    tokenizer: Tokenizer
    split: Split
    val_source: TokenSource | None = None
    test_source: TokenSource | None = None

    def __post_init__(self) -> None:
        """Refuses files of several types, and a validation or test file that is trained on too."""
        train = {file.path.resolve() for file in self.source.files}
        for split, source in self._sources.items():
            if source.dtype != self.source.dtype:
                raise UserError(f"{source.name} has ids of another width than {self.source.name}: make both alike.")
            shared = sorted(train & {file.path.resolve() for file in source.files})
            if split != "train" and shared:
                raise UserError(f"the {split}_source has {shared[0]}, and so has the source that is trained on.")

    @property
    def _sources(self) -> dict[str, TokenSource]:
        sources = {"train": self.source, "val": self.val_source, "test": self.test_source}
        return {name: source for name, source in sources.items() if source is not None}

    @cached_property
    def key(self) -> str:
        """Name of the store's folder: equal for equal files with equal sizes and times of change."""
        stamps = {name: [file.stamp() for file in source.files] for name, source in self._sources.items()}
        counts = {name: source.count for name, source in self._sources.items()}
        content = {"version": STORE_VERSION, "stamps": stamps, "counts": counts, "split": asdict(self.split)}
        content |= {"tokenizer": self.tokenizer.fingerprint, "dtype": self.source.dtype}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Raises an error at the end of a block if a file was written to during it."""
        stamps = [file.stamp() for source in self._sources.values() for file in source.files]
        try:
            yield
        finally:
            if stamps != [file.stamp() for source in self._sources.values() for file in source.files]:
                raise UserError(f"the tokens of {self.source.name} were written to while they were read: start again.")

    def parts(self) -> dict[str, tuple[TokenSource, int, int]]:
        """For each split its source, and the stretch of it: first position and end."""
        cuts = [0, *self.split.cuts(self.source.count), self.source.count]
        bounds = zip(SPLITS, pairwise(cuts), strict=True)
        parts = {name: (self.source, low, high) for name, (low, high) in bounds if low < high}
        return parts | {name: (source, 0, source.count) for name, source in self._sources.items() if name != "train"}

    def build(self, folder: Path) -> None:
        """Makes the folder of the store."""
        folder.mkdir(parents=True)
        save_tokenizer(self.tokenizer, folder / TOKENIZER)
        readings = self._read(folder)
        if len({reading.eos_id for reading in readings.values()}) > 1:
            raise UserError("documents of some splits end with EOS tokens, and of others not: make all alike.")
        written: dict[str, dict[str, Any]] = {
            "splits": {name: asdict(reading.counts()) for name, reading in readings.items()},
            "shards": {name: reading.shards() for name, reading in readings.items()},
            "files": {reading.file.name: file_record(reading.file) for reading in readings.values()},
        }
        if (eos_id := readings["train"].eos_id) is not None:
            written["files"] |= _write_eos(folder, np.dtype(self.source.dtype).type(eos_id).tobytes())
        prints = {"data": _fingerprint(readings), "tokenizer": self.tokenizer.fingerprint}
        facts = {"eos_id": eos_id, "source": self.source.name, "fingerprints": prints}
        write_meta(folder, written, dtype=np.dtype(self.source.dtype).name, **facts)

    def verify(self, folder: Path) -> None:
        """Compares the tokens with those that the store was made of, by reading all of them."""
        with TemporaryDirectory() as other:
            data = _fingerprint(self._read(Path(other)))
        if data != read_meta(folder)["fingerprints"]["data"]:
            raise UserError(
                f"the tokens of {self.source.name} are not those that were checked first, though no size and no time "
                f"of change differs: copy them again, and remove {folder}."
            )

    def _read(self, folder: Path) -> dict[str, "_Reading"]:
        parts = self.parts()
        readings = {name: _Reading(self.tokenizer, *part, folder / f"{name}.starts") for name, part in parts.items()}
        with progress("Checking the tokens", sum(reading.count for reading in readings.values())) as advance:
            for reading in readings.values():
                reading.run(advance)
        return readings


def _write_eos(folder: Path, data: bytes) -> dict[str, Any]:
    """Writes the file of one EOS token, which stands where the files of a split have none, and returns its record."""
    file = SummedFile(folder / _EOS)
    file.write(data)
    file.close()
    return {_EOS: file_record(file)}


def _fingerprint(readings: Mapping[str, "_Reading"]) -> str:
    """SHA-256 of all splits."""
    prints = {name: reading.fingerprint() for name, reading in readings.items()}
    return hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()


class _Reading:
    """One reading of a split: checks its ids, counts them, and writes where its documents start.

    The split is completed to the layout of a store (see `tokens`): with an EOS token before the first document and
    behind the last one, where the files have none. Without an index, every EOS token of the files ends a document.
    """

    def __init__(self, tokenizer: Tokenizer, source: TokenSource, low: int, high: int, starts: Path) -> None:
        self.tokenizer, self.source, self.stretches = tokenizer, source, list(source.stretches(low, high))
        eos_id = tokenizer.eos_id
        self.eos_id = eos_id if eos_id is None or not source.indexed or source.ends_documents_with(eos_id) else None
        self.before, self.behind = (self.eos_id not in (None, self._edge(end)) for end in (0, -1))
        self.digest = hashlib.sha256(source.dtype.encode())
        self.used = np.zeros(tokenizer.vocab_size, np.int64)
        self.count = high - low
        self._path, self.starts = starts, 0

    def _edge(self, end: int) -> int:
        """The first or last id of the split."""
        file, low, high = self.stretches[end]
        return int(file.ids(low, high)[end])

    def run(self, advance: Callable[[int], None]) -> None:
        """Reads the split."""
        self.file = SummedFile(self._path)
        try:
            self._run(advance)
        finally:
            self.file.close()

    def _run(self, advance: Callable[[int], None]) -> None:
        if self.before or self.eos_id is None:
            self._write(np.zeros(1, np.int64))
        position = int(self.before)  # in the split's layout
        for file, low, high in self.stretches:
            for first in range(low, high, _CHUNK):
                ids = file.ids(first, min(first + _CHUNK, high))
                self._count(file, first, ids)
                if self.eos_id is not None and not self.source.indexed:
                    self._write(position + first - low + np.flatnonzero(ids == self.eos_id))
                advance(len(ids))
            if self.source.indexed:
                self._write_indexed(file, low, high, position)
            position += high - low
        if self.behind or (self.eos_id is None and not self.source.indexed):
            self._write(np.array([position]))

    def _count(self, file: TokenFile, first: int, ids: np.ndarray) -> None:
        highest = int(ids.max())
        if highest >= len(self.used):
            raise UserError(
                f"{file.path} holds the id {highest:,} at token {first + int(ids.argmax()):,}, and the tokenizer has "
                f"{len(self.used):,} ids: give the tokenizer that the tokens were made with."
            )
        self.used += np.bincount(ids, minlength=len(self.used))
        self.digest.update(ids.tobytes())

    def _write_indexed(self, file: TokenFile, low: int, high: int, position: int) -> None:
        """Writes the documents of a file, which end where its index says."""
        ends = file.ends(low, high)
        is_eos = file.ids(low, high)[ends - 1] == self.tokenizer.eos_id
        # The last document of a split may be cut.
        if (is_eos[:-1] != (self.eos_id is not None)).any() or (self.eos_id is None and is_eos[-1]):
            raise UserError(
                f"some documents of {file.path} end with the tokenizer's EOS token (id {self.tokenizer.eos_id}) and "
                "others do not: tokenise with eos_token and without shuffle_chunk_size."
            )
        ends = position + ends
        self._write(ends if self.eos_id is None else ends[is_eos] - 1)

    def _write(self, starts: np.ndarray) -> None:
        self.file.write(starts.astype("<i8").tobytes())
        self.starts += len(starts)

    def counts(self) -> Counts:
        """The sizes of the split."""
        documents, used = self.starts - 1, self.used.copy()
        if self.eos_id is not None:  # those that end documents are no text
            used[self.eos_id] -= self.starts - self.before - self.behind
        chars, size = size_of_tokens(used, self.tokenizer)
        spaces = documents * self.tokenizer.prefix_space
        tokens = self.count + self.before + self.behind
        return Counts(tokens, documents, chars - spaces, size - spaces, documents if self.eos_id is not None else 0)

    def fingerprint(self) -> str:
        """SHA-256 of the split: of its ids and of where its documents start."""
        return hashlib.sha256(f"{self.digest.hexdigest()} {self.file.crc32} {self.eos_id}".encode()).hexdigest()

    def shards(self) -> list[tuple[str, int, int]]:
        """The files of the split's ids, as in `TokenStore.shards`."""
        width = np.dtype(self.source.dtype).itemsize
        eos = [(_EOS, 1, 0)]
        files = [(str(f.path.absolute()), high - low, f.offset + low * width) for f, low, high in self.stretches]
        return [*eos * self.before, *files, *eos * self.behind]
