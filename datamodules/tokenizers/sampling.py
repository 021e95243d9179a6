"""Subword regularisation: the same text in other tokens each time it is read (Kudo 2018)."""

import math
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, islice

import numpy as np

from datamodules.tokenizers.unigram import UnigramTokenizer

#: For every end of a token in one word: the (start, id) of the tokens that end there, and their cumulative weights.
Lattice = list[tuple[list[tuple[int, int]], list[float]]]
_END_MARK = ""  # a word of its own, which no text has
_WORDS_AT_ONCE = 1 << 18  # bounds what a draw needs besides its result


class SampledTexts:
    """Texts of which each draw gives other segmentations, with probability proportional to (likelihood) ** ``alpha``.

    The draws are exact: weights are summed forwards over all segmentations of a word once, here, and tokens are drawn
    backwards, for all words side by side. 90,000 titles (910,000 words, 73,000 different ones) take 5 to 7 s to set up
    and 0.5 s a draw on one core; memory is 4 bytes a word, about 400 a different word, and 4 a token of the draw.

    Args:
        tokenizer: whose tokens and probabilities are used.
        texts: read once.
        alpha: near 0, all segmentations are about alike; 1 follows the model; large ones give the ids of ``encode``.
    """

    def __init__(self, tokenizer: UnigramTokenizer, texts: Iterable[str], alpha: float) -> None:
        self.eos_id = tokenizer.eos_id
        number = {_END_MARK: 0}
        words, firsts = array("i"), array("q")
        mark = [] if tokenizer.eos_id is None else [0]
        for text in texts:
            firsts.append(len(words))
            words.extend(mark)
            words.extend(number.setdefault(word, len(number)) for word in tokenizer.words(text))
        firsts.append(len(words))
        words.extend(mark)
        self._words, self._firsts = np.array(words), np.array(firsts)
        mark_alone: Lattice = [([(0, tokenizer.eos_id or 0)], [1.0])]
        self._graph = _Graph(chain([mark_alone], _lattices(islice(number, 1, None), tokenizer, alpha)))

    def draw(self, *entropy: int) -> tuple[np.ndarray, np.ndarray]:
        """The texts as a token store lays them out: ids (n,), and where each text starts and the last one ends.

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
    log_total = [0.0]  # log of the summed weights of all ways to each position
    for end in range(1, len(word) + 1):
        edges, logs = [], []
        for start in range(max(0, end - longest), end):
            if (token := scores.get(word[start:end])) is not None:
                edges.append((start, token[0]))
                logs.append(log_total[start] + alpha * token[1])
        highest = max(logs)  # never empty: each byte is a token. Subtracted so that long words do not underflow
        cumulative = list(accumulate(math.exp(log - highest) for log in logs))
        lattice.append((edges, cumulative))
        log_total.append(highest + math.log(cumulative[-1]))
    return lattice


class _Graph:
    """Many lattices in flat arrays: a node for each place in each word, an edge for each token that ends there.

    An edge's key is its node's number plus its cumulative probability there, so one sorted search over all edges finds
    a random edge of every node that is asked for.
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
        """One segmentation of each word (n,): all ids in order, and how many each word has (n,)."""
        which, node = np.arange(len(words)), self._end_node[words]
        length = np.zeros(len(words), np.int64)
        steps = []
        while len(which):
            edge = np.searchsorted(self._key, node + rng.random(len(node)))
            edge = np.maximum(edge, self._first_edge[node])  # a random number near 0 is lost beside a large node number
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
