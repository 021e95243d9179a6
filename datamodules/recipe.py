"""All that decides the content of a token store: the text, how it is split, and the tokenizer."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from datamodules.errors import UserError
from datamodules.sources import Source
from datamodules.splitting import (
    WHOLE,
    Begun,
    Mark,
    Scan,
    Scanner,
    Split,
    SplitPiece,
    Stretch,
    documents_begun,
    read_stretch,
    scan,
    split_documents,
    split_text,
    text_begun,
)
from datamodules.tokenizers import (
    BPETokenizer,
    CharTokenizer,
    PatternName,
    Tokenizer,
    UnigramTokenizer,
    WordPieceTokenizer,
)
from datamodules.tokenizers.wordpiece import DEFAULT_SIZE
from datamodules.tokens import STORE_VERSION

Kind = Literal["char", "bpe", "unigram", "wordpiece"]


class Part(NamedTuple):
    """A part of a recipe's text: a stretch of one of its sources.

    Attributes:
        source: ``train`` for the source that is split, or the split that has a source of its own.
        stretch: the part of the source.
    """

    source: str
    stretch: Stretch


@dataclass(frozen=True)
class NewTokenizer:
    """A tokenizer that is to be trained on the text.

    Args:
        kind: ``char``, ``bpe``, ``unigram`` or ``wordpiece``.
        vocab_size: number of ids, the EOS token included; None for ``char``.
        train_on: the splits that it is trained on: ``train``, or ``all`` of them.
        eos: whether an EOS token ends each document; if not, documents are joined by newlines.
        unknown: as for `CharTokenizer`.
        pattern: the pattern that splits text into words, which no token of ``bpe`` or ``unigram`` crosses.
        prefix_space: whether each document is encoded with a space before it.
        uncased: whether ``wordpiece`` lower-cases text.
    """

    kind: Kind
    vocab_size: int | None = None
    train_on: Literal["train", "all"] = "train"
    eos: bool = True
    unknown: Literal["error", "unk"] = "error"
    pattern: PatternName = "cl100k"
    prefix_space: bool = False
    uncased: bool = True

    def may_result_in(self, tokenizer: Tokenizer) -> bool:
        """Whether ``tokenizer`` may come from this training, so that training again may be left out.

        Never for ``char``: training again gives the same alphabet, and is cheap.
        """
        classes = {"bpe": BPETokenizer, "unigram": UnigramTokenizer, "wordpiece": WordPieceTokenizer}
        trained_class = classes.get(self.kind)
        if trained_class is None or not isinstance(tokenizer, trained_class):
            return False
        if isinstance(tokenizer, WordPieceTokenizer):
            fits = tokenizer.vocab_size <= (self.vocab_size or DEFAULT_SIZE)
            return fits and tokenizer.uncased == self.uncased
        return tokenizer.vocab_size <= (self.vocab_size or 0)  # a small text gives fewer tokens than asked for


@dataclass(frozen=True)
class Recipe:
    """All that decides the content of a token store.

    Args:
        source: the text that is split.
        tokenizer: a tokenizer, or the options to train one.
        split: how the source is divided.
        val_source: text that is the validation split, instead of a part of ``source``.
        test_source: text that is the test split, likewise.
        joined: whether documents without EOS tokens are one stream, in which each but the first starts on a new line.
    """

    source: Source
    tokenizer: Tokenizer | NewTokenizer
    split: Split = field(default_factory=Split)
    val_source: Source | None = None
    test_source: Source | None = None
    joined: bool = True

    def __post_init__(self) -> None:
        """Refuses a validation or test file that is trained on too.

        The same files for both are allowed: whoever asks for that wants to see whether the model memorizes them.
        """
        train = self.source.paths
        for split, source in self._sources.items():
            shared = sorted(source.paths & train)
            if shared and source.paths != train:
                raise UserError(
                    f"the {split}_source has {shared[0]}, and so has the source that is trained on: leave it out of "
                    "one of them."
                )

    @classmethod
    def contiguous(
        cls,
        tokenizer: Tokenizer | NewTokenizer,
        sources: tuple[Source, Source | None, Source | None],
        fractions: tuple[float, float],
    ) -> "Recipe":
        """The recipe for text that is cut at character positions.

        Args:
            tokenizer: as for `Recipe`.
            sources: the text to split, and the validation and test texts or None.
            fractions: the shares of the characters that are validation and test, where they have no text of their own.
        """
        source, val, test = sources
        split = Split(val=0.0 if val else fractions[0], test=0.0 if test else fractions[1])
        return cls(source, tokenizer, split, val, test)

    @property
    def _sources(self) -> dict[str, Source]:
        """The source that is split, as ``train``, then the separate sources of ``val`` and ``test``."""
        sources = {"train": self.source, "val": self.val_source, "test": self.test_source}
        return {name: source for name, source in sources.items() if source is not None}

    @property
    def data_fingerprint(self) -> str:
        """SHA-256 of the text of all splits."""
        return self._first_reading[1]

    @cached_property
    def _first_reading(self) -> tuple[dict[str, list[object]], str]:
        """The files' stamps (see `Source.stamps`) and the fingerprint of the text; reads every source once.

        The stamps are taken before the reading, so that `unchanging` notices a change during it.
        """
        stamps = self._stamps()
        prints = {name: source.fingerprint() for name, source in self._sources.items()}
        return stamps, _sha256({"sources": prints, "split": asdict(self.split), "joined": self.joined})

    def _stamps(self) -> dict[str, list[object]]:
        return {name: source.stamps() for name, source in self._sources.items()}

    @property
    def changed(self) -> str | None:
        """The name of a text that was written to after its fingerprint was computed."""
        now = self._stamps()
        changed = next((name for name, before in self._first_reading[0].items() if now[name] != before), None)
        return None if changed is None else self._sources[changed].name

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Raises an error at the end of a block if a text was written to after its fingerprint was computed.

        The store in the making would not match its fingerprint. The error replaces one of the block, which is most
        likely a consequence.
        """
        try:
            yield
        finally:
            if (name := self.changed) is not None:
                raise UserError(f"the text of {name} was written to while it was prepared: start again.")

    @property
    def key(self) -> str:
        """Name of the store's folder: equal recipes have equal keys."""
        option = self.tokenizer
        tokenizer = asdict(option) if isinstance(option, NewTokenizer) else option.fingerprint
        return _sha256({"version": STORE_VERSION, "data": self.data_fingerprint, "tokenizer": tokenizer})[:24]

    @property
    def eos_tokens(self) -> bool:
        """Whether an EOS token ends each document."""
        tokenizer = self.tokenizer
        return tokenizer.eos if isinstance(tokenizer, NewTokenizer) else tokenizer.eos_id is not None

    @property
    def joins_by_newlines(self) -> bool:
        """Whether each document but the first of its split starts on a new line of one stream."""
        return self.joined and not self.eos_tokens

    @property
    def scanned(self) -> Scan:
        """Sizes of the source that is split."""
        return self.survey[0][0]

    @property
    def chars(self) -> int:
        """Characters of all sources."""
        return sum(scanned.chars for scanned in self.survey[0])

    @cached_property
    def survey(self) -> tuple[list[Scan], CharTokenizer | None]:
        """Sizes of all sources, the split one first, and the character tokenizer of all splits or None.

        A character tokenizer of all splits needs no split, so one reading gives both.
        """
        new, sources = self.tokenizer, self._sources.values()
        if not isinstance(new, NewTokenizer) or (new.kind, new.train_on) != ("char", "all"):
            return [scan(source, self.split) for source in sources], None
        scanners = [Scanner(source, self.split) for source in sources]
        tokenizer = CharTokenizer.from_texts(_texts_and_newline(scanners, new.eos), new.unknown, new.eos)
        return [scanner.result() for scanner in scanners], tokenizer

    def know(self, scans: list[Scan]) -> None:
        """Takes the sizes of all sources from another process, and does not read the text for them."""
        self.__dict__["survey"] = scans, None

    def parts(self, chars: int) -> list[Part]:
        """The text in parts of at most ``chars`` characters, at least one, which end where a reading may begin.

        A part is larger only where no reading may begin in between.
        """
        found = []
        for name, scanned in zip(self._sources, self.survey[0], strict=True):
            starts = _starts(scanned, chars)
            stops: list[int | None] = [*(mark.chars for mark in starts[1:]), None]
            found += [Part(name, Stretch(*bounds)) for bounds in zip(starts, stops, strict=True)]
        return found

    def pieces(self, part: Part | None = None) -> Iterator[SplitPiece]:
        """The pieces of all splits, or those of a part of the text; those of a document follow one another."""
        pieces = self._all_pieces() if part is None else self._pieces_of(part)
        if not self.joins_by_newlines:
            return pieces
        begun = Begun() if part is None else self.begun(part)
        return _joined(pieces, {split: split != begun.inside for split in begun.splits})

    def begun(self, part: Part) -> Begun:
        """What of the splits lies before a part."""
        begun, start = text_begun if self.split.by == "text" else documents_begun, part.stretch.start
        if part.source == "train":
            return begun(self.split, self.scanned, start)
        keep = self.scanned.keep
        end = Mark(self.scanned.chars, self.scanned.documents if keep is None else len(keep))
        splits = begun(self.split, self.scanned, end).splits | ({part.source} if start.chars else set())
        return Begun(splits, part.source if start.inside else None)

    def _all_pieces(self) -> Iterator[SplitPiece]:
        for name in self._sources:
            yield from self._pieces_of(Part(name, WHOLE))

    def _pieces_of(self, part: Part) -> Iterator[SplitPiece]:
        source = self._sources[part.source]
        if part.source == "train":
            cut = split_documents if self.split.by == "documents" else split_text
            yield from cut(source, self.split, self.scanned, part.stretch)
        else:
            yield from (SplitPiece(part.source, *piece) for piece in read_stretch(source, part.stretch))


def _starts(scanned: Scan, chars: int) -> list[Mark]:
    """The marks at which the parts of a source begin."""
    starts, last = [Mark()], Mark()
    for mark in (*scanned.marks[1:], Mark(scanned.chars)):
        if mark.chars - starts[-1].chars > chars and last != starts[-1]:
            starts.append(last)
        last = mark
    return starts


def _texts_and_newline(scanners: list[Scanner], eos: bool) -> Iterator[str]:
    """The texts of all sources, and the newline that joins documents without EOS tokens, if there are several."""
    for scanner in scanners:
        yield from scanner.texts()
    if not eos and any(scanner.documents > 1 for scanner in scanners):
        yield "\n"


def _joined(pieces: Iterable[SplitPiece], ended: dict[str, bool]) -> Iterator[SplitPiece]:
    """The pieces with a newline before each document but the first of its split.

    Args:
        pieces: the pieces.
        ended: the splits that have text before, and whether a document of theirs ends there.
    """
    for piece in pieces:
        prefix = "\n" if ended.get(piece.split) else ""
        ended[piece.split] = piece.end
        yield piece._replace(text=prefix + piece.text)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
