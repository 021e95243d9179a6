"""Subword regularization (Kudo 2018): samples segmentations of a text into tokens of a unigram tokenizer."""

import math
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, islice

import numpy as np

from datamodules.tokenizers.unigram import UnigramTokenizer

#: For every position in a word: the (start, id) of the tokens that end there, and their cumulative weights.
Lattice = list[tuple[list[tuple[int, int]], list[float]]]
_EOS_WORD = ""  # the EOS token as a word; no text has an empty word
_WORDS_AT_ONCE = 1 << 18  # limits the memory that a draw needs besides its result


class SampledTexts:
    """Texts whose segmentations are sampled, each with a probability proportional to its likelihood ** ``alpha``.

    Samples are exact (forward filtering, backward sampling): weights are summed forwards over all segmentations of a
    word, once and for all, and tokens are drawn backwards, for all words in parallel. 90,000 titles
    (910,000 words, 73,000 different ones) take 5 to 7 s to set up and 0.5 s a draw on one core. Memory is 4 bytes for
    each word, about 400 for each different word, and 4 for each token of the draw.

    Args:
        tokenizer: has the tokens and their probabilities.
        texts: the texts, read once.
        alpha: near 0, all segmentations are equally likely. At 1 they follow the model. A large one gives the ids of
            ``encode``.
    """

    def __init__(self, tokenizer: UnigramTokenizer, texts: Iterable[str], alpha: float) -> None:
        self.eos_id = tokenizer.eos_id
        number = {_EOS_WORD: 0}
        words, firsts = array("i"), array("q")
        eos = [] if tokenizer.eos_id is None else [0]
        for text in texts:
            firsts.append(len(words))
            words.extend(eos)
            words.extend(number.setdefault(word, len(number)) for word in tokenizer.words(text))
        firsts.append(len(words))
        words.extend(eos)
        self._words, self._firsts = np.array(words), np.array(firsts)
        only_eos: Lattice = [([(0, tokenizer.eos_id or 0)], [1.0])]
        self._graph = _Graph(chain([only_eos], _lattices(islice(number, 1, None), tokenizer, alpha)))

    def draw(self, *entropy: int) -> tuple[np.ndarray, np.ndarray]:
        """A sampled segmentation of all texts, in the layout of a token store: ids (n,) and starts (texts + 1,).

        Args:
            entropy: integers that decide the draw.
        """
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        parts = [
            self._graph.draw(self._words[start : start + _WORDS_AT_ONCE], rng)
            for start in range(0, len(self._words), _WORDS_AT_ONCE)
        ]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([lengths for _, lengths in parts]))])
        return np.concatenate([ids for ids, _ in parts]), offsets[self._firsts]


def _lattices(words: Iterable[str], tokenizer: UnigramTokenizer, alpha: float) -> Iterator[Lattice]:
    scores = tokenizer.scores_by_visible
    longest = max(map(len, scores))
    return (_lattice(word, scores, longest, alpha) for word in words)


def _lattice(word: str, scores: dict[str, tuple[int, float]], longest: int, alpha: float) -> Lattice:
    """All segmentations of a word into the tokens of a table of ids and log-probabilities."""
    lattice: Lattice = []
    log_total = [0.0]  # log of the summed weights of all segmentations up to each position
    for end in range(1, len(word) + 1):
        edges, logs = [], []
        for start in range(max(0, end - longest), end):
            if (token := scores.get(word[start:end])) is not None:
                edges.append((start, token[0]))
                logs.append(log_total[start] + alpha * token[1])
        highest = max(logs)  # not empty: each byte is a token. Subtracted, as weights of long words would underflow
        cumulative = list(accumulate(math.exp(log - highest) for log in logs))
        lattice.append((edges, cumulative))
        log_total.append(highest + math.log(cumulative[-1]))
    return lattice


class _Graph:
    """Many lattices in flat arrays: a node for each position in each word, an edge for each token that ends there.

    An edge's key is its node's number plus its cumulative probability there. So one binary search for node + random
    number, over the keys of all edges, samples an edge of each node.
    """

    def __init__(self, lattices: Iterable[Lattice]) -> None:
        ends, edges, sources, tokens, shares = array("q"), array("q"), array("q"), array("I"), array("d")
        for lattice in lattices:
            first = len(edges)
            edges.append(0)  # no token ends where the word starts
            for candidates, total in lattice:
                edges.append(len(candidates))
                sources.extend(first + start for start, _ in candidates)
                tokens.extend(token_id for _, token_id in candidates)
                shares.extend(weight / total[-1] for weight in total)
            ends.append(len(edges) - 1)
        self._end_node, self._source, self._token = np.array(ends), np.array(sources), np.array(tokens)
        self._first_edge = np.concatenate([[0], np.cumsum(edges)])
        self._key = np.repeat(np.arange(len(edges)), edges) + np.array(shares)

    def draw(self, words: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A sampled segmentation of each word (n,): all ids in order, and the number of ids of each word (n,)."""
        which, node = np.arange(len(words)), self._end_node[words]
        length = np.zeros(len(words), np.int64)
        steps = []
        while len(which):
            edge = np.searchsorted(self._key, node + rng.random(len(node)))
            edge = np.maximum(edge, self._first_edge[node])  # rounding may lose a random number near 0
            steps.append((which, self._token[edge]))
            length[which] += 1
            node = self._source[edge]
            inside = self._first_edge[node] < self._first_edge[node + 1]
            which, node = which[inside], node[inside]
        end = np.cumsum(length)
        ids = np.empty(end[-1] if len(end) else 0, np.uint32)
        for step, (which, token) in enumerate(steps, 1):
            ids[end[which] - step] = token
        return ids, length
