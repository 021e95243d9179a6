"""Byte-level Unigram: the likeliest segmentation under a table of token probabilities, or a sampled one."""

import json
import math
from array import array
from bisect import bisect
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.tokenizers.base import Ids, check_unicode
from datamodules.tokenizers.byte_level import ByteLevelTokenizer, huggingface_state, to_visible

if TYPE_CHECKING:
    import tokenizers

#: For every end of a token in one word: the (start, id) of the tokens that end there, and their cumulative weights.
_Lattice = list[tuple[list[tuple[int, int]], list[float]]]
_CACHED_WORDS = 1 << 16
#: Makes a special mark the worst of all ways through its own name, which every text may contain.
_NEVER = -1e9


class UnigramTokenizer(ByteLevelTokenizer):
    """Byte-level Unigram (Kudo 2018), run by the `tokenizers` library.

    Args:
        tokens: as for `ByteLevelTokenizer`.
        pattern: likewise.
        specials: likewise.
        eos: likewise.
        scores: log-probability of each id; that of a special mark has no meaning.
    """

    def __init__(
        self, tokens: list[str], pattern: str, specials: dict[str, int], eos: str | None, scores: list[float]
    ) -> None:
        super().__init__(tokens, pattern, specials, eos)
        self.scores = scores
        self._lattices: dict[tuple[str, float], _Lattice] = {}

    def sample(self, text: str, rng: np.random.Generator, alpha: float = 0.2) -> list[int]:
        """Ids of a segmentation drawn with probability proportional to (its likelihood) ** ``alpha``.

        Subword regularisation (Kudo 2018), drawn exactly: weights are summed forwards over all segmentations of a
        word, tokens drawn backwards. The text is that of ``encode``, the ids vary.

        Args:
            text: any text.
            rng: the only source of chance, so equal states give equal ids.
            alpha: 0 draws all segmentations alike; 1 follows the model; large ones give the ids of ``encode``.
        """
        check_unicode(text)
        words = self._library.pre_tokenizer.pre_tokenize_str(text)
        return [token_id for word, _ in words for token_id in self._draw(self._lattice(word, alpha), rng)]

    def to_dict(self) -> dict[str, Any]:
        """See `ByteLevelTokenizer`; with the scores."""
        return {"kind": "unigram", **super().to_dict(), "scores": self.scores}

    def huggingface_model(self) -> dict[str, Any]:
        """The ``model`` of a Hugging Face ``tokenizer.json``."""
        names = [self._name_by_id.get(i) for i in range(self.vocab_size)]
        scored = zip(names, self.tokens, self.scores, strict=True)
        vocab = [[name or to_visible(token), _NEVER if name else score] for name, token, score in scored]
        return {"type": "Unigram", "unk_id": None, "vocab": vocab, "byte_fallback": False}

    def _encode_short(self, text: str) -> Ids:
        ids = self._library.encode(text, add_special_tokens=False).ids
        return np.frombuffer(array("I", ids), np.uint32)  # `array` takes a list of ints 3 times faster than numpy does

    def _lattice(self, word: str, alpha: float) -> _Lattice:
        """All segmentations of one word of visible bytes, kept for the next time: words repeat."""
        key = (word, alpha)
        if key not in self._lattices:
            if len(self._lattices) == _CACHED_WORDS:
                self._lattices.clear()
            self._lattices[key] = self._build_lattice(word, alpha)
        return self._lattices[key]

    def _build_lattice(self, word: str, alpha: float) -> _Lattice:
        lattice: _Lattice = []
        log_total = [0.0]  # log of the summed weights of all ways to each position
        for end in range(1, len(word) + 1):
            edges, logs = [], []
            for start in range(max(0, end - self._longest), end):
                if (token_id := self._id_by_visible.get(word[start:end])) is not None:
                    edges.append((start, token_id))
                    logs.append(log_total[start] + alpha * self.scores[token_id])
            highest = max(logs)  # never empty: each byte is a token. Subtracted so that long words do not underflow
            cumulative = list(accumulate(math.exp(log - highest) for log in logs))
            lattice.append((edges, cumulative))
            log_total.append(highest + math.log(cumulative[-1]))
        return lattice

    @staticmethod
    def _draw(lattice: _Lattice, rng: np.random.Generator) -> list[int]:
        ids, end = [], len(lattice)
        while end:
            edges, cumulative = lattice[end - 1]
            end, token_id = edges[0] if len(edges) == 1 else edges[bisect(cumulative, rng.random() * cumulative[-1])]
            ids.append(token_id)
        return ids[::-1]

    @cached_property
    def _id_by_visible(self) -> dict[str, int]:
        return {to_visible(token): token_id for token_id, token in enumerate(self.tokens) if token}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.tokens))

    @cached_property
    def _library(self) -> "tokenizers.Tokenizer":
        import tokenizers

        state = huggingface_state(self.huggingface_model(), self.pattern, specials={})
        return tokenizers.Tokenizer.from_str(json.dumps(state))
