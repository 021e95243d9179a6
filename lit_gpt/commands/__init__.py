"""Our own verbs, one file each: a typed function whose signature and docstring become flags and help."""

import importlib
import inspect
from argparse import ArgumentError
from typing import Any

from datamodules.errors import UserError
from lit_gpt.cli.friendly_errors import friendly_error


def run(verb: str, arguments: list[str]) -> None:
    """Run ``verb`` with its command line.

    A file with a ``main`` parses for itself; one with ``VERBS`` has a second level of verbs; any other holds a function
    of the verb's name (``import_`` for import).
    """
    from jsonargparse import auto_cli

    name = {"import": "import_"}.get(verb, verb)
    module = importlib.import_module(f"lit_gpt.commands.{name}")
    if hasattr(module, "main"):
        module.main(arguments)
        return
    target: Any = getattr(module, "VERBS", None) or getattr(module, name)
    prog = f"python -m lit_gpt {verb}"
    try:
        auto_cli(target, args=arguments, as_positional=False, exit_on_error=False, allow_abbrev=False, prog=prog)
    except ArgumentError as error:
        raise UserError(friendly_error(str(error), _options(target))) from error


def _options(target: Any) -> list[str]:
    functions = list(target.values()) if isinstance(target, dict) else [target]
    return [name for function in functions for name in inspect.signature(function).parameters]
