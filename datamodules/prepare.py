"""Text to token store, once: whoever asks first prepares, everyone else waits and opens what is there.

The text is streamed, twice where a split must know how long it is, and is never held whole. A store is written
into a folder beside its place and renamed when it is complete: a process that is killed leaves a folder that the next
one removes. A store whose files are no longer what was written (see `integrity`) is prepared anew. Imports no torch.
"""

import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from datamodules.encoding import Encoded, Job, encode_all, useful_workers
from datamodules.errors import FULL, UserError, is_refusal
from datamodules.files import cache_folder, locked
from datamodules.integrity import damage, is_whole, write_meta
from datamodules.progress import progress
from datamodules.sources import Source
from datamodules.splitting import PIECE, Scan, Scanner, Split, SplitPiece, scan, split_documents, split_text
from datamodules.tokenizers import (
    BPETokenizer,
    CharTokenizer,
    PatternName,
    Tokenizer,
    UnigramTokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from datamodules.tokens import STORE_VERSION, TOKENIZER, TokenWriter, token_dtype

Kind = Literal["char", "bpe", "unigram"]
_JOB_CHARS = 1 << 20


@dataclass(frozen=True)
class NewTokenizer:
    """A tokenizer that is made from the text itself.

    Args:
        kind: ``char``, ``bpe`` or ``unigram``.
        vocab_size: number of ids, the end mark included; None for characters.
        train_on: the splits it sees: ``train``, or ``all`` of them.
        eos: whether documents end with a mark; if not, they are joined by newlines.
        unknown: what a character outside a character vocabulary does.
        pattern: where text is split before a vocabulary of ``bpe`` or ``unigram`` is learned.
        prefix_space: whether each document has a space before it.
    """

    kind: Kind
    vocab_size: int | None = None
    train_on: Literal["train", "all"] = "train"
    eos: bool = True
    unknown: Literal["error", "unk"] = "error"
    pattern: PatternName = "cl100k"
    prefix_space: bool = False

    def may_give(self, tokenizer: Tokenizer) -> bool:
        """Whether training may have given ``tokenizer``; never an alphabet, which a text gives in one way only."""
        made = {"bpe": BPETokenizer, "unigram": UnigramTokenizer}.get(self.kind)
        return made is not None and isinstance(tokenizer, made) and tokenizer.vocab_size <= (self.vocab_size or 0)


@dataclass(frozen=True)
class Recipe:
    """All that decides what a store contains."""

    source: Source
    tokenizer: Tokenizer | NewTokenizer
    split: Split = field(default_factory=Split)
    val_source: Source | None = None
    test_source: Source | None = None
    joined: bool = True  # documents without end marks are one stream, each after the first on a new line

    def __post_init__(self) -> None:
        """Refuses to judge by a file that is also trained on, unless it is all that is: then memory is asked for."""
        train = self.source.places
        for split, source in self._sources.items():
            shared = sorted(source.places & train)
            if shared and source.places != train:
                raise UserError(
                    f"The {split}_source has {shared[0]}, and so has the source that is trained on: leave it out of "
                    "one of them."
                )

    @classmethod
    def contiguous(
        cls,
        tokenizer: Tokenizer | NewTokenizer,
        sources: tuple[Source, Source | None, Source | None],
        fractions: tuple[float, float],
    ) -> "Recipe":
        """Text cut at character positions; val and test are fractions of the source, or sources of their own."""
        source, val, test = sources
        split = Split(val=0.0 if val else fractions[0], test=0.0 if test else fractions[1])
        return cls(source, tokenizer, split, val, test)

    @property
    def _sources(self) -> dict[str, Source]:
        """The source that is split, then those that are a split of their own."""
        given = {"train": self.source, "val": self.val_source, "test": self.test_source}
        return {name: source for name, source in given.items() if source is not None}

    @property
    def data_fingerprint(self) -> str:
        """SHA-256 of the text of all splits."""
        return self._first_reading[1]

    @cached_property
    def _first_reading(self) -> tuple[dict[str, list[object]], str]:
        """What the files were like before it (see `Source.stamps`), and the fingerprint; reads every source once."""
        stamps = self._stamps()
        prints = {name: source.fingerprint() for name, source in self._sources.items()}
        return stamps, _sha256({"sources": prints, "split": asdict(self.split), "joined": self.joined})

    def _stamps(self) -> dict[str, list[object]]:
        return {name: source.stamps() for name, source in self._sources.items()}

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Refuses what has been made, and explains what has failed, where text was written to since its fingerprint."""
        try:
            yield
        finally:
            now = self._stamps()
            changed = next((name for name, before in self._first_reading[0].items() if now[name] != before), None)
            if changed is not None:
                name = self._sources[changed].name
                raise UserError(f"The text of {name} was written to while it was prepared: start again.")

    @property
    def key(self) -> str:
        """Name of the store's folder: equal recipes have equal keys."""
        made = self.tokenizer
        tokenizer = asdict(made) if isinstance(made, NewTokenizer) else made.fingerprint
        return _sha256({"version": STORE_VERSION, "data": self.data_fingerprint, "tokenizer": tokenizer})[:24]

    @property
    def eos_tokens(self) -> bool:
        """Whether documents end with a mark."""
        made = self.tokenizer
        return made.eos if isinstance(made, NewTokenizer) else made.eos_id is not None

    @property
    def scanned(self) -> Scan:
        """Sizes of the source, which a split needs."""
        return self.survey[0][0]

    @property
    def chars(self) -> int:
        """Characters of all sources."""
        return sum(one.chars for one in self.survey[0])

    @cached_property
    def survey(self) -> tuple[list[Scan], CharTokenizer | None]:
        """Sizes of all sources, the split one first, and the character vocabulary of all splits if that is wanted."""
        made, sources = self.tokenizer, self._sources.values()
        if not isinstance(made, NewTokenizer) or (made.kind, made.train_on) != ("char", "all"):
            return [scan(source, self.split) for source in sources], None
        scanners = [Scanner(source, self.split) for source in sources]
        vocabulary = CharTokenizer.from_texts(_texts_and_joints(scanners, made.eos), made.unknown, made.eos)
        return [scanner.result() for scanner in scanners], vocabulary

    def pieces(self) -> Iterator[SplitPiece]:
        """Every piece of every split, each document's pieces together and in order."""
        pieces = self._split_pieces()
        return _joined(pieces) if self.joined and not self.eos_tokens else pieces

    def _split_pieces(self) -> Iterator[SplitPiece]:
        cut = split_documents if self.split.by == "documents" else split_text
        yield from cut(self.source, self.split, self.scanned)
        for name, source in self._sources.items():
            if name != "train":
                yield from (SplitPiece(name, *piece) for piece in source.pieces(PIECE))


def store_folder(recipe: Recipe, cache_dir: str | Path | None = None) -> Path:
    """Where the recipe's store is, or would be."""
    return cache_folder(cache_dir) / recipe.key


def prepare(recipe: Recipe, cache_dir: str | Path | None = None, verify: bool = False) -> Path:
    """The folder of the recipe's store, prepared now if it is not there whole; a line on stderr says what was damaged.

    Safe to call from several processes at once, and after one of them was killed.

    Args:
        recipe: what goes into the store.
        cache_dir: parent of all stores; None for `files.default_cache_dir`.
        verify: whether all of a store that is there is read, and not only what looks touched.

    Raises:
        UserError: what the source or the tokenizer refuses, or a cache that cannot be written.
    """
    folder = store_folder(recipe, cache_dir)
    if is_whole(folder, verify):
        return folder
    with _writable(folder.parent), locked(folder.with_suffix(".lock")):
        fault = damage(folder, verify) if folder.exists() else None
        if fault is not None:
            print(f"The tokens in {folder} are damaged ({fault}): preparing them anew.", file=sys.stderr, flush=True)
        if fault is not None or not folder.exists():  # another process may have prepared them meanwhile
            _put_in_place(recipe, folder)
    return folder


def _put_in_place(recipe: Recipe, folder: Path) -> None:
    """Builds the store beside its place, compares it with what was to be written, and renames it."""
    part = folder.with_suffix(".part")
    _remove(part, folder)
    try:
        with recipe.unchanging():
            _build(recipe, part)
        if (fault := damage(part, wholly=True)) is not None:
            raise UserError(
                f"The disk of the cache {folder.parent} does not keep what is written to it ({fault}): set cache_dir "
                "to another one."
            )
        part.rename(folder)
    finally:
        _remove(part)


def load_tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer that a store was written with."""
    return load_tokenizer(folder / TOKENIZER, tried=False)  # it has encoded the store's text


def _build(recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True)
    made = recipe.tokenizer
    tokenizer = _train(made, recipe) if isinstance(made, NewTokenizer) else made
    save_tokenizer(tokenizer, folder / TOKENIZER)
    dtype = token_dtype(tokenizer.vocab_size)
    writers: dict[str, TokenWriter] = {}
    try:
        for name, end, encoded in _encoded(recipe, tokenizer):
            if name not in writers:
                writers[name] = TokenWriter(folder, name, dtype, tokenizer.eos_id)
            writers[name].add(*encoded, end)
        prints = {"data": recipe.data_fingerprint, "tokenizer": tokenizer.fingerprint}
        facts = {"eos_id": tokenizer.eos_id, "source": recipe.source.name, "fingerprints": prints}
        write_meta(folder, writers, dtype=dtype.name, **facts)
    finally:
        for writer in writers.values():
            with suppress(OSError):
                writer.abandon()


def _encoded(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[tuple[str, bool, Encoded]]:
    """Split, whether a document ends, and ids, piece by piece."""
    heads: list[list[tuple[str, bool]]] = []  # of the jobs under way

    def jobs() -> Iterator[Job]:
        """Texts and whether each starts a document; what `heads` remembers of them comes back with their ids."""
        start = True
        for group in _grouped(recipe.pieces()):
            heads.append([(piece.split, piece.end) for piece in group])
            starts = [start, *(piece.end for piece in group)]
            start = starts.pop()
            yield [(piece.text, first) for piece, first in zip(group, starts, strict=True)]

    with progress("Encoding", recipe.chars) as advance:
        for job in encode_all(tokenizer, jobs(), useful_workers(tokenizer, recipe.chars)):
            for (name, end), encoded in zip(heads.pop(0), job, strict=True):
                advance(encoded.chars)
                yield name, end, encoded


def _grouped(pieces: Iterable[SplitPiece]) -> Iterator[list[SplitPiece]]:
    """Pieces in lists of about a million characters: one headline a message would cost more than its encoding."""
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


def _train(made: NewTokenizer, recipe: Recipe) -> Tokenizer:
    if recipe.survey[1] is not None:
        return recipe.survey[1]
    texts = (piece.text for piece in recipe.pieces() if made.train_on == "all" or piece.split == "train")
    if made.kind == "char":
        return CharTokenizer.from_texts(texts, made.unknown, made.eos)
    size, prefix = made.vocab_size, made.prefix_space
    return train_tokenizer(made.kind, texts, size, pattern=made.pattern, eos=made.eos, prefix_space=prefix)


def _texts_and_joints(scanners: list[Scanner], eos: bool) -> Iterator[str]:
    for scanner in scanners:
        yield from scanner.texts()
    if not eos and any(scanner.documents > 1 for scanner in scanners):
        yield "\n"


def _joined(pieces: Iterable[SplitPiece]) -> Iterator[SplitPiece]:
    """Every document after the first of its split starts with a newline."""
    ended: dict[str, bool] = {}
    for piece in pieces:
        prefix = "\n" if ended.get(piece.split) else ""
        ended[piece.split] = piece.end
        yield piece._replace(text=prefix + piece.text)


@contextmanager
def _writable(cache_dir: Path) -> Iterator[None]:
    """Turns what a disk can refuse into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"The disk is full: no room for the tokens in {cache_dir}; free some or set cache_dir."
            ) from None
        if is_refusal(error) or error.errno == errno.EEXIST:
            raise UserError(f"The cache {cache_dir} cannot be written ({error.strerror}); set cache_dir.") from None
        raise


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
