"""The one exception that a person at the keyboard can cause."""


class UserError(ValueError):
    """A wrong input, in one sentence: the thing, the value and the fix. The command line prints it and exits with 2."""
