"""Runs that are killed at each point and at any moment, and resumed, against straight ones: the same end to the bit?"""

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.faults.harness import RIGHT, Trial, WrongError, finish, start, typed
from benchmarks.faults.points import Event, events_of, kill_at, record
from benchmarks.faults.tiny import Setup, differences, leftovers, newest, pairwise, straight, write_texts

#: How often each point is tried, at least where it occurs that often.
EACH = 5


@dataclass(frozen=True)
class Base:
    """A straight run: its command line, its folder, the seconds that it took and its events."""

    setup: Setup
    arguments: list[str]
    folder: Path
    seconds: float
    events: list[Event]


def make_base(setup: Setup, folder: Path) -> Base:
    """Run it once, in ``folder``."""
    texts, back = write_texts(folder), Path.cwd()
    arguments = setup.arguments(texts[setup.rows != "windows"])
    (folder / "work").mkdir()
    os.chdir(folder / "work")
    began = time.monotonic()
    straight(arguments, record(folder / "events"))
    seconds = time.monotonic() - began
    os.chdir(back)
    return Base(setup, arguments, newest(folder / "work"), seconds, events_of(folder / "events"))


def trials(root: Path, quick: bool, rng: random.Random) -> Iterator[Trial]:
    """Injected kills, each point `EACH` times over all setups, and kills at random moments, up to three in a row."""
    setups = pairwise()
    bases = []
    for number, setup in enumerate(setups[:3] if quick else setups):
        (folder := root / f"kills{number}").mkdir(parents=True)
        bases.append(make_base(setup, folder))
    points: dict[Event, list[tuple[Base, int]]] = defaultdict(list)
    for base in bases:
        for number, event in enumerate(base.events):
            points[event].append((base, number))
    for event, places in sorted(points.items()):
        for base, number in _spread(places, 1 if quick else EACH, rng):
            name = f"{event} (event {number}): {base.setup.name}"
            yield Trial("kills at each point", name, partial(_killed, base, [kill_at(number)]))
    for number in range(8 if quick else 200):
        base = bases[number % len(bases)]
        times = [rng.uniform(0, base.seconds * 0.9) for _ in range(rng.choice((1, 1, 2, 3)))]
        name = f"after {', '.join(f'{t:.3f}' for t in times)} s: {base.setup.name}"
        yield Trial("kills at random", name, partial(_killed, base, times))


def _spread(places: list[tuple[Base, int]], most: int, rng: random.Random) -> list[tuple[Base, int]]:
    """So many of the places, of as many setups as there are; again from the first where there are too few."""
    mixed = rng.sample(places, len(places))
    seen: dict[int, int] = defaultdict(int)
    order: list[tuple[int, int, tuple[Base, int]]] = []
    for base, number in mixed:
        order.append((seen[id(base)], len(order), (base, number)))
        seen[id(base)] += 1
    chosen = [place for _, _, place in sorted(order, key=lambda one: one[:2])]
    return [chosen[i % len(chosen)] for i in range(most)]


def _killed(base: Base, kills: Sequence[float | Callable[[], None]]) -> str:
    for kill in kills:
        ended = _kill(base, kill)
        if ended is not None and ended != -signal.SIGKILL:
            break
    else:
        ended = None
    if ended is None:
        done = typed(base.arguments)
        if done.status:
            raise WrongError(f"the resumed run ends with {done.status}: {done.err[-300:]}")
    elif ended:
        raise WrongError(f"ended with {ended} before it was killed")
    return compared(base.folder)


def _kill(base: Base, kill: float | Callable[[], None]) -> int | None:
    """Start and kill it; None, or the status where it ended before."""
    if callable(kill):
        status = typed(base.arguments, kill).status
        return None if status == -signal.SIGKILL else status
    child = start(base.arguments)
    time.sleep(kill)
    os.kill(child, signal.SIGKILL)
    status = finish(child).status
    return None if status == -signal.SIGKILL else status


def compared(straight_run: Path) -> str:
    """The outcome where the run in the current folder is over.

    Raises:
        WrongError: it differs from the straight one, or has left temporary files.
    """
    if found := differences(straight_run, newest(Path())):
        raise WrongError(f"differs from the straight run: {', '.join(found)}")
    if found := leftovers(Path()):
        raise WrongError(f"temporary files stay: {', '.join(found)}")
    return RIGHT
