"""Reads a command line and its config files before they are parsed. Nothing heavy is imported."""

import itertools
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datamodules.errors import UserError

CONFIG = ("--config", "-c")
PACKAGE = Path(__file__).parents[1]


def value_of(key: str, arguments: list[str]) -> Any:
    """The value of a key on the command line or in a config file, before parsing. None: neither has it."""
    result = None
    for name, value in pairs(arguments):
        if name == f"--{key}":
            result = value
        elif name in CONFIG:
            result = config_in(value).get(key, result)
    return result


def wants_plan(arguments: list[str]) -> bool:
    """Whether the command line or a config file has ``plan``."""
    return "--plan" in arguments or value_of("plan", arguments) in (True, "true")


def data_of_configs(arguments: list[str]) -> dict[str, Any]:
    """The ``data`` of all config files. A later file overrides an earlier one."""
    merged: dict[str, Any] = {}
    for name, value in pairs(arguments):
        if name in CONFIG:
            data = config_in(value).get("data")
            data = {"class_path": data} if isinstance(data, str) else dict(data or {})
            options = {**(merged.get("init_args") or {}), **(data.pop("init_args", None) or {})}
            merged |= {**data, "init_args": options}
    return merged


def config_in(value: str) -> dict[str, Any]:
    """The keys of a value of --config: of a file, or of YAML or JSON that is typed. Empty for any other value."""
    import yaml  # its 18 files are not read where there is no config

    loaded = None
    if not is_path(value):
        with suppress(yaml.YAMLError):
            loaded = yaml.safe_load(value)
    elif Path(value).is_file():
        loaded = load_yaml(Path(value))
        if not isinstance(loaded, dict):
            raise UserError(f"config {value!r} has no keys: write a line such as `name: test` into it.")
    return loaded if isinstance(loaded, dict) else {}


def is_path(value: str) -> bool:
    """Whether a value of --config is the path of something that exists."""
    with suppress(OSError):  # a name of more than 255 characters
        return Path(value).exists()
    return False


def load_yaml(path: Path) -> Any:
    """The content of a config file."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {str(path)!r} is not valid YAML: {' '.join(str(error).split())}.") from error


def pairs(arguments: list[str]) -> list[tuple[str, str]]:
    """(option, value) of each argument, for both forms: ``--option value`` and ``--option=value``."""
    result = []
    for argument, value in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, joined, own = argument.partition("=")
        result.append((name, own) if argument.startswith("-") and joined else (argument, value))
    return result


def with_packaged_configs(arguments: list[str]) -> list[str]:
    """The arguments, with each config that does not exist in the current folder replaced by the package's."""
    result = list(arguments)
    for i, argument in enumerate(arguments):
        option, joined, value = argument.partition("=")
        if joined and option in CONFIG:
            result[i] = f"{option}={_existing_or_packaged(value)}"
        elif argument in CONFIG and i + 1 < len(arguments):
            result[i + 1] = _existing_or_packaged(arguments[i + 1])
    return result


def _existing_or_packaged(config: str) -> str:
    if is_path(config) and Path(config).is_dir():
        file = next(iter(sorted(Path(config).glob("*.yaml"))), None)
        raise UserError(f"config {config!r} is a folder: give a YAML file{f', such as {file}' if file else ''}.")
    if is_path(config) or config_in(config):
        return config
    packaged = _packaged(config)
    if packaged is None and Path(config).suffix in (".yaml", ".yml", ".json"):
        raise _no_config(config)
    return str(packaged or config)


def _no_config(config: str) -> UserError:
    """The error for a config file that does not exist, with the one whose name is nearest."""
    folders = [Path(config).parent, *(home / "configs" for home in (PACKAGE, PACKAGE.parent))]
    files = [file for folder in folders for file in sorted(folder.glob(f"{'**/' * folder.is_absolute()}*.yaml"))]
    names = {file.stem: file for file in reversed(files)}
    near = get_close_matches(Path(config).stem, names, n=1)
    hint = f"did you mean {_shown(names[near[0]])}?" if near else "give the path of a YAML file, or of one in configs."
    return UserError(f"config {config!r} does not exist: {hint}")


def _shown(path: Path) -> str:
    """A config as it is typed: a packaged one from its folder on."""
    parts = path.parts
    return str(Path(*parts[parts.index("configs") :]) if path.is_absolute() and "configs" in parts else path)


def _packaged(config: str) -> Path | None:
    """The packaged config of that name: in the installed package, or beside it in a clone."""
    paths = (home / "configs" / config.removeprefix("configs/") for home in (PACKAGE, PACKAGE.parent))
    return next((path for path in paths if path.is_file()), None)
