"""Configures `validate`, `test` and `predict` with the data that the checkpoint's run was trained on."""

import json
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace

from datamodules.errors import UserError
from datamodules.files import expanded
from datamodules.options import SOURCES, option_names, path_exists, stored_value
from datamodules.remote import is_url
from datamodules.sources import is_path
from lit_gpt.cli.arguments import CONFIG, data_of_configs, pairs

#: The classes that a checkpoint may name. A file from a stranger must not choose what else is imported.
OWN_CLASSES = (
    "datamodules.bert.BertDataModule",
    "datamodules.bpe.BPEDataModule",
    "datamodules.char.CharDataModule",
    "datamodules.headlines.HeadlinesDataModule",
    "datamodules.token_data.TokensDataModule",
)


def parsed(
    parse: Callable[[list[str]], Namespace], verb: str, stored: Mapping[str, Any] | None, arguments: list[str]
) -> tuple[Namespace, str | None]:
    """The configuration of a command line, with the data of the checkpoint's run.

    ``--data.OPTION`` overrides one option of that data, and ``--data CLASS`` replaces it. The ``data`` of a config file
    is not used, because it may belong to another run, and neither are defaults. A class that is not lit_gpt's must be
    typed by the user.

    Args:
        parse: Parses the arguments after the verb.
        verb: The verb, not ``fit``.
        stored: What `described` returned for the run's data. None: the command line decides everything.
        arguments: The command line after the verb.

    Returns:
        The configuration, and a line to print if the data of a config file is not used.

    Raises:
        UserError: A text of the run does not exist any more, or its class must be typed.
    """
    if stored is None or any(name == "--data" for name, _ in pairs(arguments)):
        return parse(arguments), None
    if not is_described(stored):
        raise UserError(
            "the checkpoint describes its data as `fit` never does: give a file that `fit` saved, or the data as "
            "--data CLASS with its options."
        )
    if stored["class_path"] not in OWN_CLASSES:
        return _with_class(parse(arguments), verb, stored["class_path"]), None
    rest, data = _split(arguments)
    config, typed = parse(rest), _typed_options(data)
    used = usable_options(stored, typed, verb)
    config[verb].data = parse([f"--data={json.dumps(used)}", *data])[verb].data
    return config, _unused_data_line(data_of_configs(rest), config[verb].data.as_dict(), typed)


def is_described(stored: Any) -> bool:
    """Whether a value has the form of what `described` returns. The parser checks the other options."""
    if not isinstance(stored, dict) or not isinstance(stored.get("class_path"), str):
        return False
    options = stored.get("init_args", ())
    if not isinstance(options, dict | None):
        return False
    paths = [(options or {}).get(name) for name in (*SOURCES, "cache_dir")]
    return all(
        isinstance(path, str | None) for value in paths for path in (value if isinstance(value, list) else [value])
    )


def _with_class(config: Namespace, verb: str, wanted: str) -> Namespace:
    """The configuration, if its data is of the wanted class. Otherwise a UserError."""
    if config[verb].data.class_path != wanted:
        raise UserError(
            f"the run's data was a {wanted}, a class that no file may choose: give it as --data, with its options."
        )
    return config


def usable_options(stored: Mapping[str, Any], typed: set[str], verb: str) -> dict[str, Any]:
    """The stored class and options that apply to a verb, without the options in ``typed``.

    Raises:
        UserError: A text does not exist any more, and the command line gives no other.
    """
    options = {name: value for name, value in (stored["init_args"] or {}).items() if name not in typed}
    if unknown := sorted(options.keys() - option_names(resolve_name(stored["class_path"]))):
        raise UserError(f"the checkpoint was written by a newer lit-gpt (option {unknown[0]}): upgrade lit-gpt.")
    for name in SOURCES if verb == "predict" else SOURCES[:-1]:
        value = options.get(name)
        for spec in value if isinstance(value, list) else [value]:
            if spec is not None and is_path(spec) and not path_exists(spec):
                raise UserError(f"the run's {name} {spec!r} is gone: give the text as --data.{name}.")
    if verb != "predict":
        options.pop("predict_source", None)
    cache = options.get("cache_dir")
    if cache and not is_url(cache) and not expanded(cache).is_dir():  # a path of another machine
        del options["cache_dir"]
    return {"class_path": stored["class_path"], "init_args": options}


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """A command line without its ``--data.OPTION`` arguments, and these arguments."""
    rest: list[str] = []
    data: list[str] = []
    goal = rest
    for argument in arguments:
        if argument.startswith("--") or argument in CONFIG:  # not any "-": a negative number is a value
            goal = data if argument.startswith("--data.") and not argument.startswith("--data.help") else rest
        goal.append(argument)
    return rest, data


def _typed_options(data: list[str]) -> set[str]:
    """Names of the options among ``--data.OPTION`` arguments."""
    names = (argument.partition("=")[0].rstrip("+") for argument in data if argument.startswith("--data."))
    return {name.removeprefix("--data.").removeprefix("init_args.").split(".")[0] for name in names}


def _unused_data_line(configs: Mapping[str, Any], used: Mapping[str, Any], typed: set[str]) -> str | None:
    """A line about the first option in which config files differ from the data that is used. None: there is none.

    Args:
        configs: The ``data`` of the config files: a class, or options, or both.
        used: ``class_path`` and ``init_args``.
        typed: Options that the command line sets.
    """
    in_configs: dict[str, Any] = {"class": configs.get("class_path"), **configs, **(configs.get("init_args") or {})}
    in_use = {"class": used["class_path"], **used["init_args"]}
    for name in sorted(in_configs.keys() - typed - {"class_path", "init_args"}):
        config, run = stored_value(name, in_configs[name]), in_use.get(name)
        same = str(run).endswith(f".{str(config).rpartition('.')[2]}") if name == "class" else config == run
        if config is not None and not same:
            option = "--data CLASS" if name == "class" else f"--data.{name}"
            return f"data as in the run ({name} {run}), not as in --config ({name} {config}): {option} changes it"
    return None
