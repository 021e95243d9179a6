"""The beginning of a source, for trials on a part of a large text."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datamodules.fingerprints import remembered
from datamodules.reading import CHUNK, Piece
from datamodules.sources import FileSource, Source


@dataclass(frozen=True)
class FirstBytes(Source):
    """The documents of a source up to a number of bytes. The one that crosses it is cut between two characters.

    Nothing is read that lies more than a piece behind the cut, for the fingerprint neither.

    Args:
        name: the name of the source in messages.
        source: what is cut.
        limit: number of bytes of UTF-8, at least 1.
    """

    name: str
    source: Source
    limit: int

    @property
    def paths(self) -> frozenset[Path]:
        """See `Source`."""
        return self.source.paths

    def stamps(self) -> list[object]:
        """See `Source`."""
        return self.source.stamps()

    def fingerprint(self) -> str:
        """See `Source`. Of files it is of the text, as reading a whole file of many GB for it would take minutes."""
        source = self.source
        if not isinstance(source, FileSource):  # of the hub, whose fingerprint needs no reading
            return hashlib.sha256(json.dumps([source.fingerprint(), self.limit]).encode()).hexdigest()
        return remembered(source.files, [self.limit, source.kind, source.column, source.strip], self._computed)

    def _computed(self) -> str:
        digest = hashlib.sha256(b"first bytes")
        for piece in self.pieces():
            digest.update(json.dumps(piece).encode())
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """See `Source`."""
        parts: list[str] = []
        for text, end in self.pieces():
            parts.append(text)
            if end:
                yield "".join(parts)
                parts = []

    def pieces(self, size: int = CHUNK) -> Iterator[Piece]:
        """See `Source`."""
        left, began = self.limit, False
        for piece in self.source.pieces(size):
            encoded = piece.text.encode("utf-8", "surrogatepass")  # the tokenizer refuses a surrogate with a UserError
            if len(encoded) >= left:
                text = encoded[:left].decode("utf-8", "ignore")
                if text or began:  # a document is never empty
                    yield Piece(text, True)
                return
            left, began = left - len(encoded), not piece.end
            yield piece
