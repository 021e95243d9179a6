"""Rows of two sentences, ``[CLS] A [SEP] B [SEP]``: does B follow A in the text, or is it from somewhere else?

A and B are stretches of a split, of one sentence or several. `BalancedPairs` draws the label first, so that nothing but
the words can tell it. `GooglePairs` makes pairs as BERT's own data did, where lengths give away a part of the labels.
Both are drawn anew in every epoch, as a pure function of (seed, epoch).
"""

import random
from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import numpy as np

from datamodules.masked_rows import Layout, MaskedRows
from datamodules.masking import hashed_uniform
from datamodules.permutation import random_words
from datamodules.rows import IGNORE_INDEX
from datamodules.sentences import find_sentences

PairKind = Literal["balanced", "google"]
FOLLOWS, RANDOM = 0, 1  # the labels
#: Independent random streams of one epoch, beside those of `masking` and `masked_rows`.
_LABEL, _CUT, _PLACE, _GOOGLE = 20, 21, 30, 22
_TRIES = 8  # places of a random B are drawn until one is in another document
_GOOGLE_TRIES, _GOOGLE_SHORT = 10, 0.1
_SPECIALS = 3  # [CLS], [SEP], [SEP]


class Pairs(NamedTuple):
    """Where the two stretches of each row are. A row without a B has length 0 there.

    Attributes:
        a: first position of A in the store, (n,).
        a_length: its tokens, (n,).
        b: first position of B, (n,).
        b_length: its tokens, (n,).
        label: 0 where B follows A, 1 where it is random, -100 where the row has no label, (n,).
    """

    a: np.ndarray
    a_length: np.ndarray
    b: np.ndarray
    b_length: np.ndarray
    label: np.ndarray


class PairRows(MaskedRows):
    """Base class: rows of pairs. A subclass draws the pairs of an epoch.

    Attributes:
        pair_seed: decides the pairs, with the epoch.
        most: tokens of A and B together.
    """

    def __init__(self, *args: Any, pair_seed: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pair_seed = pair_seed
        self.most = self.block_size - _SPECIALS
        # At most half a row, so that a row has two sentences wherever its document has enough text.
        self.sentences = find_sentences(self.store, self.tokenizer, self.most // 2)
        self._pairs: tuple[int, Pairs] | None = None

    @abstractmethod
    def draw(self, epoch: int) -> Pairs:
        """The pairs of an epoch."""

    def pairs(self, epoch: int) -> Pairs:
        """The pairs of an epoch; those of the last one that was asked for are kept: 40 bytes a row."""
        if self._pairs is None or self._pairs[0] != epoch:
            self._pairs = epoch, self.draw(epoch)
        return self._pairs[1]

    def prepare(self, epoch: int) -> None:
        """See `Rows`."""
        self.pairs(epoch)

    def layout(self, epoch: int, rows: np.ndarray) -> Layout:
        """See `MaskedRows`. It adds ``next_sentence_label`` (B,)."""
        a, a_length, b, b_length, label = (part[rows][:, None] for part in self.pairs(epoch))  # (B, 1) each
        second = self.columns > a_length + 1  # (B, T): behind the first [SEP]
        within = np.where(second, self.columns - a_length - 1, self.columns)
        ids = self.surrounded(np.where(second, b, a), within, np.where(second, b_length, a_length))
        real = self.columns < a_length + 2 + np.where(b_length > 0, b_length + 1, 0)
        labels = np.where(rows < 0, IGNORE_INDEX, label[:, 0])
        return Layout(ids, real, second.astype(np.int64), {"next_sentence_label": labels})


class BalancedPairs(PairRows):
    """Pairs whose label is drawn at 50 %, before anything else of B, and whose lengths do not depend on it.

    A row takes sentences as long as they fit. A is the first 1 to k - 1 of its k sentences, and B fills the row: with
    what follows A, or with as many tokens from a sentence's beginning elsewhere. That is in another document, where
    eight tries find one, and else in the same. A row of one sentence has no B and no label.

    In a text of short documents a B that follows ends with its document, and a random one in the middle of a sentence.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.first, self.behind = self._runs()
        self.count = len(self.first)
        left = self.sentences.document_high - self.sentences.low  # tokens from each sentence to its document's end
        self._by_left = np.argsort(left, kind="stable")
        self._left = left[self._by_left]

    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        """The first sentence of each row, and the one behind its last, (rows,) each."""
        s = self.sentences
        behind = np.searchsorted(s.high, s.low + self.most, side="right")  # the first that does not fit
        behind = np.minimum(behind, s.following)
        following, first = behind.tolist(), []
        sentence = 0
        while sentence < len(following):
            first.append(sentence)
            sentence = following[sentence]
        return np.array(first, np.int64), behind[np.array(first, np.int64)]

    def draw(self, epoch: int) -> Pairs:
        """See `PairRows`. It takes 1 s for a million rows."""
        s, first = self.sentences, self.first
        several = self.behind - first > 1
        cut = first + 1 + (self._uniform(epoch, _CUT) * (self.behind - first - 1)).astype(np.int64)
        a, high = s.low[first], s.document_high[first]
        b = np.where(several, s.high[cut - 1], s.high[self.behind - 1])
        a_length = b - a
        b_length = np.where(several, np.minimum(self.most - a_length, high - b), 0)
        elsewhere = self._elsewhere(epoch, a, b + b_length, b_length)
        label = np.where(self._uniform(epoch, _LABEL) < 0.5, FOLLOWS, RANDOM)
        label = np.where(several & (elsewhere >= 0), label, IGNORE_INDEX)  # whatever the label was
        return Pairs(a, a_length, np.where(label == RANDOM, elsewhere, b), b_length, label)

    def _elsewhere(self, epoch: int, low: np.ndarray, high: np.ndarray, length: np.ndarray) -> np.ndarray:
        """A sentence's beginning with enough tokens behind it, outside of each row's own stretch; -1 for none, (n,)."""
        s = self.sentences
        fewer = np.searchsorted(self._left, length)  # sentences with less behind them
        other, same = np.full(len(low), -1), np.full(len(low), -1)
        for attempt in range(_TRIES):
            chosen = fewer + self._uniform(epoch, _PLACE + attempt) * (len(self._left) - fewer)
            place = self._by_left[np.minimum(chosen.astype(np.int64), len(self._left) - 1)]
            begin = s.low[place]
            is_other = s.document[place] != s.document[self.first]
            other = np.where((other < 0) & is_other, begin, other)
            is_apart = (begin + length <= low) | (begin >= high)
            same = np.where((same < 0) & is_apart, begin, same)
        return np.where(other >= 0, other, same)

    def _uniform(self, epoch: int, stream: int) -> np.ndarray:
        key = random_words(self.pair_seed, epoch, stream, words=1)[0]
        return hashed_uniform(key, np.arange(self.count).astype(np.uint64))


class GooglePairs(PairRows):
    """Pairs as in BERT's own data (google-research/bert, create_pretraining_data.py).

    Sentences are taken until a target length is reached, which is a random shorter one for 10 % of the rows. A is the
    first 1 to k - 1 of the k sentences. B is the rest, or with 50 % begins at a random sentence of another document,
    and then the unused sentences are put back. A row of one sentence always gets a random B, so more than half are
    random. What is too long loses tokens at either end, from the longer of the two.

    The number of rows differs between epochs. It is that of epoch 0 here: others leave out rows or have empty ones.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.count = 0
        self.count = len(self.pairs(0).a)

    def draw(self, epoch: int) -> Pairs:
        """See `PairRows`. It takes about 10 s for a million rows."""
        rng = random.Random(int(random_words(self.pair_seed, epoch, _GOOGLE, words=1)[0]))
        drawn = np.array(_google(self, rng), np.int64).reshape(-1, 5)
        if self.count:
            empty = np.tile([0, 0, 0, 0, IGNORE_INDEX], (max(self.count - len(drawn), 0), 1))
            drawn = np.concatenate([drawn, empty])[: self.count]
        return Pairs(*drawn.T)


def _google(rows: PairRows, rng: random.Random) -> list[tuple[int, int, int, int, int]]:
    """The pairs of one epoch, each as a row of `Pairs`."""
    s = rows.sentences
    low, high, following = s.low.tolist(), s.high.tolist(), s.following.tolist()
    documents = np.unique(s.document, return_index=True)[1].tolist()  # first sentence of each document
    pairs = []
    for number, start in enumerate(documents):
        first, end = start, following[start]
        while first < end:
            target = rows.most if rng.random() >= _GOOGLE_SHORT else rng.randint(2, rows.most)
            behind = first + 1
            while behind < end and high[behind - 1] - low[first] < target:
                behind += 1
            cut = first + (1 if behind - first == 1 else rng.randint(1, behind - first - 1))
            if behind - first == 1 or rng.random() < 0.5:
                b, b_high = _random_stretch(
                    rng, number, documents, following, low, high, target - (high[cut - 1] - low[first])
                )
                label, used = RANDOM, cut
            else:
                b, b_high, label, used = low[cut], high[behind - 1], FOLLOWS, behind
            pairs.append((*_truncated(rng, low[first], high[cut - 1], b, b_high, rows.most), label))
            first = used
    return pairs


def _random_stretch(
    rng: random.Random,
    number: int,
    documents: list[int],
    following: list[int],
    low: list[int],
    high: list[int],
    length: int,
) -> tuple[int, int]:
    """A stretch of another document, if ten tries find one: from a random sentence on, until ``length`` is reached."""
    for _ in range(_GOOGLE_TRIES):
        other = rng.randrange(len(documents))
        if other != number:
            break
    start = rng.randrange(documents[other], following[documents[other]])
    behind = start + 1
    while behind < following[start] and high[behind - 1] - low[start] < length:
        behind += 1
    return low[start], high[behind - 1]


def _truncated(rng: random.Random, a: int, a_high: int, b: int, b_high: int, most: int) -> tuple[int, int, int, int]:
    """First positions and lengths of A and B after tokens were taken from either end of the longer one."""
    while (a_high - a) + (b_high - b) > most:
        at_front = rng.random() < 0.5
        if a_high - a > b_high - b:
            a, a_high = a + at_front, a_high - (not at_front)
        else:
            b, b_high = b + at_front, b_high - (not at_front)
    return a, a_high - a, b, b_high - b
