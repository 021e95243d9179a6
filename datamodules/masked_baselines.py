"""Losses of masked tokens without a network: by frequency, by the token before, and by the tokens on both sides.

All count the training split, and are scored on the masked places of the evaluation. They see the true neighbours, also
where the network sees [MASK] or a random token.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from datamodules.masked_rows import MaskedRows
from datamodules.rows import IGNORE_INDEX
from datamodules.text_facts import Baselines
from datamodules.tokens import TokenStream

_CHUNK = 1 << 20  # tokens that are counted at a time
_ROWS = 1024
_MOST = 1_000_000  # masked places
#: Training splits with more tokens than this are not counted: `fit` does it at each start, in about a second a million.
MAX_TOKENS = 10_000_000


def masked_baselines(train: TokenStream, evaluated: MaskedRows, vocab_size: int) -> Baselines:
    """The losses in nats a masked token.

    The unigram is (count(b) + 1) / (N + V). The others have Witten-Bell smoothing, as in `text_facts.Baselines`. The
    one with both sides falls back on the mean of the bigram from the left and the bigram from the right.

    Args:
        train: the training split. One of more than 10 million tokens is not counted.
        evaluated: the rows whose masked places are scored.
        vocab_size: V.
    """
    left, token, right = _masked_places(evaluated)
    if len(train.tokens) > MAX_TOKENS or not len(token):
        return Baselines(math.log(vocab_size))
    counts = _counts(train, vocab_size)
    unigram = ((counts + 1) / (counts.sum() + vocab_size))[token]  # (N,)
    before = _witten_bell(((t[0], t[1]) for t in _triples(train)), left, token, unigram)
    behind = _witten_bell(((t[2], t[1]) for t in _triples(train)), right, token, unigram)
    around = ((t[0] * vocab_size + t[2], t[1]) for t in _triples(train))
    both = _witten_bell(around, left * vocab_size + right, token, (before + behind) / 2)
    nats = [-float(np.log(p).mean()) for p in (unigram, before, both)]
    return Baselines(math.log(vocab_size), *nats)


def _counts(store: TokenStream, vocab_size: int) -> np.ndarray:
    parts = range(0, len(store.tokens), _CHUNK)
    return np.sum([np.bincount(store.tokens[i : i + _CHUNK], minlength=vocab_size) for i in parts], 0)


def _masked_places(rows: MaskedRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each masked token with the true tokens before and behind it, (N,) each."""
    parts = [np.empty((3, 0), np.int64)]
    for start in range(0, rows.count, _ROWS):
        batch = rows.batch(0, np.arange(start, min(start + _ROWS, rows.count)))
        masked = batch["targets"] != IGNORE_INDEX
        ids = np.where(masked, batch["targets"], batch["input_ids"])
        row, column = np.nonzero(masked)  # never at the ends of a row, which are special tokens
        parts.append(np.stack([ids[row, column + d] for d in (-1, 0, 1)]))
        if sum(part.shape[1] for part in parts) > _MOST:
            break
    left, token, right = np.concatenate(parts, 1)
    return left, token, right


def _triples(store: TokenStream) -> Iterator[np.ndarray]:
    """All triples of neighbours, (3, n) in chunks."""
    for start in range(0, len(store.tokens) - 2, _CHUNK):
        ids = store.tokens[start : start + _CHUNK + 2].astype(np.int64)
        yield np.stack([ids[:-2], ids[1:-1], ids[2:]])


def _witten_bell(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], context: np.ndarray, token: np.ndarray, fallback: np.ndarray
) -> np.ndarray:
    """p(token | context) of places, (N,): (count(context, token) + kinds p) / (count(context) + kinds).

    Args:
        pairs: contexts and tokens of the training text, in chunks.
        context: of each place, (N,).
        token: of each place, (N,).
        fallback: p, the probability of each token without this context, (N,).
    """
    known, place = np.unique(context, return_inverse=True)
    seen, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for contexts, tokens in pairs:
        nearest = np.minimum(np.searchsorted(known, contexts), len(known) - 1)
        wanted = known[nearest] == contexts
        codes = (nearest[wanted] << 32) + tokens[wanted]
        seen, at = np.unique(np.concatenate([seen, codes]), return_inverse=True)
        counts = np.bincount(at, np.concatenate([counts, np.ones(len(codes), np.int64)])).astype(np.int64)
    total = np.bincount(seen >> 32, counts, len(known))[place]  # (N,)
    kinds = np.bincount(seen >> 32, minlength=len(known))[place]
    codes = (place << 32) + token
    nearest = np.minimum(np.searchsorted(seen, codes), max(len(seen) - 1, 0))
    count = np.where(seen[nearest] == codes, counts[nearest], 0) if len(seen) else np.zeros(len(token))
    return np.where(kinds > 0, (count + kinds * fallback) / np.maximum(total + kinds, 1), fallback)
