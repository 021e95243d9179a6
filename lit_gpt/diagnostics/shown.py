"""Tokens as people read them: parts of one character are shown together, and control characters are escaped."""

import unicodedata

_JOINER = "\u200d"
_RETURN = "\u23ce\n"  # the sign, and the line end itself


def cells(pieces: list[bytes]) -> list[tuple[str, list[int]]]:
    """Group the tokens of a text into whole characters: what is shown, and the positions of the tokens.

    A mark that combines with the character before it stays with it.
    """
    result: list[tuple[str, list[int]]] = []
    rest = b""
    tokens: list[int] = []
    for position, piece in enumerate(pieces):
        rest, tokens = rest + piece, [*tokens, position]
        if _is_whole(rest) or position == len(pieces) - 1:
            text = rest.decode("utf-8", errors="replace")
            before, members = result.pop() if result and _joins(result[-1][0], text) else ("", [])
            result.append((before + text, members + tokens))
            rest, tokens = b"", []
    return [("".join(map(_visible, text)), tokens) for text, tokens in result]


def _is_whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _joins(before: str, text: str) -> bool:
    """Whether a text continues the character before it: a combining mark, or a part of an emoji or a flag."""
    last, first = before[-1:], text[:1]
    if not last or not first or last.isspace():
        return False
    is_modifier = first == _JOINER or "\U0001f3fb" <= first <= "\U0001f3ff"
    is_flag = all("\U0001f1e6" <= c <= "\U0001f1ff" for c in (last, first))
    return unicodedata.category(first).startswith("M") or is_modifier or last == _JOINER or is_flag


def _visible(character: str) -> str:
    if character == "\n":
        return _RETURN
    return character if character.isprintable() or character == _JOINER else character.encode("unicode_escape").decode()
