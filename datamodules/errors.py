"""The one exception that a person at the keyboard can cause, and what the system refuses."""

import errno
from pathlib import Path

#: No room is left: on the disk, in a quota, under a limit of file sizes.
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
#: What a system refuses for reasons outside of this program. Any other OSError keeps its traceback: it may be a bug.
REFUSALS = FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


class UserError(ValueError):
    """A wrong input, in one sentence: the thing, the value and the fix. The command line prints it and exits with 2."""


def check_at_least(least: int, name: str, value: float | None) -> None:
    """Refuse a number that is too small or NaN; None is no number, and passes.

    Raises:
        UserError: names the option.
    """
    if value is not None and not value >= least:
        raise UserError(f"{name} is {value}: give at least {least}.")


def is_refusal(error: object) -> bool:
    """Whether the system refused something that only a person can mend, such as to write on a full disk."""
    return isinstance(error, OSError) and error.errno in REFUSALS


def refusal(error: OSError, path: str | Path | None = None) -> UserError:
    """One sentence for what the system refused.

    Args:
        error: what it raised.
        path: of what, where the error does not know it: a failed write has no name.
    """
    thing = path or error.filename or "a file or the output"
    fix = "free some room or choose another place" if error.errno in FULL else "mend that or choose another place"
    return UserError(f"{thing} cannot be used ({error.strerror}): {fix}.")
