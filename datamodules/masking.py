"""Masked tokens: which positions of a row are predicted, and what the network sees there.

A mask is a pure function of (seed, epoch, row), computed for many rows at once without a random state. A row has the
same mask in any batch and on any number of processes, and another one in each epoch.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from datamodules.errors import UserError, check_at_least
from datamodules.permutation import random_words
from datamodules.rows import IGNORE_INDEX
from datamodules.tokenizers.wordpiece import WordPieceTokenizer

MaskKind = Literal["exact", "bernoulli"]
#: Independent random streams of one epoch, beside those of `batches` and `resegmented_rows`.
_CHOICE, _ACTION, _REPLACEMENT = 10, 11, 12
#: Of the chosen positions, 80 % become [MASK], 10 % a random token, and 10 % keep theirs.
_MASKED, _RANDOM = 0.8, 0.9
#: Evaluation masks 15 % of single tokens, however training masks, so that losses compare; its seed is not the run's.
EVALUATED, EVALUATION_SEED = 0.15, 15


@dataclass(frozen=True)
class Masking:
    """How positions are chosen. The defaults are the masks of every evaluation.

    Args:
        kind: ``exact`` chooses a fixed number in a row of n tokens, as BERT's own data did: ``probability`` n, rounded,
            at least 1 and at most ``most``. ``bernoulli`` chooses each position by a coin, as Hugging Face's collator
            does.
        probability: the share of the positions that are chosen.
        most: the largest number of a row, for ``exact``; None is no limit.
        whole_words: whether the pieces of a word are chosen together. With ``exact``, a word that does not fit in what
            is left of the number is passed over.
        seed: decides the masks, with the epoch and the row.
    """

    kind: MaskKind = "exact"
    probability: float = EVALUATED
    most: int | None = None
    whole_words: bool = False
    seed: int = EVALUATION_SEED

    def __post_init__(self) -> None:
        """Refuses a probability that is none, and a limit that is not used."""
        if not 0 < self.probability < 1:
            raise UserError(f"mlm_probability {self.probability} is no share of the tokens: give 0.15 to 0.4.")
        check_at_least(1, "max_predictions", self.most)
        if self.most is not None and self.kind != "exact":
            raise UserError(f"max_predictions {self.most} limits exact masks, and these are {self.kind}: leave it out.")


class Masker:
    """Draws masks and puts them into rows.

    Args:
        masking: how positions are chosen.
        tokenizer: the tokenizer of the rows.
    """

    def __init__(self, masking: Masking, tokenizer: WordPieceTokenizer) -> None:
        self.masking = masking
        self.mask_id, self.vocab_size, self._continues = tokenizer.mask_id, tokenizer.vocab_size, tokenizer.continues
        self._special = np.zeros(tokenizer.vocab_size, bool)
        self._special[tokenizer.special_ids] = True

    def masked(self, ids: np.ndarray, real: np.ndarray, epoch: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the network sees, (B, T), and the original ids where it has to predict, -100 elsewhere, (B, T).

        Args:
            ids: token ids, (B, T). Special tokens are counted, and never chosen.
            real: which positions are no padding, (B, T).
            epoch: number of the epoch.
            rows: number of each row, (B,).
        """
        chosen = self._choose(ids, real, epoch, rows)
        row, column = np.nonzero(chosen)  # (N,), for all of the rest
        original, shape = ids[row, column], (rows[row], column)
        action = self._uniform(epoch, _ACTION, *shape)
        anything = (self._uniform(epoch, _REPLACEMENT, *shape) * self.vocab_size).astype(np.int64)
        shown = np.where(action < _MASKED, self.mask_id, np.where(action < _RANDOM, anything, original))
        inputs, targets = ids.copy(), np.full_like(ids, IGNORE_INDEX)
        inputs[row, column], targets[row, column] = shown, original
        return inputs, targets

    def _choose(self, ids: np.ndarray, real: np.ndarray, epoch: int, rows: np.ndarray) -> np.ndarray:
        """The chosen positions, (B, T)."""
        candidates = real & ~self._special[ids]
        column = np.arange(ids.shape[1])[None]
        if self.masking.whole_words:  # all pieces of a word have the random number of its first
            begins = np.where(candidates & self._continues[ids] & _shifted(candidates), 0, column)
            column = np.maximum.accumulate(begins, axis=1)  # (B, T): where each position's word begins
        draw = self._uniform(epoch, _CHOICE, rows[:, None], column)  # (B, T)
        if self.masking.kind == "bernoulli":
            return candidates & (draw < self.masking.probability)
        count = self.masking.probability * real.sum(1)  # (B,)
        count = np.minimum(np.maximum(np.rint(count), 1), np.inf if self.masking.most is None else self.masking.most)
        draw = np.where(candidates, draw, np.inf)
        order = np.argsort(draw, axis=1, kind="stable")  # (B, T); a word's pieces lie side by side
        if not self.masking.whole_words:
            taken = np.arange(ids.shape[1]) < count[:, None]
        else:
            taken = _fitting_words(np.take_along_axis(draw, order, 1), count)
        chosen = np.empty_like(candidates)
        np.put_along_axis(chosen, order, taken, 1)
        return chosen & candidates

    def _uniform(self, epoch: int, stream: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Random numbers in [0, 1), a pure function of seed, epoch, stream, row and column."""
        key = random_words(self.masking.seed, epoch, stream, words=1)[0]
        return hashed_uniform(key, (np.maximum(rows, 0).astype(np.uint64) << np.uint64(20)) + columns.astype(np.uint64))


def hashed_uniform(key: np.uint64, counter: np.ndarray) -> np.ndarray:
    """Random numbers in [0, 1) for counters: SplitMix64 (Steele, Lea and Flood 2014), which can be entered anywhere."""
    mixed = key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def _shifted(candidates: np.ndarray) -> np.ndarray:
    """Whether the position before is a candidate, (B, T): a piece behind a special token begins a word."""
    return np.pad(candidates, ((0, 0), (1, 0)))[:, :-1]


def _fitting_words(draw: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The positions that are taken, word by word in the order of their random numbers.

    Args:
        draw: sorted random numbers, equal within a word and infinite where nothing may be chosen, (B, T).
        count: the most positions of a row, (B,).

    Returns:
        (B, T) bool.
    """
    B, T = draw.shape
    begins = np.ones((B, T), bool)
    begins[:, 1:] = draw[:, 1:] != draw[:, :-1]
    word = np.cumsum(begins, axis=1) - 1  # (B, T)
    length = np.zeros((B, T), np.int64)  # of each word, (B, words)
    np.add.at(length, (np.arange(B)[:, None], word), np.isfinite(draw))
    taken, left = np.zeros((B, T), bool), count.astype(np.int64)
    for number in range(int(word.max(initial=0)) + 1):  # a word may fit although the one before it did not
        fits = (length[:, number] <= left) & (length[:, number] > 0)
        taken[:, number] = fits
        left -= np.where(fits, length[:, number], 0)
        if not left.any():
            break
    return np.take_along_axis(taken, word, 1)
