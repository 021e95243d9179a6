"""Suggests what a person means by a name that does not exist."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from types import MappingProxyType

from datamodules.errors import UserError
from lit_gpt.cli.synonyms import OPTIONS, VALUES

NONE: Mapping[str, Iterable[str]] = MappingProxyType({})
#: How alike two names must be, from 0 to 1. A wrong hint is worse than none: 0.75 takes n_layr for n_layer, and not
#: lr for rows.
ALIKE = 0.75
#: Letters of a beginning that is enough, such as grad_ for a longer name.
LONG = 4


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the one that a person means.

    Args:
        kind: What is named, such as a verb or a preset; also the option in `VALUES`.
        name: What was typed.
        known: What exists.
    """
    known = list(known)
    near = VALUES.get(kind, {}).get(name.lower())
    near = near or next(iter(get_close_matches(name, known, n=1, cutoff=0.5)), None)
    hint = f"did you mean {near}?" if near else f"use {', '.join(known)}."
    return UserError(f"{kind} {name!r} is unknown: {hint}")


def unknown_option(
    name: str,
    value: str | None,
    known: Iterable[str],
    verb: str,
    others: Mapping[str, Iterable[str]] = NONE,
    place: str | None = None,
    before: str | None = None,
) -> UserError:
    """The error for an option that does not exist, with the one that a person means.

    Args:
        name: What was typed, without dashes before it.
        value: Its value. None: it has none.
        known: Dotted names of all options of the verb and of the chosen classes.
        verb: What was typed after ``python -m lit_gpt``.
        others: Options of classes that were not chosen, by the class.
        place: The config file that has the option. None: the command line.
        before: The option before it, where that has no value: this may be one that begins with dashes.
    """
    known = list(known)
    fix = suggestion(name, value, known, others)
    where = f"option --{name}" if place is None else f"key {name} in {place}"
    if fix is None and before:
        return UserError(f"{where} is unknown: if it is the value of --{before}, write --{before}=--{name}.")
    if fix is None:
        slot = name.partition(".")[0]
        has_classes = slot in ("model", "data") and any(option.startswith(f"{slot}.") for option in known)
        more = f" --{slot}.help CLASS" if has_classes else " --help"
        return UserError(f"{where} is unknown: python -m lit_gpt {verb}{more} lists what there is.")
    return UserError(f"{where} is unknown: did you mean {fix if place is None else _as_key(fix)}?")


def suggestion(
    name: str, value: str | None, known: list[str], others: Mapping[str, Iterable[str]] = NONE
) -> str | None:
    """What to type instead of an option that does not exist: an option with its value. None: nothing is near."""
    fix = next(_meant(name.replace("-", "_").lower(), known, others), None)
    if fix is None or fix.startswith("--"):
        return fix and fix.replace("{}", value or "").rstrip()
    value = VALUES.get(fix, {}).get((value or "").lower(), value)
    return value if value and value.startswith("--") else f"--{fix} {value}" if value else f"--{fix}"


def _meant(name: str, known: list[str], others: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """What a name may stand for, the most likely first. A suggestion without dashes is an option to give the value."""
    slot, leaf = name.partition(".")[0], name.rpartition(".")[2]
    of_slot = [option for option in known if option.startswith(f"{slot}.")] if leaf != name else []
    yield from (option for option in known if option == name)
    yield from _synonyms(name, known)
    yield from _only(option for option in known if option.endswith(f".{name}"))
    yield from _of_others(others, lambda option: option == name)
    yield from _synonyms(leaf, of_slot)
    yield from _only(option for option in of_slot if option.endswith(f".{leaf}"))
    yield from _of_others(others, lambda option: option.endswith(f".{name}"))
    if leaf != name:  # the right name in the wrong group
        yield from _synonyms(leaf, known)
        yield from _only(option for option in known if option.endswith(f".{leaf}"))
    yield from _alike(leaf, of_slot or known)
    for cls, options in others.items():
        of_slot = [option for option in options if option.startswith(f"{slot}.")] if leaf != name else list(options)
        yield from (_with_class(cls, option) for option in _alike(leaf, of_slot))


def _synonyms(word: str, known: list[str]) -> Iterator[str]:
    meant = next((OPTIONS[form] for form in (word, f"{word}s", word.removesuffix("s")) if form in OPTIONS), ())
    for text in (meant,) if isinstance(meant, str) else meant:
        if text.removeprefix("--").split(" ")[0] in known:
            yield text


def _of_others(others: Mapping[str, Iterable[str]], matches: Callable[[str], bool]) -> Iterator[str]:
    for cls, options in others.items():
        yield from (_with_class(cls, option) for option in options if matches(option))


def _with_class(cls: str, option: str) -> str:
    return f"--{option.split('.', maxsplit=1)[0]} {cls} --{option} {{}}"


def _only(options: Iterable[str]) -> list[str]:
    found = list(options)
    return found if len(found) == 1 else []


def _alike(leaf: str, known: list[str]) -> Iterator[str]:
    """Options whose last part begins with a word, if it is one, or is spelled like it."""
    last = {option: option.rpartition(".")[2] for option in known}
    yield from _only(option for option, name in last.items() if len(leaf) >= LONG and name.startswith(leaf))
    likeness = {option: SequenceMatcher(None, leaf, name).ratio() for option, name in last.items()}
    yield from sorted((o for o in known if likeness[o] >= ALIKE), key=likeness.__getitem__, reverse=True)[:1]


def _as_key(fix: str) -> str:
    """Options as keys of a config file."""
    fix = re.sub(r"^--(model|data) (\w+) --", r"\1.class_path: \2 with --", fix)
    return re.sub(r"--([\w.]+) (?!with )", r"\1: ", fix).replace("--", "")
