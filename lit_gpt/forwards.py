"""Other forwards for a network's modules, for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced_forwards(changes: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """In this context each module has the forward that is given with it.

    A change is asked for when those before it are in place, so that the forward of a block can call those of its parts.
    """
    replaced: list[Any] = []
    try:
        for module, forward in changes:
            replaced.append(module)
            replaced[-1].forward = forward
        yield
    finally:
        for module in replaced:
            vars(module).pop("forward", None)


def has_its_class_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of this very class, and has no forward of its own, from a user or from
    `replaced_forwards`.
    """
    return type(module) is kind and "forward" not in vars(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
