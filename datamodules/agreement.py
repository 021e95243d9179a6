"""Compares what must be equal in all processes of a run, such as the text, and refuses the run where it is not."""

import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from torch import distributed

from datamodules.errors import DisagreementError

#: How long the processes wait for each other here. One may still hash its copy of a text on a slow disk.
PATIENCE = timedelta(days=1)
DATA_FIXES = {
    "text": "give all processes the same files and the same splits (embedded text is of a version of Python)",
    "tokenizer": (
        "training may give another tokenizer each time, so share one --data.cache_dir, or give a file of `python -m "
        "lit_gpt tokenizer train` as --data.tokenizer"
    ),
}


class Fact(NamedTuple):
    """Something that must be equal in all processes."""

    compared: str
    """Equal in two processes if, and only if, they agree."""
    shown: str
    """What a message says of it."""


def check_agreement(
    facts: Mapping[str, Fact], fixes: Mapping[str, str], gather: Callable[[Any], list[Any]] | None = None
) -> None:
    """Raises the same error in every process if a fact differs from that of process 0. All processes must call this.

    Args:
        facts: what must be equal in all processes, by its name in messages. A process may lack some.
        fixes: what to do about a difference, by the same names; the key "" is for all others.
        gather: returns the objects of all processes; tests replace it.

    Raises:
        DisagreementError: names the first fact that differs, a process that differs, its machine, and what both have.
    """
    of_all = (gather or gathered)((socket.gethostname(), dict(facts)))
    names = dict.fromkeys(name for _, of_rank in of_all for name in of_rank)  # in order, each once
    for name in names:
        values = [of_rank.get(name) for _, of_rank in of_all]
        differing = [rank for rank, fact in enumerate(values) if _compared(fact) != _compared(values[0])]
        if differing:
            hosts = [host for host, _ in of_all]
            fix = fixes.get(name) or fixes[""]
            raise DisagreementError(f"{_difference(name, differing, hosts, values)}: {fix}.", is_first_process())


def _difference(name: str, differing: list[int], hosts: list[str], values: list[Fact | None]) -> str:
    rank, more = differing[0], len(differing) - 1
    also = f" (and {more} more)" if more else ""
    here, there = (values[r].shown if values[r] else "nothing" for r in (rank, 0))  # type: ignore[union-attr]
    return (
        f"the processes of this run do not have the same {name}: it is {here} in process {rank}{also} on {hosts[rank]} "
        f"and {there} in process 0 on {hosts[0]}"
    )


def _compared(fact: Fact | None) -> str | None:
    return fact and fact.compared


def are_several() -> bool:
    """Whether this process is one of several that have met."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first_process() -> bool:
    """Whether this is process 0 of the run."""
    return not are_several() or distributed.get_rank() == 0


def gathered(value: Any) -> list[Any]:
    """The values of all processes, by rank. All must call it; it waits for the slowest as long as `PATIENCE`.

    Values travel between CPUs: a GPU's collectives would end the run after minutes of waiting.
    """
    if not are_several():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group=_patient_group())
    return values


def _patient_group() -> distributed.ProcessGroup:
    """A group of all processes that waits long. It is made once, so that the loss of a process is noticed at once."""
    world = distributed.group.WORLD
    if _GROUPS.get("world") is not world:
        _GROUPS.update(world=world, patient=distributed.new_group(backend="gloo", timeout=PATIENCE))
    return _GROUPS["patient"]


_GROUPS: dict[str, Any] = {}


def facts_of_data(meta: Mapping[str, Any], vocab_size: int) -> dict[str, Fact]:
    """The facts of a prepared text, for `check_agreement`.

    Args:
        meta: the content of the store's ``meta.json``.
        vocab_size: number of ids of its tokenizer.
    """
    text, tokenizer = (meta["fingerprints"][name] for name in ("data", "tokenizer"))
    sizes = ", ".join(f"{counts['bytes']:,} bytes of {split}" for split, counts in meta["splits"].items())
    return {
        "text": Fact(text, f"{sizes} (SHA-256 {text[:8]})"),
        "tokenizer": Fact(tokenizer, f"one of {vocab_size:,} tokens (SHA-256 {tokenizer[:8]})"),
    }
