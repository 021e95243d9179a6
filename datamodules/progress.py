"""Progress of long work, on stderr: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINE_EVERY = 10.0  # seconds between two lines when there is no terminal


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows progress inside a block, which calls the yielded function with each amount of work that is done.

    Args:
        what: the name of the work, one word or two.
        total: the amount of all work, in any unit.
    """
    if sys.stderr.isatty():
        from rich.console import Console  # 40 ms, which most commands do without
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda amount: bar.advance(task, amount)
    else:
        yield _lines(what, total)


def _lines(what: str, total: int) -> Callable[[int], None]:
    done, next_line = 0, time.monotonic() + _LINE_EVERY

    def advance(amount: int) -> None:
        """Adds to the amount that is done, and prints a line if the last one is ten seconds old."""
        nonlocal done, next_line
        done += amount
        if time.monotonic() > next_line:
            next_line += _LINE_EVERY
            print(f"{what}: {done / max(total, 1):.0%}", file=sys.stderr, flush=True)

    return advance
