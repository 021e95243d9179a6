"""Suggests the nearest known name for an unknown one."""

import difflib
from collections.abc import Iterable

from datamodules.errors import UserError


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known[:12])}."
    return UserError(f"{kind} {name!r} is unknown: {hint}")
