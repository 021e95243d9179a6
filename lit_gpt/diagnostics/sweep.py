r"""usage: python -m lit_gpt sweep --set OPTION=VALUE,VALUE [--set ...] [options of fit]

Print one fit command a line for each combination of values, named so that report folds the seeds. Nothing is trained
here: run the lines with a shell (python -m lit_gpt sweep ... | sh), two at a time
(... | xargs -d '\n' -n 1 -P 2 sh -c), or in a queue.

options:
  --set OPTION=VALUE,VALUE  Values of an option of fit. A comma inside brackets, braces or quotes does not separate, so
                            these are two values: --set model.optimizer.betas=[0.9,0.95],[0.9,0.99]
  --config CONFIG           A configuration of fit, such as configs/char.yaml.
  --name NAME               How the runs' names begin; by default the configuration's name.
All other options are fit's (python -m lit_gpt fit --help) and are put on every line.
"""

import re
import shlex
from collections.abc import Iterator
from itertools import product

from datamodules.errors import UserError
from lit_gpt.cli.arguments import value_of, with_packaged_configs


def main(arguments: list[str]) -> None:
    """Print the commands."""
    if {"-h", "--help"} & set(arguments):
        print(str(__doc__).strip())
        return
    sets, common = _split(arguments)
    for line in _one_of_each_value(sets, common):
        check(line)
    for line in commands(sets, common):
        print(shlex.join(["python", "-m", "lit_gpt", "fit", *line]))


def _split(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The values of each ``--set``, and all other arguments."""
    sets: dict[str, list[str]] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word.partition("=")[0] != "--set":
            rest.append(word)
            continue
        text = word.partition("=")[2] or next(words, "")
        option, equals, values = text.removeprefix("--").partition("=")
        if not (option and equals and all(found := values_of(values))):
            raise UserError(f"--set {text!r} names no values: write --set model.config.n_embd=128,384.")
        if option in sets or len(set(found)) < len(found):
            raise UserError(
                f"--set {text!r} repeats an option or a value: give all its values in one --set, once each."
            )
        sets[option] = found
    if not sets:
        raise UserError("sweep needs settings to vary: add --set model.config.n_embd=128,384.")
    return sets, rest


def values_of(text: str) -> list[str]:
    """Split at the commas that are outside of brackets, braces and quotes. Quotes around a whole value are dropped."""
    values, depth, quote = [""], 0, ""
    for character in text:
        quote = "" if character == quote else quote or (character if character in "\"'" else "")
        depth += not quote and (character in "[{(") - (character in "]})")
        if character == "," and not quote and not depth:
            values.append("")
        else:
            values[-1] += character
    if quote or depth:
        raise UserError(f"--set ...={text} opens a quote or bracket without an end: close it, or put quotes around it.")
    return [re.sub(r"""^(["'])((?:(?!\1).)*)\1$""", r"\2", value) for value in values]


def commands(sets: dict[str, list[str]], common: list[str]) -> Iterator[list[str]]:
    """The arguments of ``fit`` for each combination. Runs that differ in the seed alone have the same name."""
    base = value_of("name", with_packaged_configs(common)) or "run"
    named = [option for option, values in sets.items() if len(values) > 1 and option != "seed_everything"]
    for values in product(*sets.values()):
        chosen = dict(zip(sets, values, strict=True))
        name = "-".join([str(base), *(f"{_short(option, named)}{chosen[option]}" for option in named)])
        options = [f"--{option}={value}" for option, value in chosen.items()]  # a value may begin with a dash
        yield [*common, *options, "--name", re.sub(r"[^\w.+=-]+", "_", name).strip("_")]


def _one_of_each_value(sets: dict[str, list[str]], common: list[str]) -> Iterator[list[str]]:
    """Few commands in which every value occurs: to parse one takes about half a second."""
    for i in range(max(map(len, sets.values()))):
        yield from commands({option: [values[min(i, len(values) - 1)]] for option, values in sets.items()}, common)


def _short(option: str, others: list[str]) -> str:
    """The end of an option's dotted name that no other has."""
    parts = option.split(".")
    ends = (".".join(parts[i:]) for i in reversed(range(len(parts))))
    return next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in others) == 1)


def check(arguments: list[str]) -> None:
    """Parse a command as ``fit`` does, without building anything, so that a wrong one is refused before the queue."""
    from lit_gpt.cli.parsed import ParsedCLI  # imports torch

    ParsedCLI("fit", with_packaged_configs(arguments))
