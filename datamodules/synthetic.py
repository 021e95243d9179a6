"""Synthetic headlines: any number of different ones from a small grammar, for tests and demonstrations.

They read like technology news and mean nothing: no name, product or event in them is real. A headline is a number. Its
digits, in a mixed radix, choose the template and the word of each slot. The numbers are a permutation of a range, so
none repeats, nothing that was written is held in memory, and every machine writes the same headlines.
"""

import re
from collections.abc import Iterator
from itertools import accumulate
from math import prod

import numpy as np

from datamodules.errors import UserError
from datamodules.permutation import permute, random_words

_BLOCK = 4096  # headlines that are numbered at a time
#: The most headlines of one template. Without a limit the template with most slots would be seven headlines of ten.
_MOST_OF_A_TEMPLATE = 1_000_000
_SLOT = re.compile(r"\{(\w+)\}")


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


def _pairs(first: str, last: str) -> tuple[str, ...]:
    return tuple(a + b for a in _split(first) for b in _split(last))


#: The words of each slot. None contains the text around its slot in a template, so different numbers give different
#: headlines.
_WORDS: dict[str, tuple[str, ...]] = {
    "org": _pairs(
        "Alder|Brim|Cinder|Dover|Ember|Fathom|Glint|Harrow|Iris|Juniper|Kestrel|Lumen|Moss|Nettle",
        "base|works|grid|line|mind|port|stack|wave",
    ),
    "tool": _pairs(
        "Ash|Bolt|Crux|Dune|Fern|Gale|Hush|Knot|Loom|Mint|Nova|Onyx|Pika|Quill|Reed|Sled",
        "DB|JS|Kit|Lang|OS|Shell|VM",
    ),
    "language": _split(
        "Ada|C|Clojure|Elixir|Erlang|Forth|Fortran|Go|Haskell|Java|Julia|Kotlin|Lisp|Lua|OCaml|Pascal|Perl|Python|"
        "Racket|Ruby|Rust|Scala|Scheme|Swift|TypeScript|Zig"
    ),
    "thing": _split(
        "a build system|a cache|a chess engine|a compiler|a database|a debugger|a file system|a font editor|"
        "a game engine|a hash table|a kernel|a key-value store|a linker|a load balancer|a mail server|a map renderer|"
        "a message queue|a music player|a neural network|a package manager|a parser|a password manager|a ray tracer|"
        "a regex engine|a scheduler|a search engine|a shell|a spreadsheet|a static site generator|a synthesizer|"
        "a terminal emulator|a text editor|a time-series store|a tokenizer|a type checker|a version control system|"
        "a virtual machine|a web browser|a web framework"
    ),
    "topic": _split(
        "attention|backups|battery life|branch prediction|cache misses|code review|cold starts|compression|"
        "concurrency|continuous integration|cryptography|data races|distributed systems|documentation|encryption|"
        "energy use|error messages|floating point|formal methods|garbage collection|hiring|incident response|"
        "interview questions|latency|legacy code|memory safety|microservices|monoliths|naming|open source funding|"
        "page load times|passwords|pointers|privacy|queues|random numbers|remote work|retries|satellite internet|"
        "schema migrations|sharding|spam|static typing|tail latency|technical debt|text rendering|time zones|"
        "unit tests|usability|vector search"
    ),
    "adjective": _split(
        "boring|brief|brilliant|careful|clever|concise|curious|friendly|gentle|hidden|humble|lazy|minimal|modest|"
        "overlooked|painless|patient|practical|pragmatic|quiet|readable|reliable|short|simple|slow|small|strange|"
        "subtle|surprising|thoughtful|tiny|useful|visual|weird"
    ),
    "place": _split(
        "a bank|a basement|a browser tab|a classroom|a data center|a factory|a hospital|a library|a lighthouse|"
        "a microcontroller|a museum|a phone|a power plant|a school|a single file|a spreadsheet cell|a submarine|"
        "a telescope|a tractor|a train|a weekend|an elevator|orbit|production|the browser|the kitchen|the terminal"
    ),
    "verb": _split(
        "abandons|acquires|adopts|audits|backs|bets on|bans|delays|drops|explains|fixes|forks|funds|open-sources|"
        "postpones|quietly removes|rebuilds|renames|replaces|retires|rewrites|sells|sues over|ships|splits"
    ),
    "money": tuple(f"${n}M" for n in range(2, 120)),
    "percent": tuple(f"{n}%" for n in range(3, 98)),
    "count": tuple(f"{n}" for n in range(2, 60)),
    "lines": tuple(f"{n * 50}" for n in range(1, 120)),
    "year": tuple(f"{n}" for n in range(1961, 2026)),
    "version": tuple(f"{major}.{minor}" for major in range(1, 10) for minor in range(12)),
}

_TEMPLATES = (
    "Show HN: {tool} \u2013 {thing} in {lines} lines of {language}",
    "Show HN: I built {thing} for {place}, in {count} days of {language}",
    "Ask HN: How does your team at {org} deal with {topic} in {year}?",
    "Ask HN: What is the most {adjective} book on {topic} since {year}?",
    "{org} raises {money} to rethink {topic}",
    "{org} {verb} {tool} {version} after {count} months",
    "{tool} {version} released, with {adjective} {topic}",
    "{tool} {version} is {percent} faster on {topic}",
    "A {adjective} introduction to {topic} ({year})",
    "A {adjective} guide to writing {thing} in {language} ({year})",
    "Why {org} moved from {language} to {tool} after {count} years",
    "{count} {adjective} lessons about {topic} from {count} years at {org}",
    "What {org} learned about {topic} from {place} in {year}",
    "The {adjective} history of {topic} at {org} ({year}) [pdf]",
    "How we cut {topic} by {percent} with {tool}",
    "Writing {thing} in {language} for {place} ({year})",
    "{topic} considered {adjective}: notes from {place}, {year}",
    "Running {tool} {version} on {place} [video]",
    "{org} outage: {count} hours, {percent} of users, and a bug in {topic}",
    "My {adjective} year with {tool}, {language} and {topic}",
)

#: How many different headlines each template has.
_SIZES = [prod(len(_WORDS[slot]) for slot in _SLOT.findall(template)) for template in _TEMPLATES]


def headlines(count: int, seed: int = 0) -> Iterator[str]:
    """``count`` different synthetic headlines; the first n are the same for every ``count``.

    Raises:
        UserError: ``count`` is not between 1 and the number of headlines that the grammar has, about 16 million.
    """
    ends = list(accumulate(min(size, _MOST_OF_A_TEMPLATE) for size in _SIZES))
    if not 1 <= count <= ends[-1]:
        raise UserError(f"the grammar has {ends[-1]:,} synthetic headlines; ask for 1 to that many, not {count:,}.")
    key = random_words(seed)
    for start in range(0, count, _BLOCK):
        numbers = permute(np.arange(start, min(start + _BLOCK, count)), ends[-1], key)
        templates = np.searchsorted(ends, numbers, side="right")
        yield from map(_headline, templates.tolist(), (numbers - np.array([0, *ends])[templates]).tolist())


def _headline(template: int, number: int) -> str:
    """Headline ``number`` of a template: those within the limit are spread evenly over all that it has."""
    rest = number * _SIZES[template] // min(_SIZES[template], _MOST_OF_A_TEMPLATE)

    def next_word(slot: re.Match[str]) -> str:
        nonlocal rest
        words = _WORDS[slot[1]]
        rest, digit = divmod(rest, len(words))
        return words[digit]

    headline = _SLOT.sub(next_word, _TEMPLATES[template])
    return headline[0].upper() + headline[1:]
