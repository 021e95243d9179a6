"""A corpus that needs no download: the documentation inside the running Python."""

from datamodules.errors import UserError

#: Shorter lines may repeat. They are `else:` and `}` of code examples, which would be broken without them.
_SHORT_LINE = 20


def corpus() -> str:
    """The topics of `help()`, sorted, without repeated paragraphs and without repeated lines of 20 characters or more.

    Topics quote one another. Of the last tenth, 11 % of the 50-character stretches also occur before it; without
    repetitions 0.4 % do. CPython 3.11.7 gives 357,713 characters; other versions differ, so figures name the version.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError("this Python has no pydoc_data, which `embedded` is read from; give another source.") from None
    paragraphs: list[str] = []
    seen_paragraphs: set[str] = set()
    seen_lines: set[str] = set()
    for topic in sorted(topics):
        for paragraph in topics[topic].split("\n\n"):
            if paragraph not in seen_paragraphs:
                unseen = _unseen_lines(paragraph, seen_lines).strip("\n")
                if unseen.strip() and unseen not in seen_paragraphs:
                    paragraphs.append(unseen)
                seen_paragraphs |= {paragraph, unseen}
    return "\n\n".join(paragraphs) + "\n"


def _unseen_lines(paragraph: str, seen: set[str]) -> str:
    """``paragraph`` without the long lines in ``seen``, to which its lines are added."""
    lines = []
    for line in paragraph.split("\n"):
        if len(line) < _SHORT_LINE or line not in seen:
            lines.append(line)
        seen.add(line)
    return "\n".join(lines)
