"""Reads normalised text in bounded memory: chunks and lines of a file, rows of a table, pieces of a document."""

import codecs
import csv
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from datamodules.errors import UserError

CHUNK = 1 << 20


class Piece(NamedTuple):
    """A stretch of a document. ``end`` is True for the last one of the document."""

    text: str
    end: bool


@dataclass
class Cursor:
    """Where a reading of a source stands: behind ``skip`` pieces from a byte of a file on.

    A reading that starts at a cursor gives the pieces that follow it. Skipped pieces are read and dropped.

    Attributes:
        file: number of the file.
        offset: the byte, from which on the file can be read.
        skip: number of pieces from there on.
    """

    file: int = 0
    offset: int = 0
    skip: int = 0


def _nothing() -> None:
    return


@dataclass(frozen=True)
class TextFile:
    """A text file on disk, gzipped or not, or in memory.

    Attributes:
        name: its name in messages; the suffix says how to read it.
        path: where it is on disk, or None.
        content: its bytes, if it has no path.
    """

    name: str
    path: Path | None = None
    content: bytes = b""

    @property
    def kind(self) -> str:
        """The suffix in small letters, without a final ``.gz``."""
        return without_gz(Path(self.name)).suffix.lower()

    @property
    def resolved_path(self) -> Path | None:
        """The path without links and without a final ``.gz``, which is equal for all names of a text."""
        return without_gz(self.path.resolve()) if self.path else None

    def stamp(self) -> tuple[int, int] | None:
        """Size and time of the last change; None without a file."""
        try:
            stat = self.path.stat() if self.path else None
        except OSError:  # it was removed
            return None
        return (stat.st_size, stat.st_mtime_ns) if stat else None

    def raw(self) -> io.BufferedIOBase:
        """The bytes as they are stored, open for reading."""
        try:
            return self.path.open("rb") if self.path else io.BytesIO(self.content)
        except OSError as error:
            raise UserError(f"the file {self.name} cannot be read ({error.strerror}); give one that can.") from None

    def sha256(self) -> str:
        """SHA-256 (hex) of the bytes as they are stored."""
        with self.raw() as raw:
            return hashlib.file_digest(raw, "sha256").hexdigest()

    @property
    def is_gz(self) -> bool:
        """Whether the file is gzipped, so that it cannot be read from the middle."""
        return _is_gz(Path(self.name))

    def mark_bytes(self) -> int:
        """Bytes of a byte order mark at the beginning of the file: 3 or 0."""
        with self.raw() as raw:
            return 3 * raw.read(3).startswith(codecs.BOM_UTF8)

    def chunks(self, size: int = CHUNK, start: int = 0, changed: Callable[[], None] = _nothing) -> Iterator[str]:
        r"""The text, about ``size`` characters at a time, without a byte order mark and with ``\n`` for all line ends.

        Args:
            size: about the characters of a chunk.
            start: the byte at which the reading begins, at the beginning of a character. Not for gzipped files.
            changed: called when line ends are replaced. The bytes of the text are then fewer than those of the file.

        Raises:
            UserError: not UTF-8 (names the byte offset), or a broken gzip file.
        """
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        with self.raw() as raw:
            raw.seek(start)
            stream = gzip.GzipFile(fileobj=raw) if self.is_gz else raw
            for text in _decoded(stream, self.name, size, start):
                if "\r" in text:
                    changed()
                # The newline decoder takes text, because it wraps no other decoder. Its type stub says bytes.
                yield newlines.decode(cast(bytes, text))
            yield newlines.decode(cast(bytes, ""), final=True)

    def lines(self, start: int = 0, changed: Callable[[], None] = _nothing) -> Iterator[str]:
        r"""The lines without their ``\n``. Only ``\n`` ends a line: U+2028 and form feeds are text.

        Args:
            start: as for `chunks`, at the beginning of a line.
            changed: as for `chunks`.
        """
        held: list[str] = []  # parts of a line that is longer than a chunk; joined once, so the time stays linear
        for chunk in self.chunks(CHUNK, start, changed):
            *ends, rest = chunk.split("\n")
            for end in ends:
                yield "".join([*held, end])
                held = []
            held.append(rest)
        if any(held):
            yield "".join(held)


def _is_gz(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def without_gz(path: Path) -> Path:
    """``path`` without a final ``.gz`` or ``.GZ``."""
    return path.with_suffix("") if _is_gz(path) else path


#: How files begin from which text must be extracted first: byte offset, bytes, kind of file.
_BEGINNINGS = (
    (257, b"ustar", "a tar archive"),
    (0, b"PK\x03\x04", "a zip archive (or a .docx, .odt, .epub or .xlsx)"),
    (0, b"\x1f\x8b", "gzipped, and its name does not end in .gz or it is so twice"),
    (4, b"1AY&SY", "a bzip2 file"),
    (0, b"\xfd7zXZ\x00", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a rar archive"),
    (0, b"%PDF-", "a PDF"),
    (0, b"PAR1", "a parquet table, to read with documents='column'"),
)


def _refuse_archive(data: bytes, name: str) -> None:
    """Refuses a file that begins like an archive.

    Some archives are valid UTF-8, with their headers. For others the error about UTF-8 would advise to convert them.
    """
    for offset, beginning, kind in _BEGINNINGS:
        if data[offset : offset + len(beginning)] == beginning:
            raise UserError(f"{name} is {kind}, and no text: give the texts in it, unpacked, as .txt (or .txt.gz).")


def _decoded(stream: io.BufferedIOBase, name: str, size: int, start: int = 0) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = start  # of the first byte that the decoder has not turned into text
    while True:
        data = _read(stream, name, size)
        if offset == 0:
            _refuse_archive(data, name)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} is not UTF-8: byte {error.object[error.start]:#04x} at offset {offset + error.start:,}; "
                "convert it, for example with `iconv -f latin1 -t utf-8`."
            ) from None
        yield text.removeprefix("\ufeff") if offset == 0 else text
        if not data:
            return
        pending = len(decoder.getstate()[0])
        offset = stream.tell() - pending


def _read(stream: io.BufferedIOBase, name: str, size: int) -> bytes:
    try:
        return stream.read(size)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{name} is not a whole gzip file ({error}); fetch or compress it again.") from None


def cut(chunks: Iterable[str], size: int) -> Iterator[Piece]:
    """Cuts a document into pieces of at most ``size`` characters. About two pieces are in memory at a time.

    A cut is before the last space, or else newline, that follows a letter. Every pattern like GPT-2's ends a match
    there and starts the next, so the tokens of the pieces are those of the whole document. A piece without such a
    space is cut at ``size``; the tokens next to that cut may differ from those of the whole.

    Args:
        chunks: the text of the document, in chunks of any size.
        size: most characters of a piece.
    """
    held = ""
    for chunk in chunks:
        held += chunk
        done = 0
        while len(held) - done > size:
            part = held[done : done + size + 1]
            length = _after_letter(part, " ", size) or _after_letter(part, "\n", size) or size
            yield Piece(part[:length], False)
            done += length
        held = held[done:]
    yield Piece(held, True)


def _after_letter(text: str, space: str, limit: int) -> int:
    """The last index up to ``limit`` at which ``space`` follows a letter; 0 if there is none."""
    index = text.rfind(space, 0, limit + 1)
    while index > 0 and not text[index - 1].isalpha():
        index = text.rfind(space, 0, index)
    return max(index, 0)


def stripped(chunks: Iterable[str]) -> Iterator[str]:
    """The chunks of a document without white space at both ends of the document."""
    held, started = "", False
    for chunk in chunks:
        text = held + chunk if started else chunk.lstrip()
        body = text.rstrip()
        held = text[len(body) :]
        started = started or bool(body)
        yield body


def normalised(text: str) -> str:
    r"""``text`` with ``\n`` in place of ``\r\n`` and ``\r``."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def column_values(file: TextFile, column: str) -> Iterator[str]:
    """The texts in a column of a csv, tsv, jsonl or parquet file, in order. Nulls are left out.

    Raises:
        UserError: a format without columns, a missing column, a row that cannot be read, or a value that is not text.
    """
    match file.kind:
        case ".csv":
            return _csv_values(file, column, ",")
        case ".tsv":
            return _csv_values(file, column, "\t")
        case ".jsonl":
            return _jsonl_values(file, column)
        case ".parquet":
            return _parquet_values(file, column)
    raise UserError(f"{file.name} has no columns: documents='column' reads .csv, .tsv, .jsonl and .parquet files.")


def _csv_values(file: TextFile, column: str, delimiter: str) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)  # the default refuses documents of more than 131,072 characters
    rows = csv.reader((line + "\n" for line in file.lines()), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        _check_column(file.name, column, header)
        index = header.index(column)
        for row in filter(None, rows):  # a blank line is no row
            if len(row) != len(header):
                raise UserError(
                    f"{file.name}, line {rows.line_num}: {len(row)} fields where the header has {len(header)}; a field "
                    "with a separator in it must be quoted."
                )
            yield row[index]
    except csv.Error as error:
        raise UserError(
            f"{file.name}, line {rows.line_num}: {error}; a field that begins with a quote must be quoted, with its "
            "own quotes doubled, or use .jsonl."
        ) from None


def _jsonl_values(file: TextFile, column: str) -> Iterator[str]:
    for number, line in enumerate(file.lines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=partial(_row, f"{file.name}, line {number}", column))
        except UserError:
            raise
        except (ValueError, RecursionError) as error:  # thousands of digits or brackets are refused too
            raise UserError(f"{file.name}, line {number} is not JSON that can be read: {error}.") from None
        if not isinstance(row, dict) or column not in row:
            raise unknown_column(f"{file.name}, line {number}", column, row if isinstance(row, dict) else [])
        if row[column] is not None:
            yield as_text(row[column], column, f"{file.name}, line {number}")


def _parquet_values(file: TextFile, column: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise needs_hf_extra(file.name) from None
    try:
        table = parquet.ParquetFile(file.path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file.name} is not a parquet file: {error}") from None
    _check_column(file.name, column, table.schema_arrow.names)
    for batch in table.iter_batches(columns=[column]):
        yield from (as_text(v, column, file.name) for v in batch.column(0).to_pylist() if v is not None)


def _check_column(where: str, column: str, names: Sequence[str]) -> None:
    """Refuses a missing column, and a name that two columns have."""
    if column not in names:
        raise unknown_column(where, column, names)
    if names.count(column) > 1:
        raise UserError(f"{where} has {names.count(column)} columns named {column!r}: rename all but one.")


def _row(where: str, column: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON row as a dict. It refuses a second value for the column, which a dict would drop."""
    if sum(name == column for name, _ in pairs) > 1:
        _check_column(where, column, [name for name, _ in pairs])
    return dict(pairs)


def as_text(value: object, column: str, where: str) -> str:
    """``value`` if it is a str; if not, it raises a `UserError` that names the row."""
    if not isinstance(value, str):
        raise UserError(f"{where}: column {column!r} holds {value!r}, which is not text; choose a column of text.")
    return value


def unknown_column(where: str, column: str, known: Iterable[str]) -> UserError:
    """The error for a missing column. It lists the columns that exist."""
    return UserError(f"{where} has no column {column!r}; it has {', '.join(known) or 'none'}.")


def needs_hf_extra(what: str) -> UserError:
    """The error for what only the ``hf`` extra can read."""
    return UserError(f"{what} needs the hf extra: pip install -e '.[hf]'.")
