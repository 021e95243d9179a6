"""The verbs of lit_gpt, one file each. The signature and docstring of a function become options and --help."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from datamodules.errors import UserError
from lit_gpt.cli.early import FUNCTIONS
from lit_gpt.cli.late_imports import collecting_later
from lit_gpt.cli.plain_options import plain_options

#: Verbs whose file is in lit_gpt/diagnostics.
DIAGNOSTICS = ("inspect", "report", "sweep")


def run(verb: str, arguments: list[str]) -> None:
    """Run ``verb`` with its command line.

    A file with ``main`` parses its arguments itself. A file with ``VERBS`` has a second level of verbs. Any other file
    has a function with the verb's name in Python (see `FUNCTIONS`).
    """
    function = FUNCTIONS.get(verb, verb)
    name = function if isinstance(function, str) else verb
    with collecting_later():
        module = importlib.import_module(f"lit_gpt.{'diagnostics' if verb in DIAGNOSTICS else 'commands'}.{name}")
    target: Any = getattr(module, "VERBS", None) or getattr(module, name, None)
    is_function = not hasattr(module, "main") and not isinstance(target, dict)
    options = plain_options(target, arguments) if is_function else None
    if options is not None:
        target(**options)
    else:
        _parse_and_run(verb, target, arguments, getattr(module, "main", None))


def _parse_and_run(verb: str, target: Any, arguments: list[str], main: Callable[[list[str]], None] | None) -> None:
    # Not before they are needed, because `plain_options` has read most command lines.
    from argparse import ArgumentError

    from jsonargparse import auto_cli

    from lit_gpt.cli.friendly_errors import CommandLine, friendly_error

    prog = f"python -m lit_gpt {verb}"
    try:
        if main is not None:
            main(arguments)
            return
        auto_cli(target, args=arguments, as_positional=False, exit_on_error=False, allow_abbrev=False, prog=prog)
    except ArgumentError as error:
        line = CommandLine(arguments, _options(target), verb=verb)
        raise UserError(friendly_error(str(error), line)) from error


def _options(target: Any) -> list[str]:
    functions = list(target.values()) if isinstance(target, dict) else [target] if target else []
    return [name for function in functions for name in inspect.signature(function).parameters]
