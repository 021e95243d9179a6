"""The nearest right name for a wrong one."""

import difflib
from collections.abc import Iterable

from datamodules.errors import UserError


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """The sentence for a name that does not exist, with the nearest that does."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known[:12])}."
    return UserError(f"{kind} {given!r} is unknown: {hint}")
