"""Our own verbs: one typed function a file; jsonargparse turns its signature and docstring into flags and help."""

import importlib
from collections.abc import Callable
from typing import Any


def run(verb: str, arguments: list[str]) -> None:
    """Run ``VERB`` with its command line. A file with several functions (``VERBS``) has verbs of a second level."""
    from jsonargparse import auto_cli

    module = importlib.import_module(f"lit_gpt.commands.{'import_' if verb == 'import' else verb}")
    target: Callable[..., Any] | dict[str, Any] = getattr(module, "VERBS", None) or getattr(module, verb)
    auto_cli(target, args=arguments, as_positional=False)
