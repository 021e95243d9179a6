"""Byte-level Unigram: the most likely segmentation under token probabilities. See `sampling` for sampled ones."""

import math
from array import array
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.errors import UserError
from datamodules.reading import cut
from datamodules.tokenizers.base import Ids, check_unicode
from datamodules.tokenizers.byte_level import (
    LONGEST,
    ByteLevelTokenizer,
    huggingface_state,
    library_tokenizer,
    to_visible,
)

if TYPE_CHECKING:
    import tokenizers

#: The score of a special token in the library: so low that its name in a text is never encoded as the special token.
_NEVER = -1e9


class UnigramTokenizer(ByteLevelTokenizer):
    """Byte-level Unigram (Kudo 2018), run by the `tokenizers` library.

    Args:
        tokens: as for `ByteLevelTokenizer`.
        pattern: as for `ByteLevelTokenizer`.
        specials: as for `ByteLevelTokenizer`.
        eos: as for `ByteLevelTokenizer`.
        scores: log-probability of each id; that of a special token is not used.
        prefix_space: as for `ByteLevelTokenizer`.
    """

    def __init__(
        self,
        tokens: list[str],
        pattern: str,
        specials: dict[str, int],
        eos: str | None,
        scores: list[float],
        prefix_space: bool = False,
    ) -> None:
        super().__init__(tokens, pattern, specials, eos, prefix_space)
        if len(scores) != len(tokens):
            raise UserError(f"the vocabulary has {len(tokens)} tokens and {len(scores)} scores, which must be as many.")
        if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
            raise UserError("the vocabulary has scores that are no finite numbers.")
        self.scores = scores

    def words(self, text: str) -> list[str]:
        """The words of ``text``, which no token crosses, with a visible character for each byte."""
        check_unicode(text)
        split = self._library.pre_tokenizer.pre_tokenize_str
        return [word for piece in cut([self.prefixed(text)], LONGEST) for word, _ in split(piece.text)]

    def to_dict(self) -> dict[str, Any]:
        """See `Tokenizer`."""
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

    @cached_property
    def scores_by_visible(self) -> dict[str, tuple[int, float]]:
        """Id and log-probability of each token but special ones, by its visible form."""
        table = enumerate(zip(self.tokens, self.scores, strict=True))
        return {to_visible(token): (token_id, score) for token_id, (token, score) in table if token}

    @cached_property
    def _library(self) -> "tokenizers.Tokenizer":
        return library_tokenizer(huggingface_state(self.huggingface_model(), self.pattern, specials={}))
