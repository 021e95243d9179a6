"""Sentences of a token store, found in its tokens by a simple rule.

A sentence ends with ``.``, ``!`` or ``?`` (or the Chinese ones) and with the quotes and brackets that close behind it.
An end less than four tokens behind another is none, so "3.14" and "e.g." mostly stay whole. Dotted names and
abbreviations do end sentences: WordPiece keeps neither white space nor, uncased, capitals. A sentence is never longer
than a given number of tokens: a longer one, such as a table or a poem, is cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datamodules.tokenizers.wordpiece import WordPieceTokenizer
from datamodules.tokens import TokenStream

_ENDS = (".", "!", "?", "。", "！", "？")  # noqa: RUF001
_CLOSERS = ('"', "'", ")", "]", "}", "”", "’", "」", "』")  # noqa: RUF001
_SHORTEST = 4  # tokens of a sentence
_MOST_CLOSERS = 3  # behind an end
_CHUNK = 1 << 20  # tokens that are read at a time


@dataclass(frozen=True)
class Sentences:
    """The sentences of a split, in their order, 40 bytes each. Those of a document follow each other without a gap.

    Attributes:
        low: first position in the store, (S,).
        high: position behind the last token, (S,).
        document: number of the document, (S,).
        document_high: position behind the document, (S,).
        following: number of the first sentence of the next document, (S,).
    """

    low: np.ndarray
    high: np.ndarray
    document: np.ndarray
    document_high: np.ndarray
    following: np.ndarray


def find_sentences(store: TokenStream, tokenizer: WordPieceTokenizer, longest: int) -> Sentences:
    """The sentences of a split, of at most ``longest`` tokens."""
    starts = np.asarray(store.starts)
    begins = starts[:-1][np.diff(starts) > 1] + 1  # of the documents that have tokens
    low = np.union1d(np.concatenate([np.empty(0, np.int64), *_begins(store, tokenizer)]), begins)
    document = np.minimum(np.searchsorted(starts, low, side="right"), len(starts) - 1) - 1
    inside = (low > starts[document]) & (low < starts[document + 1])  # a [SEP] behind an end begins no sentence
    low, document = low[inside], document[inside]
    high = np.minimum(np.append(low[1:], starts[-1]), starts[document + 1])
    low, document, high = _cut(low, document, high, longest)
    following = np.searchsorted(document, document, side="right")
    return Sentences(low, high, document, starts[document + 1], following)


def _begins(store: TokenStream, tokenizer: WordPieceTokenizer) -> Iterator[np.ndarray]:
    """Positions behind the end of a sentence, chunk by chunk. Some hold the [SEP] behind a document."""
    ends, closers = _among(tokenizer, _ENDS), _among(tokenizer, _CLOSERS)
    last = 0  # the last end, too near to another or not
    for start in range(0, len(store.tokens), _CHUNK):
        before = max(start - _MOST_CLOSERS - 1, 0)
        ids = np.asarray(store.tokens[before : start + _CHUNK])
        closes, ended = closers[ids], ends[ids]
        for _ in range(_MOST_CLOSERS):
            ended[1:] |= closes[1:] & ended[:-1]
        found = before + 1 + np.flatnonzero(ended[:-1] & ~(closes[1:] | ends[ids[1:]]))
        found = found[found >= start]
        far = np.diff(found, prepend=last) >= _SHORTEST
        last = int(found[-1]) if len(found) else last
        yield found[far]


def _among(tokenizer: WordPieceTokenizer, tokens: tuple[str, ...]) -> np.ndarray:
    """Which ids are one of the tokens, (V,)."""
    return np.isin(np.array(tokenizer.vocab, dtype=object), tokens)


def _cut(
    low: np.ndarray, document: np.ndarray, high: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sentences with those that are too long in several parts."""
    parts = -(-(high - low) // longest)
    within = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    new = np.repeat(low, parts) + within * longest
    return new, np.repeat(document, parts), np.minimum(new + longest, np.repeat(high, parts))
