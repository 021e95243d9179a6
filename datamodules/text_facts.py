"""Facts of a text that a run prints before it trains. They are computed once, when the token store is made.

Three losses of models that see no context or one token are among them, in nats a token of the validation split. They
say what a loss is worth: a network that does no better than the bigram has learned nothing that pairs do not tell.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.corpus_stats import overlap, token_counts
from datamodules.integrity import add_to_meta
from datamodules.progress import progress
from datamodules.tokenizers import Tokenizer
from datamodules.tokens import TokenStore, read_meta

#: Stores with more tokens than this have no facts that need a reading of the text: they would take minutes.
MAX_TOKENS = 10**8
#: The key of the facts in ``meta.json``.
KEY = "facts"
_CHUNK = 1 << 20  # tokens that are read at a time
#: About the most different pairs of tokens that are counted at a time: 64 MB with their counts.
_PAIRS = 1 << 22


@dataclass(frozen=True)
class Baselines:
    """Losses to compare a network's ``val/loss`` with: nats a token, None where unknown.

    They are means over the targets that an evaluation of the whole validation split scores: every token but the first,
    EOS tokens included. V is the size of the vocabulary, N the number of tokens of the training split.

    Attributes:
        uniform: every token is equally likely: ln V.
        unigram: the frequencies of the training split with add-one smoothing, p(b) = (count(b) + 1) / (N + V).
        bigram: the token before is known. Interpolated Witten-Bell smoothing (Bell, Cleary and Witten 1990), which has
            nothing to tune: p(b|a) = (count(ab) + kinds(a) p(b)) / (count(a) + kinds(a)), where kinds(a) is the number
            of different tokens that follow a, and p(b) the unigram. A token that nothing follows has the unigram's.
        two_sided: the tokens before and behind are known; for masked tokens alone (see `masked_baselines`).
    """

    uniform: float | None = None
    unigram: float | None = None
    bigram: float | None = None
    two_sided: float | None = None


@dataclass(frozen=True)
class TextFacts:
    """Sizes of a text, its baselines, and how much of the validation split the training split holds too.

    Attributes:
        source: the name of the text.
        splits: the sizes of each split, as the fields of `tokens.Counts`.
        vocab_size: number of ids.
        baselines: see `Baselines`.
        shared_documents: share of the validation documents that are training documents too; None where unknown, or
            without EOS tokens.
        shared_text: the same of stretches of 50 characters; None where unknown, or where no document is so long.
    """

    source: str
    splits: dict[str, dict[str, int]]
    vocab_size: int
    baselines: Baselines
    shared_documents: float | None = None
    shared_text: float | None = None

    def total(self, what: str) -> int:
        """The sum of one size, such as ``tokens``, over all splits."""
        return sum(split[what] for split in self.splits.values())

    @property
    def train_tokens(self) -> int:
        """Tokens of the training split."""
        return self.splits["train"]["tokens"]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the text for each token of it, EOS tokens left out."""
        eos = sum(split["eos_tokens"] + (split["eos_tokens"] > 0) for split in self.splits.values())
        return self.total("bytes") / max(self.total("tokens") - eos, 1)


def store_text_facts(folder: Path, tokenizer: Tokenizer) -> None:
    """Computes the facts of a new store and adds them to its ``meta.json``."""
    stores = {split: TokenStore(folder, split) for split in read_meta(folder)["splits"]}
    V = tokenizer.vocab_size
    facts: dict[str, Any] = {"vocab_size": V, "baselines": {"uniform": math.log(V)}}
    is_short = sum(map(len, stores.values())) <= MAX_TOKENS
    if "val" in stores and "train" in stores and is_short:
        facts["baselines"] = asdict(baselines(stores["train"], stores["val"], V))
        with progress("Comparing the splits", len(stores["train"])) as advance:
            shared = overlap(stores["train"], stores["val"], tokenizer, advance)
        facts |= {"shared_documents": shared.documents, "shared_text": shared.shingles}
    add_to_meta(folder, KEY, facts)


def has_text_facts(folder: Path) -> bool:
    """Whether `store_text_facts` has been there."""
    return KEY in read_meta(folder)


def read_text_facts(folder: Path) -> TextFacts:
    """The facts of a store."""
    meta = read_meta(folder)
    facts = dict(meta[KEY])
    return TextFacts(meta["source"], meta["splits"], baselines=Baselines(**facts.pop("baselines")), **facts)


def baselines(train: TokenStore, val: TokenStore, vocab_size: int) -> Baselines:
    """The losses of three models without parameters on the validation split (see `Baselines`)."""
    if len(val) < 2 or len(train) < 1:
        return Baselines(math.log(vocab_size))
    counts, targets = token_counts(train, vocab_size), token_counts(val, vocab_size)
    targets[val.tokens[0]] -= 1  # no token is before the first
    p = (counts + 1) / (counts.sum() + vocab_size)  # (V,)
    unigram = -float(targets @ np.log(p))
    bigram = sum(_bigram_nats(train, val, p, first) for first in _parts(counts))
    n = len(val) - 1
    return Baselines(math.log(vocab_size), unigram / n, bigram / n)


def _parts(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Divides the vocabulary into parts, so that the pairs whose first token is in a part fit into memory.

    Yields masks (V,). A pair is in the part of its first token. The number of different pairs that begin with a token
    is at most its count, and at most V.
    """
    most = np.cumsum(np.minimum(counts, len(counts)))
    part = most // _PAIRS
    for number in np.unique(part):
        yield part == number


def _bigram_nats(train: TokenStore, val: TokenStore, p: np.ndarray, first: np.ndarray) -> float:
    """The bigram's nats, summed over the validation targets after a token of the mask ``first`` (V,)."""
    V = len(p)
    pairs, counts = _count_pairs(train, first)  # sorted
    followed = np.bincount(pairs // V, counts, V)  # count(a), (V,)
    kinds = np.bincount(pairs // V, minlength=V)  # (V,)
    nats = 0.0
    for codes in _pair_codes(val, first):
        a, b = codes // V, codes % V
        count = _looked_up(codes, pairs, counts)
        seen = np.maximum(followed[a] + kinds[a], 1)
        nats -= float(np.log(np.where(kinds[a] > 0, (count + kinds[a] * p[b]) / seen, p[b])).sum())
    return nats


def _looked_up(codes: np.ndarray, pairs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The counts of pairs, 0 for those that are not among ``pairs``."""
    if not len(pairs):
        return np.zeros(len(codes))
    nearest = np.minimum(np.searchsorted(pairs, codes), len(pairs) - 1)
    return np.where(pairs[nearest] == codes, counts[nearest], 0)


def _count_pairs(store: TokenStore, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different pairs that begin with a token of the mask ``first``, sorted, and the count of each."""
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    waiting: list[np.ndarray] = []
    size = 0
    for codes in _pair_codes(store, first):
        waiting.append(codes)
        size += len(codes)
        if size >= _PAIRS:
            pairs, counts = _merged(pairs, counts, waiting)
            waiting, size = [], 0
    return _merged(pairs, counts, waiting)


def _merged(pairs: np.ndarray, counts: np.ndarray, waiting: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Adds the pairs that wait to those that are counted. Sorting millions at once is faster than a dictionary."""
    if not waiting:
        return pairs, counts
    new, new_counts = np.unique(np.concatenate(waiting), return_counts=True)
    if not len(pairs):
        return new, new_counts
    merged, place = np.unique(np.concatenate([pairs, new]), return_inverse=True)
    return merged, np.bincount(place, np.concatenate([counts, new_counts])).astype(np.int64)


def _pair_codes(store: TokenStore, first: np.ndarray) -> Iterator[np.ndarray]:
    """Each pair of neighbours ab as the number a V + b, in chunks; only pairs whose a is in the mask ``first``."""
    V, all_of_them = len(first), bool(first.all())
    for start in range(0, len(store) - 1, _CHUNK):
        ids = store.tokens[start : start + _CHUNK + 1]  # one more: the second token of the last pair
        a, b = ids[:-1], ids[1:]
        if not all_of_them:
            chosen = first[a]
            a, b = a[chosen], b[chosen]
        yield a.astype(np.int64) * V + b
