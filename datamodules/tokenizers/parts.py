"""The parts of a token's spelling that it shares with others: the word, its capitals, its first and last letters."""

from collections import Counter
from collections.abc import Hashable, Iterator

from datamodules.tokenizers.base import Tokenizer

#: Number of letters at the beginning and at the end of a longer word that are a part of it.
FIRST, LAST = 4, 2


def token_parts(tokenizer: Tokenizer) -> list[list[int]]:
    """For each id the numbers, from 1 on, of the parts that its token shares with others; at most 4.

    The parts are the word in small letters without the space before it, how it is written (space, first letter a
    capital, all capitals), its first 4 letters and its last 2. A token that is a part of a character has none.
    """
    parts_of = [list(_parts(tokenizer.token_bytes(i))) for i in range(tokenizer.vocab_size)]
    tokens = Counter(part for parts in parts_of for part in parts)
    numbers: dict[Hashable, int] = {}
    return [[numbers.setdefault(part, len(numbers) + 1) for part in parts if tokens[part] > 1] for parts in parts_of]


def _parts(token: bytes) -> Iterator[Hashable]:
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return
    spelled = text.removeprefix(" ") or text
    word = spelled.lower()
    yield "word", word
    yield "form", spelled != text, _capitals(spelled)
    if len(word) > FIRST:
        yield "first", word[:FIRST]
    if len(word) > LAST:
        yield "last", word[-LAST:]


def _capitals(word: str) -> str:
    if len(word) > 1 and word.isupper():
        return "all"
    if word[:1].isupper():
        return "first"
    return "none" if word.isalpha() else "no letters"
