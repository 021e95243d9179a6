"""The pieces of one file from a cursor on, so that a large text can be read in shares by several processes."""

from collections.abc import Iterator
from itertools import islice

from datamodules.reading import Cursor, Piece, TextFile, column_values, cut, normalised, stripped


def file_chunks(file: TextFile, size: int, strip: bool) -> Iterator[str]:
    """The text of a file that is one document."""
    return stripped(file.chunks(size)) if strip else file.chunks(size)


def file_values(file: TextFile, column: str | None, strip: bool) -> Iterator[str]:
    """The documents of a file with many: its lines, or the values of a column."""
    values = file.lines() if column is None else map(normalised, column_values(file, column))
    return (value.strip() for value in values) if strip else values


class FilePieces:
    """Reads the pieces of a file from a cursor on, and moves the cursor along.

    Plain text is read from the cursor's byte on. What must be read from its beginning (a gzipped file, a table) or has
    line ends that are replaced, so that bytes cannot be counted, is read again and dropped up to the cursor.

    Args:
        file: the file.
        cursor: where the reading begins; it stands behind each piece when that is yielded.
        strip: whether documents lose the white space at both ends.
    """

    def __init__(self, file: TextFile, cursor: Cursor, strip: bool) -> None:
        self.file, self.cursor, self.strip = file, cursor, strip
        self._exact = not file.is_gz  # whether the next bytes of the file are known
        self._mark = 0 if cursor.offset or file.is_gz else file.mark_bytes()

    def pieces(self, kind: str, column: str | None, size: int) -> Iterator[Piece]:
        """The pieces of at most ``size`` characters, without empty ones."""
        skip, self.cursor.skip = self.cursor.skip, 0
        found = {"file": self._of_text, "line": self._of_lines}.get(kind)
        return islice(self._of_rows(column, size) if found is None else found(size), skip, None)

    def _of_text(self, size: int) -> Iterator[Piece]:
        start = self.cursor.offset
        if self.strip:
            self._lose_count()
        chunks = self.file.chunks(size, start, self._lose_count)
        for piece in cut(stripped(chunks) if self.strip else chunks, size):
            if piece.text:
                self.cursor.skip += 1
                self._advance(len(piece.text.encode()))
                yield piece

    def _of_lines(self, size: int) -> Iterator[Piece]:
        for line in self.file.lines(self.cursor.offset, self._lose_count):
            text = line.strip() if self.strip else line
            for piece in cut([text], size) if text else ():
                self.cursor.skip += 1
                if piece.end:
                    self._advance(len(line.encode()) + 1)
                yield piece
            if not text and not self.cursor.skip:
                self._advance(len(line.encode()) + 1)

    def _of_rows(self, column: str | None, size: int) -> Iterator[Piece]:
        for value in file_values(self.file, column, self.strip):
            for piece in cut([value], size) if value else ():
                self.cursor.skip += 1
                yield piece

    def _advance(self, count: int) -> None:
        """Moves the cursor by a number of bytes of text, if these are the bytes of the file."""
        if self._exact:
            self.cursor.offset += count + self._mark
            self.cursor.skip = self._mark = 0

    def _lose_count(self) -> None:
        self._exact = False
