"""Text to token store: the first process prepares the store, all others wait for it and open it.

The text is streamed and never held whole: 43 MB of text need less than 15 MB of memory more than 4 MB of text. It is
read up to four times: for its fingerprint, for its size, to train a tokenizer, and to encode it.

A store is written into the folder ``KEY.part``, in units of a shard's size (see `units`), and renamed to ``KEY`` when
it is complete. A process that is killed leaves a ``.part`` folder, with which the next one goes on. Several machines
may prepare one store at once, each a share of the units. A store whose files are damaged (see `integrity`) is prepared
again. This module and its workers import no torch, which would take 350 MB in each of them.
"""

import errno
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import FULL, UserError, is_refusal
from datamodules.files import cache_folder, locked
from datamodules.integrity import damage, is_whole
from datamodules.merging import merge, remove_units
from datamodules.recipe import Kind, NewTokenizer, Recipe
from datamodules.remote import is_url, joined_url
from datamodules.remote_store import find_remote, local_folder, upload, verify_remote
from datamodules.text_facts import has_text_facts, store_text_facts
from datamodules.tokenizers import (
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
    train_wordpiece,
)
from datamodules.tokens import TOKENIZER, read_meta
from datamodules.units import Plan, build_units, drop_damaged, has_damaged_starts, make_plan, read_plan, unfinished

__all__ = [
    "Kind",
    "NewTokenizer",
    "Recipe",
    "Share",
    "find_store",
    "load_tokenizer_of",
    "prepare",
    "prepare_share",
    "store_folder",
]

#: Most bytes of a file of tokens.
SHARD_BYTES = 10**9
#: The suffix of a file beside a store that is on this machine only until it is copied to a URL.
_COPY = ".copy"


class Share(NamedTuple):
    """The part of the work that one of several machines does: ``number`` of ``of``, from 1 on."""

    number: int
    of: int

    @classmethod
    def parsed(cls, text: str) -> "Share":
        """The share that is written ``2/8``.

        Raises:
            UserError: it is not written so.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        share = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= share.number <= share.of:
            raise UserError(f"shard is {text}: give this machine's number and how many there are, such as 1/4 to 4/4.")
        return share

    def units(self, count: int) -> range:
        """The numbers of the units of this share, which follow one another, so that little is read in vain."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)


def store_folder(recipe: Recipe, cache_dir: str | Path | None = None) -> Path:
    """The folder of the recipe's store, prepared or not. It stands for the store if ``cache_dir`` is a URL."""
    if is_url(cache_dir):
        return local_folder(_url(recipe, cache_dir))
    return cache_folder(cache_dir) / recipe.key


def _url(recipe: Recipe, cache_dir: object) -> str:
    return joined_url(str(cache_dir), recipe.key)


def find_store(recipe: Recipe, cache_dir: str | Path | None = None, verify: bool = False) -> Path | None:
    """The folder of the recipe's store, if that is there and not damaged.

    Args:
        recipe: what goes into the store.
        cache_dir: parent of all stores; None for `files.default_cache_dir`.
        verify: see `prepare`.

    Raises:
        UserError: a store in object storage is damaged.
    """
    if not is_url(cache_dir):
        folder = store_folder(recipe, cache_dir)
        return folder if is_whole(folder, verify) else None
    found = find_remote(_url(recipe, cache_dir))
    if found and verify:
        verify_remote(found)
    return found


def prepare(
    recipe: Recipe, cache_dir: str | Path | None = None, verify: bool = False, shard_bytes: int = SHARD_BYTES
) -> Path:
    """The folder of the recipe's store, which is prepared now if it is missing or damaged.

    Several processes may call it at once, also after one of them was killed. A line on stderr names the damage.

    Args:
        recipe: what goes into the store.
        cache_dir: parent of all stores, a folder or a URL; None for `files.default_cache_dir`. For a URL the store is
            made in the default folder and copied.
        verify: whether a store that exists is compared with its checksums as a whole, and not only the files whose
            size or time of change differ.
        shard_bytes: most bytes of a file of tokens.

    Raises:
        UserError: the source or the tokenizer refuses the text, or the cache cannot be written.
    """
    if (found := find_store(recipe, cache_dir, verify)) is not None:
        return _alone(recipe, found, cache_dir)
    if is_url(cache_dir):
        _mark_copy(recipe)
        return _copied(recipe, prepare(recipe, None, shard_bytes=shard_bytes), cache_dir)
    folder = store_folder(recipe, cache_dir)
    with writable(folder.parent), locked(folder.with_suffix(".lock")):
        # Under the lock, again: another process may have prepared the store while this one waited.
        if not _found(folder, verify):
            _build_and_rename(recipe, folder, shard_bytes)
    return folder


def prepare_share(
    recipe: Recipe, share: Share, cache_dir: str | Path | None = None, shard_bytes: int = SHARD_BYTES
) -> Path | None:
    """Prepares a share of the store, and the store itself if all other shares are finished.

    Args:
        recipe: what goes into the store.
        share: which of the units are encoded here.
        cache_dir: parent of all stores, on a disk that all machines share. For a URL the default folder must be on
            such a disk; the last machine copies the store.
        shard_bytes: most bytes of a file of tokens; the machine that starts first decides.

    Returns:
        The folder of the store; None if other shares are missing.
    """
    if (found := find_store(recipe, cache_dir)) is not None:
        return _alone(recipe, found, cache_dir)
    if is_url(cache_dir):
        _mark_copy(recipe)
        made = prepare_share(recipe, share, None, shard_bytes)
        return made and _copied(recipe, made, cache_dir)
    folder = store_folder(recipe, cache_dir)
    part, lock = _part(folder), folder.with_suffix(".lock")
    with writable(folder.parent):
        with locked(lock):
            if _found(folder):
                return folder
            plan, tokenizer = _planned(recipe, part, shard_bytes)
        with recipe.unchanging():
            build_units(recipe, plan, tokenizer, part, share.units(len(plan.parts)))
        with locked(lock):
            if folder.exists():  # another process has finished it, and this one may have left a lock file
                _remove(part)
            elif unfinished(plan, part):
                return None
            else:
                _build_and_rename(recipe, folder, shard_bytes)
    return folder


def _copied(recipe: Recipe, folder: Path, cache_dir: object) -> Path:
    """Copies a store of this machine into the storage, and returns the folder that stands for it from now on.

    Args:
        recipe: what went into the store.
        folder: the store of this machine.
        cache_dir: the URL of the parent of all stores.
    """
    url = _url(recipe, cache_dir)
    with locked(folder.with_suffix(".upload.lock")):
        if (found := find_remote(url)) is None:
            upload(folder, url)
            found = find_remote(url)
    if found is None:
        raise UserError(f"{url} is not there after it was written: give storage that keeps files as --data.cache_dir.")
    return _alone(recipe, found, cache_dir)


def _mark_copy(recipe: Recipe) -> None:
    """Notes that the store is made on this machine to be copied only, unless it was there before."""
    folder = store_folder(recipe)
    if not folder.exists():
        with writable(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.with_suffix(_COPY).touch()


def _alone(recipe: Recipe, found: Path, cache_dir: object) -> Path:
    """The folder ``found``. If it stands for a store at a URL, what was made to be copied there is removed."""
    folder = store_folder(recipe)
    if is_url(cache_dir) and folder.with_suffix(_COPY).exists():
        _remove(folder, _part(folder))
        folder.with_suffix(_COPY).unlink(missing_ok=True)
    return found


def _found(folder: Path, verify: bool = False) -> bool:
    """Whether the store is there. One that is damaged is removed, and one that lacks its name only gets it."""
    part = _part(folder)
    if not folder.exists() and is_whole(part) and has_text_facts(part):  # a process was killed at the very end
        _rename(part, folder)
    fault = damage(folder, verify) if folder.exists() else None
    if fault is not None:
        print(f"The tokens in {folder} are damaged ({fault}): preparing them anew.", file=sys.stderr, flush=True)
        _remove(folder)
    return folder.exists()


def _part(folder: Path) -> Path:
    return folder.with_suffix(".part")


def _rename(part: Path, folder: Path) -> None:
    """Makes a finished ``.part`` folder the store."""
    remove_units(part, read_meta(part)["files"])
    part.rename(folder)


def _build_and_rename(recipe: Recipe, folder: Path, shard_bytes: int) -> None:
    """Builds what is missing of the store in the ``.part`` folder and renames that.

    After an error, finished units stay for the next start. Without any, or with a text that has changed, nothing does.
    """
    part = _part(folder)
    try:
        with recipe.unchanging():
            _build(recipe, part, shard_bytes)
        store_text_facts(part, load_tokenizer_of(part))  # after the comparison, because it reads the tokens
        _rename(part, folder)
    except Exception:
        if recipe.changed or not list(part.glob("unit-*.json")):
            _remove(part)
        raise


def load_tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer that a store was written with."""
    return load_tokenizer(folder / TOKENIZER, check=False)  # it has encoded the store's text


def _build(recipe: Recipe, part: Path, shard_bytes: int) -> None:
    """Builds and merges all units, and reads them back to compare checksums."""
    plan, tokenizer = _planned(recipe, part, shard_bytes)
    built: set[int] = set()
    while True:
        built |= build_units(recipe, plan, tokenizer, part, range(len(plan.parts)))
        fault: str | None = "the positions of documents differ from their checksum"
        if not has_damaged_starts(plan, part):  # later they are in one file, with a checksum of its own
            merge(recipe, plan, tokenizer, part)
            if (fault := damage(part, verify=True)) is None:
                return
        # What an earlier process or another machine has left is built again, once.
        if (damaged := drop_damaged(plan, part)) & built or not damaged:
            raise UserError(
                f"the disk of the cache {part.parent} does not keep what is written to it ({fault}): set cache_dir "
                "to a folder on another disk."
            )


def _planned(recipe: Recipe, part: Path, shard_bytes: int) -> tuple[Plan, Tokenizer]:
    """The plan and the tokenizer that are in the folder, or new ones."""
    plan = read_plan(recipe, part)
    if plan is not None:
        return plan, load_tokenizer_of(part)
    _remove(part)
    part.mkdir(parents=True)
    option = recipe.tokenizer
    tokenizer = _train(option, recipe) if isinstance(option, NewTokenizer) else option
    save_tokenizer(tokenizer, part / TOKENIZER)
    return make_plan(recipe, tokenizer, part, shard_bytes), tokenizer


def _train(new: NewTokenizer, recipe: Recipe) -> Tokenizer:
    if recipe.survey[1] is not None:
        return recipe.survey[1]
    texts = (piece.text for piece in recipe.pieces() if new.train_on == "all" or piece.split == "train")
    if new.kind == "char":
        return CharTokenizer.from_texts(texts, new.unknown, new.eos)
    if new.kind == "wordpiece":
        return train_wordpiece(texts, new.vocab_size, new.uncased)
    size, prefix = new.vocab_size, new.prefix_space
    return train_tokenizer(new.kind, texts, size, pattern=new.pattern, eos=new.eos, prefix_space=prefix)


@contextmanager
def writable(cache_dir: Path) -> Iterator[None]:
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
