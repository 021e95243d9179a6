r"""The size of the text that an evaluation scores: the denominators of bits per byte and nats per character.

Text is counted after normalisation (see `reading`): UTF-8, without a byte order mark, with ``\n`` for every line end. A
file with ``\r\n`` has more bytes. A loss divided by those would look lower, for characters that no model saw.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from datamodules.tokenizers import Tokenizer
from datamodules.tokens import TokenStore

#: Stands for the token before the first one of a text without EOS tokens.
_NO_TOKEN = -1


@dataclass(frozen=True)
class ScoredText:
    """The size of the text that one evaluation of a split scores.

    Attributes:
        tokens: number of scored targets, EOS tokens included.
        chars: characters of the normalised text, with one newline for each EOS token. No tokenizer changes it.
        bytes: the same in bytes of UTF-8.
        eos_tokens: number of scored EOS tokens.
    """

    tokens: int
    chars: int
    bytes: int
    eos_tokens: int


def scored_split(store: TokenStore, tokenizer: Tokenizer) -> ScoredText:
    """The size of a whole split: every token is a target but the first, which has no token before it."""
    counts, eos_tokens = store.counts, store.counts.eos_tokens
    if eos_tokens:  # the first token is an EOS token, and no text
        return ScoredText(counts.tokens - 1, counts.chars + eos_tokens, counts.bytes + eos_tokens, eos_tokens)
    first = scored_targets([(np.array([_NO_TOKEN]), store.tokens[:1])], tokenizer)
    return ScoredText(counts.tokens - 1, counts.chars - first.chars, counts.bytes - first.bytes, 0)


def scored_targets(pairs: Iterable[tuple[np.ndarray, np.ndarray]], tokenizer: Tokenizer) -> ScoredText:
    """The size of the text of some targets.

    The bytes of the tokens add up to those of the text. The characters of a text are its bytes that begin one.

    Args:
        pairs: for each part the ids before the targets, (n,), and the targets, (n,). The id before tells where a
            document begins: the space that a tokenizer with ``prefix_space`` puts there is no text.
        tokenizer: the tokenizer of the ids.
    """
    eos = _NO_TOKEN if tokenizer.eos_id is None else tokenizer.eos_id
    used, spaces = np.zeros(tokenizer.vocab_size, np.int64), 0
    for before, targets in pairs:
        used += np.bincount(targets, minlength=len(used))
        begins = ((before == eos) | (before == _NO_TOKEN)) & (targets != eos)
        spaces += tokenizer.prefix_space * int(np.count_nonzero(begins))
    tokens, eos_tokens = int(used.sum()), 0
    if tokenizer.eos_id is not None:
        eos_tokens, used[tokenizer.eos_id] = int(used[tokenizer.eos_id]), 0
    chars, size = size_of_tokens(used, tokenizer)
    return ScoredText(tokens, chars + eos_tokens - spaces, size + eos_tokens - spaces, eos_tokens)


def size_of_tokens(used: np.ndarray, tokenizer: Tokenizer) -> tuple[int, int]:
    """Characters and bytes of a text in which each id occurs ``used[id]`` times, (V,)."""
    chars = size = 0
    for token_id in np.flatnonzero(used).tolist():
        token = tokenizer.token_bytes(token_id)
        size += len(token) * int(used[token_id])
        chars += sum(byte & 0xC0 != 0x80 for byte in token) * int(used[token_id])
    return chars, size
