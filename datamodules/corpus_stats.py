"""Statistics of a corpus: vocabulary use, document lengths, and the overlap of validation and training text."""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from datamodules.permutation import random_words
from datamodules.tokenizers import Tokenizer
from datamodules.tokens import TokenStore

SHINGLE = 50  # characters; long enough that prose rarely repeats one by chance
_SAMPLE = 1_000_000  # about the most validation shingles that are looked up: 8 MB of hashes
_CHUNK = 1 << 20  # tokens that are decoded at a time

#: A shingle's hash is the sum of its code points times these, modulo 2 ** 64. The factors are odd, so a change of one
#: character always changes the sum. Two different shingles share a hash with a probability of at most 2 ** -43, and of
#: about 2 ** -63 where the code points of a place differ by an odd number.
_WEIGHTS = random_words(SHINGLE, words=SHINGLE) | np.uint64(1)


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
    """Tokens of each document without its EOS token, (documents,)."""
    return np.diff(store.starts) - (store.eos_id is not None)


def overlap(
    train: TokenStore, val: TokenStore, tokenizer: Tokenizer, advance: Callable[[int], None] = lambda _: None
) -> Overlap:
    """The shares of ``val`` that ``train`` holds too: of whole documents, and of shingles.

    A shingle is a stretch of 50 characters inside a document. Both splits are read once, in chunks. A validation split
    of more than a million characters is sampled: a random part of its shingles counts.

    Args:
        train: the training split.
        val: the validation split.
        tokenizer: the tokenizer of both.
        advance: called with the number of training tokens that were compared since the last call.
    """
    return Overlap(
        documents=_document_overlap(train, val) if val.eos_id is not None else None,
        shingles=_shingle_overlap(train, val, tokenizer, advance),
    )


def _document_overlap(train: TokenStore, val: TokenStore) -> float:
    val_documents = {document.tobytes() for document in val.documents()}
    shared = val_documents.intersection(document.tobytes() for document in train.documents())
    return float(np.mean([document.tobytes() in shared for document in val.documents()]))


def _shingle_overlap(
    train: TokenStore, val: TokenStore, tokenizer: Tokenizer, advance: Callable[[int], None]
) -> float | None:
    one_in = np.uint64(max(1, val.counts.chars // _SAMPLE))
    sample = np.concatenate([np.empty(0, np.uint64), *_shingle_hashes(val, tokenizer, one_in)])
    val_hashes, counts = np.unique(sample, return_counts=True)  # sorted
    if len(val_hashes) == 0:
        return None
    shared = np.zeros(len(val_hashes), bool)
    for train_hashes in _shingle_hashes(train, tokenizer, one_in):
        nearest = np.minimum(np.searchsorted(val_hashes, train_hashes), len(val_hashes) - 1)
        shared[nearest[val_hashes[nearest] == train_hashes]] = True
        advance(_CHUNK)
    return float(counts[shared].sum() / counts.sum())


def _shingle_hashes(store: TokenStore, tokenizer: Tokenizer, one_in: np.uint64) -> Iterator[np.ndarray]:
    """Hashes of the shingles of a split, chunk by chunk; of them those that ``one_in`` divides, (n,) uint64."""
    tail = np.empty(0, np.uint64)
    for code_points in _code_points(store, tokenizer):
        text = np.concatenate([tail, code_points])  # (T,)
        tail = text[-(SHINGLE - 1) :]  # of the shingles that go on in the next chunk
        if len(text) >= SHINGLE:
            eos_before = np.concatenate([[0], np.cumsum(text == 0)])  # (T + 1,)
            inside = eos_before[SHINGLE:] == eos_before[:-SHINGLE]  # (T - 49,): no EOS token in the shingle
            hashes = np.correlate(text, _WEIGHTS)[inside]  # 0.08 s for a million characters
            hashes ^= hashes >> np.uint64(32)  # the low bits, which the next line samples by, depend on all bits
            yield hashes[hashes % one_in == 0]


def _code_points(store: TokenStore, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Characters of the split in chunks, (n,) uint64, with 0 for an EOS token."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # it holds back a character that a chunk's end cuts
    table = [b"\0" if i == store.eos_id else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    for start in range(0, len(store), _CHUNK):
        text = decoder.decode(b"".join([table[i] for i in store.tokens[start : start + _CHUNK].tolist()]))
        yield np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
