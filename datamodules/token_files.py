"""Files of token ids that other tools write: their formats, read in place as numpy memory maps.

- ``.bin`` of nanoGPT: ids one after the other, 16 bits each (32 for a vocabulary of more than 65,536), nothing else.
- ``.bin`` of llm.c and modded-nanogpt: 256 integers of 32 bits first, of which the third is the number of ids.
- ``.ds`` of datatrove: ids as in nanoGPT's. ``.ds.index`` beside it has the end of each document as the number of ids
  up to there, 64 bits each. So the sizes of both files together tell the bits of an id.

All numbers are little-endian.
"""

import glob
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datamodules.errors import UserError
from datamodules.files import expanded

#: The first integer of a header, and the type of the ids that follow.
_MAGIC = {20240520: "<u2", 20240801: "<u4"}
_HEADER = 256  # integers of 32 bits
_INDEX = "<u8"
#: Ids at the beginning of a file that are looked at for a wrong type.
_LOOK = 4096
#: How files of other formats begin. Their bytes, read as ids, would be in the range of a vocabulary.
_OTHERS = {b"\x93NUMPY": "numpy's .npy", b"PK\x03\x04": "zip", b"\x1f\x8b\x08": "gzip", b"PAR1": "Parquet"}
#: Bytes of text: all but control characters. A file of ids with only such bytes in its first 256 would be a wonder.
_OF_TEXT, _FEWEST = bytes({9, 10, 12, 13, *range(32, 127), *range(128, 256)}), 256


@dataclass(frozen=True)
class TokenFile:
    """A file of ids.

    Attributes:
        path: where it is.
        dtype: the type of an id, ``<u2`` or ``<u4``.
        offset: the byte at which the ids begin.
        count: the number of ids.
        index: the file with the ends of its documents; None has none.
    """

    path: Path
    dtype: str
    offset: int
    count: int
    index: Path | None = None

    def ids(self, low: int = 0, high: int | None = None) -> np.ndarray:
        """The ids from one position to another, mapped and not read yet."""
        count = (self.count if high is None else high) - low
        if not count:
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset + low * np.dtype(self.dtype).itemsize, (count,))

    def ends(self, low: int, high: int) -> np.ndarray:
        """The ends of documents from one position to another, counted from ``low``; the last is ``high``. (n,) int64.

        Raises:
            UserError: the index is damaged.
        """
        if self.index is None:
            return np.array([high - low])
        ends = np.fromfile(self.index, _INDEX).astype(np.int64)
        if (np.diff(ends) < 0).any():
            raise UserError(f"{self.index} is damaged: its numbers do not increase; make or copy it again.")
        return np.unique(np.append(ends[(ends > low) & (ends < high)], high)) - low

    def stamp(self) -> list[object]:
        """Absolute path, size and time of change of the file, and of its index."""
        paths = [path for path in (self.path, self.index) if path is not None]
        return [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


@dataclass(frozen=True)
class TokenSource:
    """Files of ids, read one after the other as one stream.

    Attributes:
        name: the name of the source in messages.
        files: the files; all have ids of one type, and all or none have an index.
    """

    name: str
    files: tuple[TokenFile, ...]

    @property
    def dtype(self) -> str:
        """The type of an id."""
        return self.files[0].dtype

    @property
    def count(self) -> int:
        """The number of ids of all files."""
        return sum(file.count for file in self.files)

    @property
    def indexed(self) -> bool:
        """Whether an index says where documents end."""
        return self.files[0].index is not None

    def stretches(self, low: int, high: int) -> Iterator[tuple[TokenFile, int, int]]:
        """Which ids of which files are those from one position of the stream to another: file, first and end."""
        begin = 0
        for file in self.files:
            first, end = max(low - begin, 0), min(high - begin, file.count)
            if first < end:
                yield file, first, end
            begin += file.count

    def beginning(self, lengths: np.ndarray, size: int) -> "TokenSource":
        """The first ids, whose text has about ``size`` bytes.

        Args:
            lengths: the bytes of each token, (V,).
            size: the bytes.
        """
        done, files = 0, []
        for file in self.files:
            # A token without bytes, such as an EOS token, counts as one byte, so no more ids than bytes are needed.
            ids = np.minimum(file.ids(0, min(file.count, size - done)), len(lengths) - 1)
            sizes = np.cumsum(np.maximum(lengths[ids], 1))
            count = int(np.searchsorted(sizes, size - done, side="right"))
            files.append(replace(file, count=count))
            done += int(sizes[count - 1]) if count else 0
            if count < file.count:
                break
        return TokenSource(self.name, tuple(file for file in files if file.count))

    def ends_documents_with(self, token_id: int) -> bool:
        """Whether the index's first document ends with a token."""
        file = self.files[0]
        end = int(file.ends(0, file.count)[0])
        return int(file.ids(end - 1, end)[0]) == token_id


def open_tokens(spec: str | Sequence[str], vocab_size: int) -> TokenSource:
    """The files that ``spec`` names. Of their content only headers and indexes are read.

    Args:
        spec: a file, a glob, a folder with ``.ds`` files, or a list of these.
        vocab_size: the size of the vocabulary, which decides the type of ids where the file does not.

    Raises:
        UserError: a file that is missing or cut, without its index, or of another format than the others.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    paths = [path for each in specs for path in _paths(each)]
    twice = next((path for path, times in Counter(path.resolve() for path in paths).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"the source has {twice} twice: give each file once.")
    files = [file for file in (_opened(path, vocab_size) for path in paths) if file.count]
    if not files:
        raise UserError(f"the source {', '.join(specs)} has no tokens: every file in it is empty; give another.")
    for file in files[1:]:
        if (file.dtype, file.index is None) != (files[0].dtype, files[0].index is None):
            raise UserError(f"{file.path} is of another format than {files[0].path}: give them as two sources.")
    return TokenSource(", ".join(specs), tuple(files))


def _paths(spec: str) -> list[Path]:
    """The files of one path or glob, in sorted order."""
    path = expanded(spec)
    if path.is_dir():
        found = sorted(path.glob("*.ds"))  # a folder with train.bin has val.bin too
        if not found:
            raise UserError(f"the folder {spec} has no .ds files: name the files in it, such as train.bin, or a glob.")
        _check_complete(path, found)
        return found
    if path.is_file():
        return [path]
    matches = [match for match in map(Path, sorted(glob.glob(str(path)))) if match.is_file()]
    if not matches:
        raise UserError(f"there is no file or folder {spec!r}: give files of tokens, such as train.bin.")
    return matches


def _check_complete(folder: Path, found: list[Path]) -> None:
    """Refuses a folder of datatrove's in which a shard is missing, of which another file is there."""
    for beside in sorted(folder.glob("*.ds.index")):
        if (shard := beside.with_suffix("")) not in found:
            raise UserError(f"{shard} is missing, and {beside.name} is there: make or copy the shard again.")
    for summary in sorted(folder.glob("*.ds.metadata")):
        merged = [path for path in found if path.name.partition("_")[2] == summary.with_suffix("").name]
        if summary.with_suffix("") not in found and merged:
            _check_total(summary, merged)


def _check_total(summary: Path, shards: list[Path]) -> None:
    """Compares the number of ids of merged shards with what datatrove's summary of them says in its second line."""
    lines = summary.read_text(encoding="utf-8").splitlines()
    size = lines[0].rpartition("|")[2] if lines else ""
    if len(lines) < 2 or not (size.isdecimal() and lines[1].isdecimal()):
        return
    there = sum(path.stat().st_size for path in shards) // int(size)
    if there != int(lines[1]):
        raise UserError(
            f"{summary} counts {int(lines[1]):,} tokens, and its {len(shards)} shards hold {there:,}: one is missing "
            "or cut; make or copy it again."
        )


def _opened(path: Path, vocab_size: int) -> TokenFile:
    try:
        file = _indexed(path) if path.suffix == ".ds" else _with_header(path) or _plain(path, vocab_size)
    except OSError as error:
        raise UserError(f"the file {path} cannot be read ({error.strerror}); give one that can.") from None
    if file.dtype == "<u2" and _looks_wider(file.ids(0, min(file.count, _LOOK))):
        raise UserError(
            f"{path} holds ids of 32 or 64 bits, where this format has 16: write them as uint16, for example with "
            "numpy's `astype('uint16').tofile`."
        )
    return file


def _indexed(path: Path) -> TokenFile:
    index = path.with_name(f"{path.name}.index")
    if not index.is_file():
        raise UserError(f"{path} has no {index.name} beside it, which says where documents end: copy it there too.")
    size, documents = path.stat().st_size, index.stat().st_size // 8
    if index.stat().st_size % 8:
        raise UserError(f"{index} is cut: {index.stat().st_size:,} bytes are no whole number of 8; copy it again.")
    count = int(np.memmap(index, _INDEX, "r")[-1]) if documents else 0
    for dtype in ("<u2", "<u4"):
        if size == count * np.dtype(dtype).itemsize:
            return TokenFile(path, dtype, 0, count, index)
    raise UserError(
        f"{path} is cut, or {index.name} is not its own: it has {size:,} bytes, and its documents end at token "
        f"{count:,}; make or copy both again."
    )


def _with_header(path: Path) -> TokenFile | None:
    """A file of llm.c's format; None for another format."""
    header = np.fromfile(path, "<i4", 3)
    if len(header) < 3 or int(header[0]) not in _MAGIC:
        return None
    dtype, count, offset = _MAGIC[int(header[0])], int(header[2]), 4 * _HEADER
    size = path.stat().st_size
    if size != offset + count * np.dtype(dtype).itemsize:
        raise UserError(f"{path} is cut: its header names {count:,} tokens, and it has {size:,} bytes; copy it again.")
    return TokenFile(path, dtype, offset, count)


def _check_plain(path: Path) -> None:
    """Refuses text and files of other formats. Any two letters are an id below 32,768, which most tokenizers have."""
    with path.open("rb") as file:
        begin = file.read(2 * _LOOK)
    if other := next((name for magic, name in _OTHERS.items() if begin.startswith(magic)), None):
        raise UserError(
            f"{path} is in {other} format, and not ids alone: write them as uint16, for example with numpy's "
            "`astype('uint16').tofile`."
        )
    if len(begin) >= _FEWEST and not begin.translate(None, _OF_TEXT):
        with suppress(UnicodeDecodeError):
            getincrementaldecoder("utf-8")().decode(begin)  # its end may cut a character
            raise UserError(f"{path} is text and not tokens: give it to --data CharDataModule or BPEDataModule.")


def _plain(path: Path, vocab_size: int) -> TokenFile:
    _check_plain(path)
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    size, width = path.stat().st_size, np.dtype(dtype).itemsize
    if size % width:
        raise UserError(
            f"{path} is cut or no file of tokens: {size:,} bytes are no whole number of ids of {width} bytes."
        )
    return TokenFile(path, dtype, 0, size // width)


def _looks_wider(ids: np.ndarray) -> bool:
    """Whether every second id is 0, as where the upper half of a wider one is read as an id of its own."""
    return len(ids) > 1 and not ids[1::2].any() and bool(ids[::2].any())
