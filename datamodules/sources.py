"""Sources of text: the embedded corpus, local files, named downloads, the Hugging Face hub.

A source is a sequence of documents, the same on every reading. `Source.pieces` streams them in bounded memory.
"""

import glob
import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

from datamodules import embedded
from datamodules.downloads import DOWNLOADS, fetch
from datamodules.errors import UserError
from datamodules.file_pieces import FilePieces, file_chunks, file_values
from datamodules.files import cache_folder, expanded
from datamodules.fingerprints import remembered
from datamodules.reading import CHUNK, Cursor, Piece, TextFile, cut
from datamodules.synthetic import headlines

Documents = Literal["file", "line", "column"]

#: Suffixes of the files that are read from a folder. A glob reads files of any suffix.
TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst"})
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})

#: The sources that have a name, besides `hf:OWNER/NAME@REVISION`.
NAMES = ("embedded", "embedded_headlines", *DOWNLOADS, "hacker_news")
_HEADLINES = 10_000


class Source(ABC):
    r"""Documents of normalised text (``\n`` ends lines), in a fixed order.

    Attributes:
        name: the name of the source in messages.
    """

    name: str

    @property
    def paths(self) -> frozenset[Path]:
        """The files that the source reads, if it reads files (see `TextFile.resolved_path`)."""
        return frozenset()

    def stamps(self) -> list[object]:
        """Size and time of change of each file. They differ if a file was written to in between."""
        return []

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the data and of the options for reading it: equal only for equal documents."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Whole documents, without empty ones. It raises `UserError` if all are empty."""

    def pieces(self, size: int = CHUNK) -> Iterator[Piece]:
        """The documents in pieces of at most ``size`` characters, cut between tokens (see `reading.cut`)."""
        for document in self.documents():
            yield from cut([document], size)

    def read(self, size: int, cursor: Cursor) -> Iterator[Piece]:
        """The pieces that follow the cursor, which stands behind each piece when that is yielded."""
        for piece in islice(self.pieces(size), cursor.skip, None):
            cursor.skip += 1
            yield piece


@dataclass(frozen=True)
class FileSource(Source):
    """Text files; a document is a file, a line, or a row's text in one column."""

    name: str
    files: tuple[TextFile, ...]
    kind: Documents = "file"
    column: str | None = None
    strip: bool = False

    @cached_property
    def paths(self) -> frozenset[Path]:
        """See `Source`."""
        return frozenset(file.resolved_path for file in self.files if file.resolved_path)

    def stamps(self) -> list[object]:
        """See `Source`."""
        return [file.stamp() for file in self.files]

    def fingerprint(self) -> str:
        """See `Source`. It depends on the order of the files, but of their names only on the kind of a table."""
        tables = [file.kind for file in self.files] if self.kind == "column" else []
        digest = hashlib.sha256(json.dumps([self.kind, self.column, self.strip, *tables]).encode())
        for file in self.files:
            digest.update(bytes.fromhex(remembered([file], "sha256", file.sha256)))
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """See `Source`."""
        if self.kind == "file":
            return self._not_empty("".join(file_chunks(file, CHUNK, self.strip)) for file in self.files)
        return self._not_empty(value for file in self.files for value in file_values(file, self.column, self.strip))

    def pieces(self, size: int = CHUNK) -> Iterator[Piece]:
        """See `Source`. A line or row is held whole, a file never."""
        return self.read(size, Cursor())

    def read(self, size: int, cursor: Cursor) -> Iterator[Piece]:
        """See `Source` and `FilePieces`."""
        has_text = cursor != Cursor()
        for number in range(cursor.file, len(self.files)):
            if number > cursor.file:
                cursor.file, cursor.offset, cursor.skip = number, 0, 0
            for piece in FilePieces(self.files[number], cursor, self.strip).pieces(self.kind, self.column, size):
                has_text = True
                yield piece
        if not has_text:
            raise self._no_text()

    def _not_empty(self, texts: Iterable[str]) -> Iterator[str]:
        has_text = False
        for text in texts:
            if text:
                has_text = True
                yield text
        if not has_text:
            raise self._no_text()

    def _no_text(self) -> UserError:
        return UserError(f"the source {self.name} has no text: every {self.kind} in it is empty; give another.")


def open_source(
    spec: str | list[str],
    *,
    documents: Documents = "file",
    column: str | None = None,
    strip: bool = False,
    cache_dir: str | Path | None = None,
) -> Source:
    """The source of a name or path. A download that is not in the cache is fetched now; nothing else is read yet.

    Args:
        spec: a file, folder or glob (``.gz`` too), a name, or a list of these, which are read one after the other.
            Names are ``embedded`` (Python's documentation), ``embedded_headlines`` (10,000 synthetic ones, one in each
            line, or N with ``embedded_headlines:N``), ``tiny_shakespeare``, ``taylor_swift``, ``moby_dick``,
            ``hacker_news`` (titles) and ``hf:OWNER/NAME@REVISION`` or ``hf:OWNER/NAME/CONFIG/SPLIT@REVISION``; the last
            two not in a list. A folder means the
            .txt, .text, .md and .rst files in it and below (.csv, .tsv, .jsonl and .parquet for columns), without
            hidden ones.
        documents: what a document is: a whole ``file``, a ``line``, or a row's value in ``column``.
        column: the column to read, for ``documents="column"``.
        strip: whether to remove white space at both ends of each document.
        cache_dir: folder of the downloads; None is ``$XDG_CACHE_HOME/lit_gpt`` or ``~/.cache/lit_gpt``.

    Raises:
        UserError: a file is missing or empty, or a column is given without ``documents="column"``.
    """
    if (documents == "column") != (column is not None):
        raise UserError(f"documents={documents!r} with column={column!r}: give a column with documents='column', only.")
    specs = [spec] if isinstance(spec, str) else spec
    folder = cache_folder(cache_dir) / "downloads"
    if len(specs) == 1 and _on_hub(specs[0]):
        return _open_hub(specs[0], column, strip, folder)
    if not all(specs) or not specs:
        raise UserError("a source is empty: give a file, folder, glob or name, or leave it out.")
    files = tuple(file for each in specs for file in _files(each, documents, folder))
    _check_no_repeats(files)
    return FileSource(", ".join(specs), files, documents, column, strip)


def is_path(spec: str) -> bool:
    """Whether ``spec`` is a file, folder or glob, and not the name of a source."""
    return not _on_hub(spec) and spec.partition(":")[0] not in NAMES


def _on_hub(spec: str) -> bool:
    return spec == "hacker_news" or spec.startswith("hf:")


def _open_hub(spec: str, column: str | None, strip: bool, folder: Path) -> Source:
    from datamodules.hub import HACKER_NEWS, open_hub  # it imports this module

    return (
        open_hub(HACKER_NEWS, column or "title", strip, folder)
        if spec == "hacker_news"
        else open_hub(spec, column, strip, folder)
    )


def _files(spec: str, documents: Documents, folder: Path) -> list[TextFile]:
    """The files of one name or path, in sorted order."""
    if _on_hub(spec):
        raise UserError(f"{spec} stands alone: give it as the only source, not in a list.")
    name, _, count = spec.partition(":")
    if name == "embedded_headlines":
        return [_headlines(spec, count or str(_HEADLINES))]
    if spec == "embedded":
        return [TextFile("embedded.txt", content=embedded.corpus().encode())]
    if spec in DOWNLOADS:
        return _with_text([fetch(spec, DOWNLOADS[spec], folder)])
    path = expanded(spec)
    if not _can_be_a_path(path):
        raise UserError(f"the source {spec[:40]!r}... is no path: give the name of a file, not its text.")
    if path.is_dir():
        return _files_of_folder(path, TABLE_SUFFIXES if documents == "column" else TEXT_SUFFIXES)
    if path.is_file():
        return _with_text([path])
    matches = [match for match in map(Path, sorted(glob.glob(str(path), recursive=True))) if match.is_file()]
    if not matches:
        raise UserError(f"there is no file, folder or source {spec!r}; the names are {', '.join(NAMES)}.")
    return _with_text(matches)


def _can_be_a_path(path: Path) -> bool:
    try:
        path.exists()
    except OSError:  # too long
        return False
    return True


def _check_no_repeats(files: Sequence[TextFile]) -> None:
    """Refuses a text that is given twice: it could be trained on and validated on."""
    counts = Counter(file.resolved_path for file in files if file.resolved_path)
    twice = next((path for path, count in counts.items() if count > 1), None)
    if twice is not None:
        raise UserError(f"the source has {twice.name} twice (as itself, by a link, or with .gz): give each text once.")


def _headlines(spec: str, count: str) -> TextFile:
    if not count.isdecimal():
        raise UserError(f"{spec}: the number of synthetic headlines must be a whole number, not {count!r}.")
    return TextFile("synthetic_headlines.txt", content="\n".join(headlines(int(count))).encode())


def _files_of_folder(folder: Path, suffixes: frozenset[str]) -> list[TextFile]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    texts = [path for path in paths if TextFile(path.name).kind in suffixes]
    if not texts:
        raise UserError(f"the folder {folder} has no {', '.join(sorted(suffixes))} files; give a glob for other names.")
    return _with_text(texts)


def _hidden(path: Path) -> bool:
    """Whether a part of the path is a name such as .git or .ipynb_checkpoints, which has copies of texts."""
    return any(part.startswith(".") for part in path.parts)


def _with_text(paths: Sequence[Path]) -> list[TextFile]:
    """The files that are not empty; at least one must have text."""
    files = [TextFile(str(path), path) for path in paths if path.stat().st_size]
    if not files:
        raise UserError(f"the file {paths[0]} is empty; give one with text.")
    return files
