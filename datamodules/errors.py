"""The one exception that a person at the keyboard can cause."""


class UserError(ValueError):
    """A wrong input, in one sentence: the thing, the value and the fix. The command line prints it and exits with 2."""


def check_at_least(least: int, name: str, value: float | None) -> None:
    """Refuse a number that is too small; None is no number, and passes.

    Raises:
        UserError: names the option.
    """
    if value is not None and value < least:
        raise UserError(f"{name} is {value}: give at least {least}.")
