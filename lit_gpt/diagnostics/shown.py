"""Tokens as people read them: parts of one character are shown together, and control characters are escaped."""

from itertools import accumulate

import regex  # type: ignore[import-untyped]

_JOINER = "\u200d"
_RETURN = "\u23ce\n"  # the sign, and the line end itself


def cells(pieces: list[bytes]) -> list[tuple[str, list[int]]]:
    """Group the tokens of a text into whole characters: what is shown, and the positions of the tokens.

    A character is what a reader takes for one (a grapheme cluster): a letter with its accents, an emoji of several
    parts.
    """
    data = b"".join(pieces)
    characters = regex.findall(r"\X", data.decode("utf-8", "surrogateescape"))
    ends = {0, *accumulate(len(character.encode("utf-8", "surrogateescape")) for character in characters)}
    result: list[tuple[str, list[int]]] = []
    begin, tokens = 0, []
    for position, end in enumerate(accumulate(map(len, pieces))):
        tokens.append(position)
        if end in ends:
            result.append(("".join(map(_visible, data[begin:end].decode("utf-8", "replace"))), tokens))
            begin, tokens = end, []
    return result


def _visible(character: str) -> str:
    if character == "\n":
        return _RETURN
    return character if character == _JOINER else printable(character)


def printable(text: str) -> str:
    """A text whose control characters and lone surrogates are escaped, so that none acts on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
