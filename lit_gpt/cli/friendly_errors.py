"""Turns an error report of jsonargparse into one sentence.

For a wrong key of a class, jsonargparse reports every type that it tried. The mistyped key is somewhere in that report.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from lit_gpt.cli.suggest import unknown

#: How a report names a key that does not exist. The key is relative to the slot (model, data) in the first line.
WRONG_KEY = (
    r"unrecognized arguments: --?(?P<key>[\w.]+)",
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'",
    r"(?:Subcommand|Parser) '\w+' does not accept option '(?P<key>[\w.]+)'",
    r"Option '(?P<key>[\w.]+)' is not accepted",
    r"does not accept option '(?P<key>[\w.]+)'",
)
#: A value that fits no type of a union, with the choices of a Literal in that union.
WRONG_CHOICE = (
    r'Parser key "(?P<key>[\w.]+)":(?!.*Parser key)(?=.*?(?P<what>Literal\[.*\])).*Given value: (?P<value>[^\n]*)'
)
WRONG_VALUE = r'Parser key "(?P<key>[\w.]+)":\s+(?P<what>Expected [^\n]*?)\.? Got value: (?P<value>[^\n]*)'
#: A class that does not exist, in the slot of the first line.
WRONG_CLASS = (
    r"Expected a dot import path string: (?P<value>[\w.]*\w)",
    r"Problem with given class_path '(?P<value>[\w.]+)':\s+(?:module '[\w.]+' has no attribute|No module named)",
)
#: A single value for a group of options. The parser takes it for the name of a config file.
WRONG_GROUP = r"Parser key \"(?P<key>[\w.]+)\":\s+Unable to load config '(?P<value>[^'\n]*)'"
NOISE = r"(Does not validate|Subtypes:|Errors:|Given value|- Expected a <class 'NoneType'>)"


def friendly_error(
    report: str, known: Iterable[str], classes: Mapping[str, Iterable[str]] = MappingProxyType({})
) -> str:
    """One sentence that names the problem and a fix.

    Args:
        report: The parser's message.
        known: Dotted names of all options, from which the nearest is suggested.
        classes: For each slot, the names of the classes that it accepts.
    """
    slot = re.match(r'Parser key "(\w+)":', report)
    prefix = slot[1] if slot else ""
    for pattern in WRONG_KEY:
        found = re.search(pattern, report)
        if found:
            return str(unknown("option", _dotted(prefix, found), known))
    found = next((match for pattern in WRONG_CLASS if (match := re.search(pattern, report))), None)
    if found and prefix in classes:
        return str(unknown(prefix, found["value"], classes[prefix]))
    found = re.search(WRONG_VALUE, report) or re.match(WRONG_CHOICE, report, re.DOTALL)
    if found:
        return f"option {_dotted(prefix, found)!r} cannot be {found['value']!r}: {_readable(found['what'])}."
    if group := _wrong_group(report, prefix, known):
        return group
    found = re.search(r"File does not exist: '(?P<path>[^']*)'", report)
    if found:
        return f"There is no configuration {found['path']}; give the path of a YAML file, such as configs/char.yaml."
    found = re.search(r"unrecognized arguments: (?P<word>[^-\s]\S*)", report)
    if found:
        word = found["word"]
        is_file = word.endswith((".yaml", ".yml", ".json"))
        return f"{word!r} stands alone: " + (f"give it as --config {word}." if is_file else "put its option before it.")
    found = re.search(r"required: (?P<keys>[\w., ]+)", report)
    if found:
        keys = [f"--{key.strip().split('.')[-1]}" for key in found["keys"].split(",")]
        return f"{' and '.join(keys)} must be given."
    lines = [line.strip(" -") for line in report.splitlines() if not re.match(rf"\s*{NOISE}", line)]
    return " ".join(lines).rstrip(".") + "."


def _wrong_group(report: str, prefix: str, known: Iterable[str]) -> str | None:
    found = re.search(WRONG_GROUP, report)
    group = _dotted(prefix, found) if found else ""
    first = next((name for name in known if name.startswith(f"{group}.")), None)
    if not found or first is None:
        return None
    return f"option {group!r} is a group of options and cannot be {found['value']!r}: set them, such as --{first}."


def _dotted(prefix: str, found: re.Match[str]) -> str:
    own = found["key"].startswith(f"{prefix}.") or found["key"] == prefix
    parts = ["" if own else prefix, found.groupdict().get("group") or "", found["key"]]
    key = ".".join(part for part in parts if part)
    return key.replace("init_args.", "")


def _readable(what: str) -> str:
    choices = re.findall(r"Literal\[([^]]*)\]", what)
    if choices:
        return "use " + ", ".join(dict.fromkeys(", ".join(choices).replace("'", "").split(", ")))
    return (
        what.replace("<class '", "")
        .replace("'>", "")
        .replace("Expected a ", "give an " if "int" in what else "give a ")
    )
