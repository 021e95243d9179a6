"""Text to token store: the first process prepares the store, all others wait for it and open it.

The text is streamed and never held whole: 43 MB of text need less than 15 MB of memory more than 4 MB of text. It is
read up to four times: for its fingerprint, for its size, to train a tokenizer, and to encode it.

A store is written into the folder ``KEY.part`` and renamed to ``KEY`` when it is complete. A process that is killed
leaves a ``.part`` folder, which the next one removes. A store whose files are damaged (see `integrity`) is prepared
again. This module and its workers import no torch, which would take 350 MB in each of them.
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
from datamodules.text_facts import store_text_facts
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
#: Characters that are encoded at a time. A worker process gets them in one message: a message for each headline of 50
#: characters would take longer than encoding it.
_JOB_CHARS = 1 << 20


@dataclass(frozen=True)
class NewTokenizer:
    """A tokenizer that is to be trained on the text.

    Args:
        kind: ``char``, ``bpe`` or ``unigram``.
        vocab_size: number of ids, the EOS token included; None for ``char``.
        train_on: the splits that it is trained on: ``train``, or ``all`` of them.
        eos: whether an EOS token ends each document; if not, documents are joined by newlines.
        unknown: as for `CharTokenizer`.
        pattern: the pattern that splits text into words, which no token of ``bpe`` or ``unigram`` crosses.
        prefix_space: whether each document is encoded with a space before it.
    """

    kind: Kind
    vocab_size: int | None = None
    train_on: Literal["train", "all"] = "train"
    eos: bool = True
    unknown: Literal["error", "unk"] = "error"
    pattern: PatternName = "cl100k"
    prefix_space: bool = False

    def may_result_in(self, tokenizer: Tokenizer) -> bool:
        """Whether ``tokenizer`` may come from this training, so that training again may be left out.

        Never for ``char``: training again gives the same alphabet, and is cheap.
        """
        trained_class = {"bpe": BPETokenizer, "unigram": UnigramTokenizer}.get(self.kind)
        if trained_class is None or not isinstance(tokenizer, trained_class):
            return False
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

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Raises an error at the end of a block if a text was written to after its fingerprint was computed.

        The store in the making would not match its fingerprint. The error replaces one of the block, which is most
        likely a consequence.
        """
        try:
            yield
        finally:
            now = self._stamps()
            changed = next((name for name, before in self._first_reading[0].items() if now[name] != before), None)
            if changed is not None:
                name = self._sources[changed].name
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

    def pieces(self) -> Iterator[SplitPiece]:
        """The pieces of all splits; those of a document follow one another."""
        pieces = self._split_pieces()
        return _joined(pieces) if self.joined and not self.eos_tokens else pieces

    def _split_pieces(self) -> Iterator[SplitPiece]:
        cut = split_documents if self.split.by == "documents" else split_text
        yield from cut(self.source, self.split, self.scanned)
        for name, source in self._sources.items():
            if name != "train":
                yield from (SplitPiece(name, *piece) for piece in source.pieces(PIECE))


def store_folder(recipe: Recipe, cache_dir: str | Path | None = None) -> Path:
    """The folder of the recipe's store, prepared or not."""
    return cache_folder(cache_dir) / recipe.key


def prepare(recipe: Recipe, cache_dir: str | Path | None = None, verify: bool = False) -> Path:
    """The folder of the recipe's store, which is prepared now if it is missing or damaged.

    Several processes may call it at once, also after one of them was killed. A line on stderr names the damage.

    Args:
        recipe: what goes into the store.
        cache_dir: parent of all stores; None for `files.default_cache_dir`.
        verify: whether a store that exists is compared with its checksums as a whole, and not only the files whose
            size or time of change differ.

    Raises:
        UserError: the source or the tokenizer refuses the text, or the cache cannot be written.
    """
    folder = store_folder(recipe, cache_dir)
    if is_whole(folder, verify):
        return folder
    with _writable(folder.parent), locked(folder.with_suffix(".lock")):
        # Under the lock, again: another process may have prepared the store while this one waited.
        fault = damage(folder, verify) if folder.exists() else None
        if fault is not None:
            print(f"The tokens in {folder} are damaged ({fault}): preparing them anew.", file=sys.stderr, flush=True)
        if fault is not None or not folder.exists():
            _build_and_rename(recipe, folder)
    return folder


def _build_and_rename(recipe: Recipe, folder: Path) -> None:
    """Builds the store in the ``.part`` folder, reads it back to compare checksums, and renames it."""
    part = folder.with_suffix(".part")
    _remove(part, folder)
    try:
        with recipe.unchanging():
            _build(recipe, part)
        if (fault := damage(part, verify=True)) is not None:
            raise UserError(
                f"the disk of the cache {folder.parent} does not keep what is written to it ({fault}): set cache_dir "
                "to a folder on another disk."
            )
        store_text_facts(part, load_tokenizer_of(part))  # after the comparison, because it reads the tokens
        part.rename(folder)
    finally:
        _remove(part)


def load_tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer that a store was written with."""
    return load_tokenizer(folder / TOKENIZER, check=False)  # it has encoded the store's text


def _build(recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True)
    option = recipe.tokenizer
    tokenizer = _train(option, recipe) if isinstance(option, NewTokenizer) else option
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
    """For each piece its split, whether a document ends with it, and its ids."""
    waiting: list[list[tuple[str, bool]]] = []  # split and end of each piece of the jobs whose ids have not come yet

    def jobs() -> Iterator[Job]:
        """The texts to encode, each with whether it begins a document. A worker needs to know nothing else."""
        begins = True
        for group in _grouped(recipe.pieces()):
            waiting.append([(piece.split, piece.end) for piece in group])
            job = []
            for piece in group:
                job.append((piece.text, begins))
                begins = piece.end
            yield job

    with progress("Encoding", recipe.chars) as advance:
        for job in encode_all(tokenizer, jobs(), useful_workers(tokenizer, recipe.chars)):
            for (name, end), encoded in zip(waiting.pop(0), job, strict=True):
                advance(encoded.chars)
                yield name, end, encoded


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


def _train(new: NewTokenizer, recipe: Recipe) -> Tokenizer:
    if recipe.survey[1] is not None:
        return recipe.survey[1]
    texts = (piece.text for piece in recipe.pieces() if new.train_on == "all" or piece.split == "train")
    if new.kind == "char":
        return CharTokenizer.from_texts(texts, new.unknown, new.eos)
    size, prefix = new.vocab_size, new.prefix_space
    return train_tokenizer(new.kind, texts, size, pattern=new.pattern, eos=new.eos, prefix_space=prefix)


def _texts_and_newline(scanners: list[Scanner], eos: bool) -> Iterator[str]:
    """The texts of all sources, and the newline that joins documents without EOS tokens, if there are several."""
    for scanner in scanners:
        yield from scanner.texts()
    if not eos and any(scanner.documents > 1 for scanner in scanners):
        yield "\n"


def _joined(pieces: Iterable[SplitPiece]) -> Iterator[SplitPiece]:
    """The pieces with a newline before each document but the first of its split."""
    ended: dict[str, bool] = {}
    for piece in pieces:
        prefix = "\n" if ended.get(piece.split) else ""
        ended[piece.split] = piece.end
        yield piece._replace(text=prefix + piece.text)


@contextmanager
def _writable(cache_dir: Path) -> Iterator[None]:
    """Turns an error of the file system into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"the disk is full: no room for the tokens in {cache_dir}; free some or set cache_dir."
            ) from None
        vanished = error.errno == errno.ENOENT and str(error.filename).startswith(str(cache_dir))
        if is_refusal(error) or vanished or error.errno == errno.EEXIST:
            raise UserError(f"the cache {cache_dir} cannot be written ({error.strerror}); set cache_dir.") from None
        raise


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
