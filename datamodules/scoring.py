r"""How much text an evaluation scores: the denominators of bits per byte and nats per character.

Text is counted as it is read (see `reading`): UTF-8, without a byte order mark, with ``\n`` for every line end. A file
with ``\r\n`` has more bytes than that. Divided by them the loss would look lower, for characters that no model saw.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from datamodules.tokenizers import Tokenizer
from datamodules.tokens import TokenStore

#: Stands before the first token of a text that no end mark precedes.
BEGINNING = -1


@dataclass(frozen=True)
class ScoredText:
    r"""What one evaluation pass scores: ``tokens`` targets, ``end_marks`` of them end marks, and the text behind them.

    ``chars`` and ``bytes`` (UTF-8) are of the normalised text (no byte order mark, line ends ``\n``), before any
    tokenizer, with one newline for each end mark. ``coverage`` is the share of the split that the headline challenge's
    original convention would score (see `challenge_coverage`), or None.
    """

    tokens: int
    chars: int
    bytes: int
    eos_tokens: int
    coverage: float | None = None


def challenge_coverage(tokens: int, step: int) -> float:
    """Share of a split of ``tokens`` that the original convention of the headline challenge scores.

    It takes whole spans of ``step`` targets (a batch), each one token further than the end of the last, and leaves out
    the rest: with a large enough batch, everything.
    """
    return tokens // (step + 1) * step / tokens


def scored_split(store: TokenStore, tokenizer: Tokenizer) -> ScoredText:
    """A whole split: every token but the first, before which nothing comes, counted in the text as it was read."""
    counts, marks = store.counts, store.counts.eos_tokens
    if marks:  # the first token is a mark, and no text
        return ScoredText(counts.tokens - 1, counts.chars + marks, counts.bytes + marks, marks)
    first = scored_targets([(np.array([BEGINNING]), store.tokens[:1])], tokenizer)
    return ScoredText(counts.tokens - 1, counts.chars - first.chars, counts.bytes - first.bytes, 0)


def scored_targets(pairs: Iterable[tuple[np.ndarray, np.ndarray]], tokenizer: Tokenizer) -> ScoredText:
    """Some targets (n,), token by token: sizes of tokens add up to the text's, and so do first bytes of characters.

    With each come the ids before them (n,), an end mark or `BEGINNING` where a document begins: the space that a
    tokenizer with ``prefix_space`` puts there is no text.
    """
    eos = BEGINNING if tokenizer.eos_id is None else tokenizer.eos_id
    used, spaces = np.zeros(tokenizer.vocab_size, np.int64), 0
    for before, part in pairs:
        used += np.bincount(part, minlength=len(used))
        begins = ((before == eos) | (before == BEGINNING)) & (part != eos)
        spaces += tokenizer.prefix_space * int(np.count_nonzero(begins))
    chars = size = -spaces
    for token_id in np.flatnonzero(used).tolist():
        token = b"\n" if token_id == tokenizer.eos_id else tokenizer.token_bytes(token_id)
        size += len(token) * int(used[token_id])
        chars += sum(byte & 0xC0 != 0x80 for byte in token) * int(used[token_id])
    marks = 0 if tokenizer.eos_id is None else int(used[tokenizer.eos_id])
    return ScoredText(int(used.sum()), chars, size, marks)
