"""What a corpus is like: vocabulary use, lengths, and how much of the validation text the training text holds."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datamodules.tokenizers import Tokenizer
from datamodules.tokens import TokenStore

SHINGLE = 50  # characters; long enough that prose rarely repeats one by chance
_SAMPLE = 1_000_000  # validation shingles looked up, at most about
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Overlap:
    """Shares of the validation split that also occur in the training split; None where there is nothing to compare."""

    documents: float | None
    shingles: float | None


def token_counts(store: TokenStore, vocab_size: int) -> np.ndarray:
    """How often each id occurs, (V,)."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(store), _CHUNK):
        counts += np.bincount(store.tokens[start : start + _CHUNK], minlength=vocab_size)
    return counts


def document_lengths(store: TokenStore) -> np.ndarray:
    """Tokens of each document without its end mark, (documents,)."""
    return np.diff(store.starts) - (store.eos_id is not None)


def overlap(train: TokenStore, val: TokenStore, tokenizer: Tokenizer) -> Overlap:
    """How much of ``val`` is also in ``train``: whole documents, and stretches of 50 characters inside documents.

    Both splits are read once; of a validation split over a million characters, a random part of the stretches counts.
    """
    return Overlap(
        documents=_document_overlap(train, val) if val.eos_id is not None else None,
        shingles=_shingle_overlap(train, val, tokenizer),
    )


def _document_overlap(train: TokenStore, val: TokenStore) -> float:
    known = {document.tobytes() for document in val.documents()}
    found = known.intersection(document.tobytes() for document in train.documents())
    return float(np.mean([document.tobytes() in found for document in val.documents()]))


def _shingle_overlap(train: TokenStore, val: TokenStore, tokenizer: Tokenizer) -> float | None:
    one_in = np.uint64(max(1, val.counts.chars // _SAMPLE))
    sample = np.concatenate([np.empty(0, np.uint64), *_shingles(val, tokenizer, one_in)])
    wanted, count = np.unique(sample, return_counts=True)
    if len(wanted) == 0:
        return None
    found = np.zeros(len(wanted), bool)
    for hashes in _shingles(train, tokenizer, one_in):
        place = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        found[place[wanted[place] == hashes]] = True
    return float(count[found].sum() / count.sum())


def _shingles(store: TokenStore, tokenizer: Tokenizer, one_in: np.uint64) -> Iterator[np.ndarray]:
    """Hashes of the 50-character stretches that hold no end mark; of them, those that ``one_in`` divides."""
    tail = np.empty(0, np.uint32)
    for codes in _code_points(store, tokenizer):
        text = np.concatenate([tail, codes])
        tail = text[-(SHINGLE - 1) :]
        if len(text) >= SHINGLE:
            marks = np.concatenate([[0], np.cumsum(text == 0)])
            hashes = _rolling_hash(text)[marks[SHINGLE:] == marks[:-SHINGLE]]
            yield hashes[hashes % one_in == 0]


def _code_points(store: TokenStore, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Characters of the split in chunks, with 0 for an end mark."""
    held = b""
    table = [b"\0" if i == store.eos_id else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    for start in range(0, len(store), _CHUNK):
        data = held + b"".join([table[i] for i in store.tokens[start : start + _CHUNK].tolist()])
        whole = _whole_characters(data)
        held = data[whole:]
        yield np.frombuffer(data[:whole].decode("utf-8", "replace").encode("utf-32-le"), np.uint32)


def _whole_characters(data: bytes) -> int:
    """Length of ``data`` without a character that is cut at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # the first byte of the last character
            size = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) if size <= back else len(data) - back
    return len(data)


def _rolling_hash(text: np.ndarray) -> np.ndarray:
    """A 64-bit polynomial hash of each stretch of 50 characters, from those of 2, 4, ... 32: 50 = 32 + 16 + 2."""
    base = np.uint64(0x9E3779B97F4A7C15)
    length, hashes = 1, (text.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(31)
    parts: dict[int, np.ndarray] = {}
    while length <= SHINGLE:
        parts[length] = hashes
        hashes, length = hashes[:-length] * base**length + hashes[length:], 2 * length
    result, done = np.zeros(len(text) - SHINGLE + 1, np.uint64), 0
    for length in sorted(parts, reverse=True):
        if SHINGLE & length:
            result = result * base**length + parts[length][done : done + len(result)]
            done += length
    return result ^ (result >> np.uint64(32))
