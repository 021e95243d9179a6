"""Refuses an option that does not exist before torch and Lightning are imported, which takes seconds.

The check knows lit_gpt's own classes. What it does not know, such as the options of a class of your own, the parser
checks later.
"""

import shlex
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from datamodules.errors import UserError
from lit_gpt.cli.arguments import CONFIG, config_in, is_path, pairs, value_of, with_packaged_configs
from lit_gpt.cli.options import (
    CLASS_OF_PRESET,
    CLASSES,
    COMMON,
    GROUPS,
    OPTIONS_OF_ONE_VERB,
    VERBS_LIKE_FIT,
    options_of_class,
    options_of_function,
    options_of_other_classes,
    options_of_verb,
)
from lit_gpt.cli.suggest import unknown_option

#: Parts of an option's name that jsonargparse adds for classes.
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
#: The functions of the verbs that are no more than that; of a verb with verbs below it, one for each.
FUNCTIONS: dict[str, str | dict[str, str]] = {
    "generate": "generate",
    "fill-mask": "fill_mask",
    "import": "import_",
    "export": "export",
    "tokenizer": {"train": "train", "eval": "evaluate", "export": "export"},
}
#: The verbs that build a model and data from classes. Any other one checks its options itself.
VERBS_WITH_CLASSES = (*VERBS_LIKE_FIT, "validate", "test", "predict")
OTHERS = ("help", "print_config")
#: Options without parts.
VALUES_ALONE = tuple(name for name in COMMON if name not in GROUPS)


class Given(NamedTuple):
    """An option as it was typed, or a key of a config file."""

    name: str
    value: Any
    place: str | None


def check(verb: str, arguments: list[str]) -> None:
    """Raises a UserError for an option, or a key of a config file, that neither the verb nor a class of it has.

    Args:
        verb: A verb of lit_gpt.
        arguments: The command line after the verb.
    """
    if "--" in arguments or any(part in ("-h", "--help") or ".help" in part for part in arguments):
        return  # the help is printed, whatever else is typed
    if verb in FUNCTIONS:
        _check_function(verb, arguments)
    elif verb in VERBS_WITH_CLASSES:
        _check_classes(verb, with_packaged_configs(arguments))


def _check_classes(verb: str, arguments: list[str]) -> None:
    """For the verbs that build a model and data from classes."""
    # `validate`, `test` and `predict` take the data's class from the checkpoint.
    model = CLASS_OF_PRESET.get(str(value_of("preset", arguments)))
    classes: dict[str, str | None] = {"model": model, "data": None if verb in VERBS_LIKE_FIT else ""}
    for given in _given(arguments):
        if given.name.removesuffix(".class_path") in classes:
            classes[given.name.partition(".")[0]] = _class_in(given.value)
        elif not _exists(verb, given.name, classes):
            raise _error(verb, given, classes)


def _check_function(verb: str, arguments: list[str]) -> None:
    """For the verbs that are functions."""
    functions = FUNCTIONS[verb]
    alone = isinstance(functions, str)
    function = functions if isinstance(functions, str) else functions.get(next(iter(arguments), ""), "")
    known = options_of_function(f"lit_gpt.commands.{function if alone else verb}", function)
    for given in _given(arguments) if known else ():
        if given.name not in (*known, *OTHERS, "config"):
            if given.place and "ckpt_path" in known and _describes_a_run(arguments, given.place):
                raise UserError(f"config {given.place} is one of fit: give {verb} --ckpt_path logs/NAME/version_0.")
            before = [name[2:] for name, value in pairs(arguments) if value == f"--{given.name}" and name[2:] in known]
            raise _unknown(verb, given, known, {}, next(iter(before), None))


def _describes_a_run(arguments: list[str], place: str) -> bool:
    """Whether a config file has the keys of a run, as those of ``fit`` have."""
    top_level_keys = {given.name.partition(".")[0] for given in _given(arguments) if given.place == place}
    return not top_level_keys.isdisjoint({"model", "data", "trainer"})


def chosen_classes(arguments: list[str]) -> dict[str, str | None]:
    """The classes of model and data that a command line and its config files choose. None: the default."""
    chosen: dict[str, str | None] = {"model": CLASS_OF_PRESET.get(str(value_of("preset", arguments))), "data": None}
    for given in _given(arguments):
        if given.name.removesuffix(".class_path") in chosen:
            chosen[given.name.partition(".")[0]] = _class_in(given.value) or None
    return chosen


def other_options(chosen: dict[str, str | None]) -> dict[str, list[str]]:
    """The options of the classes that were not chosen, by the class."""
    return {cls: keys for slot in chosen for cls, keys in options_of_other_classes(slot, chosen[slot]).items()}


def _error(verb: str, given: Given, classes: dict[str, str | None]) -> UserError:
    known = options_of_verb(verb)
    for slot, cls in classes.items():
        known += options_of_class(slot, cls) or []
    return _unknown(verb, given, known, other_options(classes))


def _unknown(
    verb: str, given: Given, known: list[str], others: dict[str, list[str]], before: str | None = None
) -> UserError:
    value = shlex.quote(str(given.value)) if isinstance(given.value, str | int | float) else None
    return unknown_option(given.name, value, known, verb, others, given.place, before)


def _given(arguments: list[str]) -> Iterator[Given]:
    """The options in the order in which they count, with the keys of config files in the place of each file."""
    for name, value in pairs(arguments):
        if name in CONFIG:
            yield from _keys(config_in(value), "", value if is_path(value) else "--config")
        elif name.startswith("--") and " " not in name:
            yield Given(_plain(name[2:]), None if value.startswith("--") else value or None, None)


def _keys(loaded: Any, prefix: str, place: str) -> Iterator[Given]:
    """The keys of a config. The class of a group comes first, because it decides which other keys there are."""
    if not isinstance(loaded, dict):
        return
    for key in sorted(map(str, loaded), key=lambda key: key != "class_path"):
        name, value = f"{prefix}{key}", loaded.get(key)
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{name}.", place)
        else:
            yield Given(_plain(name), value, place)


def _plain(name: str) -> str:
    return name.replace("init_args.", "").removesuffix("+")


def _class_in(value: Any) -> str:
    """The class in a value of --model or --data, which may be a description in JSON. Empty: not known here."""
    if isinstance(value, str) and value.startswith("{"):
        import yaml

        with suppress(yaml.YAMLError, AttributeError):
            value = yaml.safe_load(value).get("class_path")
    return value if isinstance(value, str) else ""


def _exists(verb: str, name: str, classes: dict[str, str | None]) -> bool:
    slot = name.partition(".")[0]
    if name in OTHERS or any(part in name.split(".") for part in CLASS_KEYS):
        return True
    if slot in CLASSES:
        known = options_of_class(slot, classes[slot])
    else:
        known = [*options_of_verb(verb), *_groups_of_other_verbs(verb)]
    return known is None or any(_leads_to(name, option) or _leads_to(option, name) for option in known)


def _groups_of_other_verbs(verb: str) -> list[str]:
    own = "fit" if verb in VERBS_LIKE_FIT else verb
    return [key for other, keys in OPTIONS_OF_ONE_VERB.items() if other != own for key in keys]


def _leads_to(option: str, other: str) -> bool:
    """Whether a name is an option or one of its parts: trainer.logger has those of the logger's class."""
    return other == option or (other.startswith(f"{option}.") and option not in VALUES_ALONE)
