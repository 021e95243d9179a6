"""The exception for mistakes of a user, and sentences for errors of the operating system."""

import errno
from pathlib import Path

#: Errors for want of space: on the disk, in a quota, under a limit of file sizes.
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
#: Errors of the system with a cause outside of this program. Any other OSError keeps its traceback: it may be a bug.
REFUSALS = FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    errno.EEXIST,  # of a mkdir that allows a folder: something else has that name
}


class UserError(ValueError):
    """A mistake of the user. Its message is one sentence with the thing, the value and the fix.

    The command line prints the message without a traceback and exits with status 2.
    """


class DisagreementError(UserError):
    """The processes of a run differ in what must be equal. All of them raise it, and the first one prints it.

    Args:
        message: the sentence.
        is_first: whether this is process 0.
    """

    def __init__(self, message: str, is_first: bool = True) -> None:
        super().__init__(message)
        self.is_first = is_first


def check_at_least(least: int, name: str, value: float | None) -> None:
    """Checks that a number is not too small and not NaN. None passes: the option is not set.

    Raises:
        UserError: names the option.
    """
    if value is not None and not value >= least:
        raise UserError(f"{name} is {value}: give at least {least}.")


def is_refusal(error: object) -> bool:
    """Whether the error has a cause that only the user can remove, such as a full disk."""
    return isinstance(error, OSError) and error.errno in REFUSALS


def refusal(error: OSError, path: str | Path | None = None) -> UserError:
    """The one-sentence error for an error of the system.

    Args:
        error: the error.
        path: the file, where the error does not name it: an error of a write does not.
    """
    thing = path or error.filename or "a file or the output"
    fix = "free some room or choose another place" if error.errno in FULL else "mend that or choose another place"
    cause = "a file, where a folder is needed" if error.errno == errno.EEXIST else error.strerror
    return UserError(f"{thing} cannot be used ({cause}): {fix}.")
