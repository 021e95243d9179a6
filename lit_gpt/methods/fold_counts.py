"""Kneser-Ney counts of a text that also exist without each of several equal parts of it, its folds.

A network that is trained with counts of its own training text would learn to trust them too much: each n-gram that it
reads has been counted. Without the fold that a row is from, the counts are as good there as on new text. To leave out
each occurrence alone is not enough: with n up to 6 on tiny Shakespeare such counts have 1.42 nats per character,
without the fold 1.51, and on held-out text 1.55.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.tokens import TokenStream
from lit_gpt.methods.kneser_ney import SENTINEL, KneserNey, Level, interpolate
from lit_gpt.methods.ngram_counts import count_ngrams, estimate_discount, unigram_probabilities
from lit_gpt.methods.ngrams import FACTOR, PRIME, ROW_START

#: The most probabilities that are tabulated for contexts of two tokens: 8 MiB.
_MAX_TABLE = 2**21


class FoldCounts(KneserNey):
    """Kneser-Ney counts of a text, and of the text without each fold. A checkpoint holds those of the whole text."""

    def __init__(self, order: int, vocab_size: int, folds: int) -> None:
        """Nothing is counted before `count`."""
        super().__init__(order, vocab_size)
        self.folds = folds
        self._levels: list[Level] = []  # those of n at index n - 2, for order > 1
        self._unigrams = self._table = torch.zeros(0)

    def count(self, text: TokenStream) -> None:
        """Count a text, whole and without each fold."""
        device = self.discounts.device
        self._levels = []
        for n, keys, counts in count_ngrams(text, self.order, self.vocab_size, self.folds):
            self._store_counts(n, keys, counts[-1])
            discounts = [estimate_discount(row) for row in counts]
            if n == 1:
                unigrams = [unigram_probabilities(row, d) for row, d in zip(counts, discounts, strict=True)]
                self._unigrams = torch.tensor(np.stack(unigrams), dtype=torch.float32, device=device)
            else:
                self._levels.insert(0, _level(keys, counts, discounts, device))
        self._table = self._tabulate()
        self._place_rows(torch.from_numpy(text.tokens.astype(np.int64)).to(device))

    def forward(self, contexts: Tensor, share: float = 1.0, fold: Tensor | None = None) -> Tensor:
        """Probabilities of every next token, times ``share``, (N, V), after ``contexts`` (N, order - 1).

        Args:
            contexts: From `contexts`.
            share: The sum of a row's probabilities.
            fold: The fold whose counts are left out, (N,). None: the whole text is counted.
        """
        if not self._levels:  # loaded from a checkpoint
            return super().forward(contexts, share)
        text = torch.full_like(contexts[:, 0], self.folds) if fold is None else fold
        if len(self._table):
            lower, begin = self._table[text, self._table_rows(contexts)], 2
        else:
            lower, begin = self._unigrams[text], 0
        return interpolate(lower, contexts[:, begin:], self._levels[begin:], text, share)

    def _load_from_state_dict(self, *args: Any) -> None:
        """Take over a checkpoint's counts, which may be of another text than those without a fold."""
        self._levels = []
        super()._load_from_state_dict(*args)

    def _tabulate(self) -> Tensor:
        """The probabilities after each context of at most two tokens, (folds + 1, contexts, V).

        Otherwise these take two thirds of the time of `forward`. Empty if they are too many.
        """
        pairs, V = len(self._levels[0].keys) - 1, self.vocab_size
        rows, texts = pairs + V + 1, self.folds + 1
        if self.order < 3 or texts * rows * V > _MAX_TABLE:
            return torch.zeros(0)
        keys = self._levels[0].keys[:-1]
        last = torch.cat((keys % V, torch.arange(-1, V, device=keys.device).roll(-1)))
        pair = torch.arange(rows, device=keys.device)
        contexts = torch.stack((last, pair.where(pair < pairs, -1)), dim=1)  # (rows, 2)
        tables = [
            interpolate(unigrams, contexts, self._levels[:2], torch.full_like(pair, text))
            for text, unigrams in enumerate(self._unigrams)
        ]
        return torch.stack(tables)

    def _table_rows(self, contexts: Tensor) -> Tensor:
        """Where a context's last two tokens are in the table; otherwise its last token; the last row is for none."""
        last, pair, pairs = contexts[:, 0], contexts[:, 1], len(self._levels[0].keys) - 1
        return torch.where(pair >= 0, pair, torch.where(last >= 0, pairs + last, pairs + self.vocab_size))

    def _place_rows(self, tokens: Tensor) -> None:
        self._hashes, place = _hashes(tokens[None])[0].sort()
        self._fold = place * self.folds // len(tokens)

    def fold_of_rows(self, rows: Tensor) -> Tensor:
        """The fold from which each row (B, T) of the text is, (B,).

        A row is looked up by its first tokens. One that is not found is taken for the clipped end of the text.
        """
        last = torch.full_like(rows[:, 0], self.folds - 1)
        if rows.size(1) < ROW_START or not len(self._hashes):
            return last
        wanted = _hashes(rows[:, :ROW_START])[:, 0]
        index = torch.searchsorted(self._hashes, wanted).clamp(max=len(self._hashes) - 1)
        return self._fold[index].where(self._hashes[index] == wanted, last)


def _level(keys: np.ndarray, counts: np.ndarray, discounts: list[float], device: torch.device) -> Level:
    """Counts (texts, M) with their keys, for `interpolate`."""
    sums = [np.pad(values.cumsum(1), ((0, 0), (1, 0))).ravel() for values in (counts, counts > 0)]
    tables = (np.append(keys, SENTINEL), *sums)
    found, counted, followers = (torch.from_numpy(table).to(device) for table in tables)
    return Level(found, counted, torch.tensor(discounts, dtype=torch.float32, device=device), followers)


def _hashes(rows: Tensor) -> Tensor:
    """Hashes of the `ROW_START` tokens that begin at each position, (B, T) to (B, T - ROW_START + 1)."""
    hashes, factor, length = rows + 1, FACTOR, 1
    while length < ROW_START:  # from those of half the length
        hashes = (hashes[:, :-length] * factor + hashes[:, length:]) % PRIME
        factor, length = factor * factor % PRIME, 2 * length
    return hashes
