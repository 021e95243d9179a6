"""Turns an error report of jsonargparse into one sentence.

For a wrong key of a class, jsonargparse reports every type that it tried. The mistyped key is somewhere in that report.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lit_gpt.cli.arguments import CONFIG, pairs
from lit_gpt.cli.suggest import unknown, unknown_option
from lit_gpt.cli.synonyms import VALUES

#: How a report names an option that does not exist. It is relative to the slot (model, data) in the first line.
WRONG_KEY = (
    r"unrecognized arguments: --?(?P<key>[A-Za-z][\w.-]*)(?:=(?P<value>\S*))?",
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.-]+)'",
    r"(?:Subcommand|Parser) '\w+' does not accept option '(?P<key>[\w.-]+)'",
    r"Option '(?P<key>[\w.-]+)' is not accepted",
    r"does not accept option '(?P<key>[\w.-]+)'",
)
#: A class that does not exist, in the slot of the first line.
WRONG_CLASS = (
    r"Expected a dot import path string: (?P<value>[^\n]*?) *(?:\n|$)",
    r"Problem with given class_path '(?P<value>[\w.]+)':\s+(?:module '[\w.]+' has no attribute|No module named)",
    r"(?P<value>[\w.]+) does not correspond to a subclass of",
)
#: A single value for a group of options. The parser takes it for the name of a config file.
WRONG_GROUP = r"Parser key \"(?P<key>[\w.]+)\":\s+Unable to load config '(?P<value>[^'\n]*)'"
#: A class that needs a value for one of its options.
LACKING = r"Problem with given class_path '[\w.]*?(?P<cls>\w+)':\s+the following arguments are required: (?P<key>\w+)"
#: What to call a type.
TYPES = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    **dict.fromkeys(("dict", "mapping"), "names with values, such as {name: value}"),
    **dict.fromkeys(("tuple", "list", "sequence", "iterable"), "a list, such as [0.9, 0.95]"),
}


@dataclass(frozen=True)
class CommandLine:
    """What is known about the command line that a report is about."""

    arguments: list[str] = field(default_factory=list)
    """The command line after the verb."""
    known: list[str] = field(default_factory=list)
    """Dotted names of all options of the verb and of the chosen classes."""
    others: Mapping[str, Iterable[str]] = field(default_factory=dict)
    """Options of the classes that were not chosen, by the class."""
    classes: Mapping[str, Iterable[str]] = field(default_factory=dict)
    """For each slot, the names of the classes that it accepts."""
    verb: str = "fit"
    """What was typed after ``python -m lit_gpt``."""

    def typed(self, name: str) -> str | None:
        """The value that was typed after an option. None: there is none."""
        for option, value in reversed(pairs(self.arguments)):
            if option.lstrip("-").replace("init_args.", "") == name:
                return None if value.startswith("--") else value or None
        return None

    def unknown(self, name: str, value: str | None) -> str:
        """The sentence for an option that does not exist."""
        value = self.typed(name) or value
        value = value and shlex.quote(value)
        if name in self.known:  # argparse reads an option with one dash as one of a single letter
            return f"option -{name} has one dash: write {' '.join(filter(None, (f'--{name}', value)))}."
        return str(unknown_option(name, value, self.known, self.verb, self.others))


def friendly_error(report: str, line: CommandLine | None = None) -> str:
    """One sentence that names the problem and a fix. A report of an unknown form is given whole."""
    line = line or CommandLine()
    slot = re.match(r'Parser key "(\w+)":', report)
    prefix = slot[1] if slot else ""
    for pattern in WRONG_KEY:
        found = re.search(pattern, report)
        if found:
            return line.unknown(_dotted(prefix, found), found.groupdict().get("value"))
    for sentence in (_wrong_class, _lacking, _wrong_group, _wrong_value, _other, _reason_in_union):
        if text := sentence(report, prefix, line):
            return text
    return " ".join(part.strip() for part in report.splitlines() if part.strip()).rstrip(".!") + "."


def _wrong_class(report: str, prefix: str, line: CommandLine) -> str | None:
    found = next((match for pattern in WRONG_CLASS if (match := re.search(pattern, report))), None)
    if found and prefix in line.classes:
        value = found["value"].rstrip(".")
        if prefix == "data" and value and _is_text(value):
            return f"data {value!r} is no class: did you mean --data.source {shlex.quote(value)}?"
        if prefix == "model" and value and Path(value).exists():
            option = "--model.init_from" if "model.init_from" in line.known else "--ckpt_path"
            return f"model {value!r} is no class: did you mean {option} {shlex.quote(value)}?"
        return str(unknown(prefix, value, line.classes[prefix]))
    return None


def _is_text(value: str) -> bool:
    """Whether the value of --data is a text: a file, or the name of a source."""
    from datamodules.sources import is_path

    path = Path(value)
    endings = (".txt", ".gz", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".md")
    return path.exists() or path.suffix in endings or value.startswith("hf:") or not is_path(value)


def _lacking(report: str, prefix: str, line: CommandLine) -> str | None:
    found = re.search(LACKING, report)
    keys = re.findall(r'Parser key "([\w.]+)"', report)
    if not found or not keys:
        return None
    option = _joined(keys)
    alone = ", or leave it out: every run writes metrics.csv" if found["cls"] == "CSVLogger" else ""
    example = "logs" if found["key"].endswith("dir") else "VALUE"
    return f"option --{option} {found['cls']} needs more: add --{option}.{found['key']} {example}{alone}."


def _wrong_group(report: str, prefix: str, line: CommandLine) -> str | None:
    found = re.search(WRONG_GROUP, report)
    group = _dotted(prefix, found) if found else ""
    first = next((name for name in line.known if name.startswith(f"{group}.")), None)
    if not found or first is None:
        return None
    if group == "checkpoint" and ("/" in found["value"] or found["value"].endswith(".ckpt")):
        return f"option --checkpoint is a group of options: did you mean --ckpt_path {found['value']}?"
    return f"option --{group} is a group of options and cannot be {found['value']!r}: set them, such as --{first}."


def _wrong_value(report: str, prefix: str, line: CommandLine) -> str | None:
    """The sentence for a value of the wrong type: the innermost key of the report has it."""
    keys = re.findall(r'Parser key "([\w.]+)"', report)
    if not keys:
        return None
    option, inner = _joined(keys), report.rpartition("Parser key")[2]
    given = re.search(r"(?:Got value|Given value): ([^\n]*)", inner)
    expected = re.findall(r"Expected an? (.*?)(?:\. Got value|\n|$)", inner)
    value = line.typed(option) or (given[1] if given else None)
    meaning = _readable(option, expected, inner)
    if value is None or not meaning:
        return None
    if option == "resume" and ("/" in value or value.endswith(".ckpt")):
        return f"option --resume cannot be {value!r}: did you mean --ckpt_path {value}?"
    if near := VALUES.get(option, {}).get(value.lower()):
        return f"option --{option} cannot be {value!r}: did you mean --{option} {near}?"
    return f"option --{option} cannot be {value!r}: {meaning}" + "." * (not meaning.endswith("?"))


def _readable(option: str, expected: list[str], report: str) -> str:
    """What to give instead. Empty where an expected type is none that we have words for."""
    if base := re.search(r"(?:Subtypes: \[|list\[)<?(?:class ')?((?:lightning|torch|lit_gpt)\.[\w.]+)", report):
        return _class_to_give(base[1], report)
    literals = [choice for what in expected for choice in re.findall(r"Literal\[([^]]*)\]", what)]
    choices = list(dict.fromkeys(", ".join(literals).replace("'", "").split(", "))) if literals else []
    names = [name for what in expected if "Literal" not in what and (name := _type_name(what)) != "nonetype"]
    wider = {"int": "float", "bool": "int"}
    names = [name for name in names if wider.get(name) not in names]
    if not all(name in TYPES for name in names):
        return ""
    if choices:
        return "use " + ", ".join(choices)
    return "give " + " or ".join(dict.fromkeys(TYPES[name] for name in names)) if names else ""


def _type_name(what: str) -> str:
    """int of ``<class 'int'>``, sequence of ``collections.abc.Sequence[str]``."""
    return re.split(r"[\['>]", what.removeprefix("<class '"))[0].rpartition(".")[2].lower()


def _class_to_give(base: str, report: str) -> str:
    """What to give where a class is wanted: the one whose name is nearest, of those that are imported."""
    given = re.search(r"Expected a dot import path string: (\S+)", report)
    classes: list[Any] = [resolve_name(base)]
    for cls in classes:
        classes += cls.__subclasses__()
    names = [cls.__name__ for cls in classes[1:] if cls.__module__.startswith("lightning.")]
    near = get_close_matches(given[1], names, n=1, cutoff=0.6) if given else []
    return f"did you mean {near[0]}?" if near else f"give the name of a {classes[0].__name__} class"


def _other(report: str, prefix: str, line: CommandLine) -> str | None:
    if found := re.search(r"(?:class_path '[\w.]*?(\w+)':\s+)?Requirement '([\w-]+)[^']*' not met", report):
        what = found[1] or "an option"
        return f"{what} needs the package {found[2]}, which is not installed: pip install {found[2]}, or leave it out."
    if re.search(r"No supported gpu backend|Accelerator` can not run on your system", report):
        return (
            "trainer.accelerator names a device that this machine has not, or that its torch cannot use: leave it out, "
            "or give --trainer.accelerator cpu."
        )
    if re.search(r"unrecognized arguments: --(?!\S)", report):
        return "-- alone is no option: leave it out."
    if found := re.search(r"Parser key \"config\":\s+File does not exist: '(?P<path>[^'\n]*)'", report):
        return f"config {line.typed('config') or found['path']!r} does not exist: give the path of a YAML file."
    if found := re.search(r"unrecognized arguments: (?P<word>[^-\s]\S*)", report):
        return _alone(found["word"], line)
    if found := re.search(r"argument (?:-\w/)?--([\w.]+)(?:/--?[\w.]+\+?)?: expected one argument", report):
        typed = [option.lstrip("-") for option, value in pairs(line.arguments) if not value or value.startswith("--")]
        option = next((option for option in typed if option.startswith(found[1])), found[1])
        if value := line.typed(option):  # it begins with a dash
            return f"option --{option} has no value: if {value} is one, write {shlex.quote(f'--{option}={value}')}."
        return f"option --{option} has no value: write {'auto' if option == 'resume' else 'one'} after it."
    if found := re.search(r"required: (?P<keys>[\w., ]+)", report):
        keys = [f"--{key.strip().split('.')[-1]}" for key in found["keys"].split(",")]
        example = ", such as --ckpt_path logs/NAME/version_0" if keys == ["--ckpt_path"] else ""
        return f"{' and '.join(keys)} must be given{example}."
    return None


def _reason_in_union(report: str, prefix: str, line: CommandLine) -> str | None:
    """The sentence of the class that refused its values, where None would have been accepted too."""
    found = re.search(r"Union subtypes.*?Errors:\s+- (.*?)\n\s*Given value type:", report, re.DOTALL)
    parts = re.split(r"\n\s*- ", found[1]) if found else []
    reasons = [part for part in parts if not part.startswith("Expected a <class 'NoneType'>")]
    return friendly_error(reasons[0], line) if len(reasons) == 1 else None


def _alone(word: str, line: CommandLine) -> str:
    """The sentence for a word without an option."""
    name, joined, value = word.partition("=")
    if word.endswith((".yaml", ".yml", ".json")):
        return f"{word!r} stands alone: give it as {CONFIG[0]} {word}."
    if joined and re.fullmatch(r"[A-Za-z_][\w.]*", name):  # as some programs write options
        option = f"--{name} {value}"
        return f"{word!r} stands alone: write {option}." if name in line.known else line.unknown(name, value)
    if word.endswith(".txt") and "data.source" in line.known:
        return f"{word!r} stands alone: give it as --data.source {word}."
    if "ckpt_path" in line.known and (word.endswith(".ckpt") or "/" in word):
        return f"{word!r} stands alone: give it as --ckpt_path {word}."
    if "prompt" in line.known:
        fix = f"give it as --prompt {word}" if line.typed("prompt") is None else "put quotes around the whole prompt"
        return f"{word!r} stands alone: {fix}."
    return f"{word!r} stands alone: put its option before it."


def _joined(keys: list[str]) -> str:
    """The option of nested keys: an inner one is relative to the outer ones, or repeats them."""
    option = keys[0]
    for key in keys[1:]:
        option = key if key.startswith(f"{option}.") or key == option else f"{option}.{key}"
    return option.replace("init_args.", "")


def _dotted(prefix: str, found: re.Match[str]) -> str:
    own = found["key"].startswith(f"{prefix}.") or found["key"] == prefix
    parts = ["" if own else prefix, found.groupdict().get("group") or "", found["key"]]
    key = ".".join(part for part in parts if part)
    return key.replace("init_args.", "")
