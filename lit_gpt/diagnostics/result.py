"""What a check of `lit_gpt.diagnostics.doctor` finds, and the decorator that makes a function a check."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

State = Literal["pass", "FAIL", "not applicable"]
#: What a check says of a training set-up: whether it is right, and what was measured.
Outcome = tuple[bool, str]


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        check: Name of the check.
        state: pass, FAIL, or not applicable.
        measured: What was measured, or why the check does not apply.
        why: Why it matters.
        option: What to change.
    """

    check: str
    state: State
    measured: str
    why: str
    option: str


class NotApplicableError(Exception):
    """Raised in a check that has nothing to check; the message says why."""


Check = Callable[[Any], Result]
#: All checks in the order of the table: those of a fresh module, and those that follow the short run.
AT_START: list[Check] = []
AFTER_RUN: list[Check] = []


def check(name: str, option: str, checks: list[Check] = AT_START) -> Callable[[Any], Check]:
    """Make a function of a `Subject` a check of the table; its docstring says why it matters.

    An exception in it is a failure.

    Args:
        name: The check's name in the table.
        option: What to change where it fails.
        checks: The list to add it to.
    """

    def decorate(function: Callable[[Any], Outcome]) -> Check:
        why = " ".join((function.__doc__ or "").split())

        @wraps(function)
        def run(subject: Any) -> Result:
            try:
                right, measured = function(subject)
            except NotApplicableError as reason:
                return Result(name, "not applicable", str(reason), why, option)
            except Exception as error:  # whatever is wrong with the set-up
                right, measured = False, described(error)
            return Result(name, "pass" if right else "FAIL", measured, why, option)

        vars(run)["check"] = name
        checks.append(run)
        return run

    return decorate


def described(error: BaseException) -> str:
    """An exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def listed(names: list[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
