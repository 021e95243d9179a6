"""Counts of all n-grams of a text, and what Kneser and Ney take from them: discounts and probabilities of the tokens.

An n-gram has a number. That of a 1-gram is the token id. That of a longer one is the index of its key in the sorted
keys of all n-grams of its length. The key is (number of the n-gram without its last token) * V + last token. So all
n-grams that continue one context are neighbours in the sorted keys.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from datamodules.tokens import TokenStream


def _longest_ngrams(text: TokenStream) -> np.ndarray:
    """The length of the longest n-gram that ends at each position and lies in one document, (number of tokens,).

    An EOS token belongs to the document that it ends. As context it also belongs to the next one, whose first token so
    has length 2. The EOS token at the very beginning of the text ends no document: 0.
    """
    position = np.arange(len(text.tokens))
    document = np.searchsorted(np.asarray(text.starts), position, side="right" if text.eos_id is None else "left") - 1
    return np.where(document < 0, 0, position - text.starts[document] + 1)


def estimate_discount(counts: np.ndarray) -> float:
    """Ney's estimate ones / (ones + 2 * twos), from how many n-grams occur once and twice.

    Adding 0.5 and 1 keeps it defined in a very small text, where it tends to 0.5.
    """
    ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
    return (ones + 0.5) / (ones + 2 * twos + 1)


def unigram_probabilities(counts: np.ndarray, discount: float) -> np.ndarray:
    """Probabilities of the tokens (V,) without context. What the discounts take off is spread evenly over the
    vocabulary, so that no token has probability 0.
    """
    even_share = discount * (counts > 0).sum() / len(counts)
    return (np.maximum(counts - discount, 0) + even_share) / counts.sum()


class Ngrams(NamedTuple):
    """All n-grams of a text, for one n."""

    numbers: np.ndarray
    """The number of the n-gram that ends at each position, (number of tokens,); -1 where none does."""
    keys: np.ndarray
    """The keys of all n-grams, sorted."""
    first_positions: np.ndarray
    """Where each n-gram ends for the first time."""


def _number_ngrams(ids: np.ndarray, lengths: np.ndarray, order: int, vocab_size: int) -> list[Ngrams]:
    """The n-grams of a text for n from 1 to `order`; `lengths` are those of `_longest_ngrams`."""
    ngrams = [Ngrams(ids, np.arange(vocab_size), ids[:0])]  # nobody asks where a 1-gram occurs first
    for n in range(2, order + 1):
        position = np.flatnonzero(lengths >= n)
        all_keys = ngrams[-1].numbers[position - 1] * vocab_size + ids[position]
        keys, first, number = _unique(all_keys, len(ngrams[-1].keys) * vocab_size)
        numbers = np.full(len(ids), -1)
        numbers[position] = number
        ngrams.append(Ngrams(numbers, keys, position[first]))
    return ngrams


def _unique(keys: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `np.unique` returns with index and inverse, for keys below ``bound``.

    A table of all possible keys takes a third of the time of sorting those of a million characters.
    """
    if bound > 32 * len(keys):
        return np.unique(keys, return_index=True, return_inverse=True)
    table: np.ndarray = np.full(bound, -1, np.int32 if bound < 2**31 else np.int64)
    table[keys[::-1]] = np.arange(len(keys) - 1, -1, -1)  # of equal keys the last assignment stays: the first position
    found = np.flatnonzero(table >= 0)
    first = table[found].astype(np.int64)
    table[found] = np.arange(len(found))
    return found, first, table[keys].astype(np.int64)


def count_ngrams(
    text: TokenStream, order: int, vocab_size: int, folds: int = 0
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Count the n-grams of a text that lie inside one document, for n from ``order`` down to 1.

    The longest n-grams are counted at every occurrence. Shorter ones are counted once for each different token before
    them (continuation counts). At the start of a document no token is before them: there they are counted each time.

    Args:
        text: A split of a store.
        order: The longest n.
        vocab_size: V.
        folds: Into how many equal parts to cut the text, to count it also without each.

    Yields:
        n, the sorted keys (M,), and their counts (folds + 1, M): without each fold, and at last in the whole text.
    """
    lengths = _longest_ngrams(text)
    ngrams = _number_ngrams(text.tokens.astype(np.int64), lengths, order, vocab_size)
    fold = np.arange(len(lengths)) * max(folds, 1) // max(len(lengths), 1)
    counts = np.zeros((folds + 1, 0), np.int64)
    for n in range(order, 0, -1):
        numbers, keys, _ = ngrams[n - 1]
        counted = lengths >= n if n == order else lengths == n
        parts = [np.bincount(numbers[counted & (fold == f)], minlength=len(keys)) for f in range(max(folds, 1))]
        whole = np.sum(parts, axis=0)
        here = np.stack([whole - part for part in parts[:folds]] + [whole])
        if n < order:
            # The n-gram at the end of each (n + 1)-gram. Those that the whole text has once may be in no other fold.
            ends = numbers[ngrams[n].first_positions]
            here += np.stack([np.bincount(ends[row > 0], minlength=len(keys)) for row in counts])
        yield n, keys, (counts := here)
