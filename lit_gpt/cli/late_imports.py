"""Runs the code of modules that a start imports and seldom uses as late as at their first use.

Lightning imports torchmetrics for a base class, and with it all metrics, transformers and matplotlib. It imports
torch._dynamo for an `isinstance`, and torch does so to keep an optimizer's methods from being compiled. Together they
are half of the time until the first step. After `install` they are imported as by `importlib.util.LazyLoader`: in
`sys.modules` at once, executed when a name is asked for. Two things are different from LazyLoader:

- The names of `EARLY` are given to the modules for which they are meant before anything is executed.
- A package is executed before its submodules are imported, as always, but for those of `SUBMODULES`.

A version of Lightning or torch that asks for other names has everything executed as without this file.
"""

import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import reduce, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, FunctionType, ModuleType
from typing import Any
from weakref import WeakSet

#: Submodules that work before their package has been executed.
SUBMODULES = {"torchmetrics": ("__about__", "metric", "utilities"), "torch._dynamo": ("config",)}
#: The attribute of a function in which torch keeps what `torch._dynamo.disable` has returned for it.
DISABLED = "__dynamo_disable"
_LOCK = threading.RLock()
_UNDER_WAY: set[str] = set()
_PLACEHOLDERS: dict[tuple[str, str], type] = {}
_DISABLED_LATER: WeakSet[Any] = WeakSet()


def install() -> None:
    """Import the modules of `EARLY` late from now on. Those that have been imported stay as they are."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def collecting_later() -> Iterator[None]:
    """Pauses garbage collection while much is imported: that makes many objects and no garbage. 0.15 s with torch."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class LateModule(ModuleType):
    """A module whose code has not run."""

    def __getattr__(self, name: str) -> Any:
        with _LOCK:
            if isinstance(self, LateModule) and self.__name__ not in _UNDER_WAY:  # no other thread has executed it
                if name == "__path__":  # of no package
                    raise AttributeError(name)
                readers, early = EARLY[self.__name__].get(name, ((), _nothing))  # nobody is given other names early
                if _asking().f_globals.get("__name__", "").startswith(readers):
                    with suppress(ImportError, AttributeError):  # in this version it needs the executed module
                        return early(self.__name__, name)
                _execute(self)
        return ModuleType.__getattribute__(self, name)

    def __dir__(self) -> list[str]:
        _execute(self)
        return list(ModuleType.__dir__(self))


def _asking() -> FrameType:
    """The frame that asks a module for a name. A frame of the import system asks for the next one."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__") in ("importlib._bootstrap", "_frozen_importlib"):
        frame = frame.f_back
    return frame


def _execute(module: ModuleType) -> None:
    name = module.__name__
    with _LOCK:
        if not isinstance(module, LateModule) or name in _UNDER_WAY:
            return
        _UNDER_WAY.add(name)
        try:
            module.__loader__.exec_module(module)  # type: ignore[union-attr]
            module.__class__ = ModuleType  # type: ignore[assignment]
        finally:
            _UNDER_WAY.discard(name)
        _replace_placeholders(module)
        if name == "torch._dynamo":
            _disable_now()


# ---- what there is early


def _nothing(*_: Any) -> Any:
    return None


class _Placeholder(type):
    """The type of a class that stands for one of a module that has not been executed: nothing is an instance of it."""

    of: tuple[str, str]

    def __instancecheck__(cls, instance: Any) -> bool:
        module = sys.modules[cls.of[0]]
        return not isinstance(module, LateModule) and isinstance(instance, getattr(module, cls.of[1]))

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(cls.of[0]), cls.of[1])(*args, **kwargs)


def _placeholder(module: str, name: str) -> type:
    if (module, name) not in _PLACEHOLDERS:
        _PLACEHOLDERS[module, name] = _Placeholder(name, (), {"of": (module, name)})
    return _PLACEHOLDERS[module, name]


def _replace_placeholders(module: ModuleType) -> None:
    """Put the real thing into the modules that have a placeholder."""
    for (place, name), placeholder in _PLACEHOLDERS.items():
        if place == module.__name__ and hasattr(module, name):
            for other in list(sys.modules.values()):
                if getattr(other, "__dict__", {}).get(name) is placeholder:
                    setattr(other, name, getattr(module, name))


def _metric(*_: Any) -> Any:
    """The base class of metrics. The two modules import each other, which works in this order only."""
    import_module("torchmetrics.utilities")
    return import_module("torchmetrics.metric").Metric


def _disable(*_: Any) -> Any:
    """What stands for `torch._dynamo.disable` as long as nothing can be compiled."""
    return _disabled_later


def _disabled_later(fn: Any, *args: Any, **kwargs: Any) -> Any:
    def disabled() -> Any:
        return import_module("torch._dynamo").disable(fn, *args, **kwargs)

    if not isinstance(fn, FunctionType) or not fn.__module__.startswith(("torch.", "lightning.")):
        _execute(import_module("torch._dynamo"))
        return disabled()

    @wraps(fn)
    def call(*values: Any, **named: Any) -> Any:
        is_late = isinstance(sys.modules["torch._dynamo"], LateModule)
        return (fn if is_late else disabled())(*values, **named)

    _DISABLED_LATER.add(call)
    call.disabled = disabled  # type: ignore[attr-defined]
    return call


def _disable_now() -> None:
    """Put what the executed `torch._dynamo.disable` returns where `_disabled_later` was used."""
    for call in list(_DISABLED_LATER):
        fn, (*owner, name) = call.__wrapped__, call.__qualname__.split(".")
        if vars(fn).get(DISABLED) is call:
            del vars(fn)[DISABLED]  # torch asks again
        elif "<locals>" not in owner and (place := _owner(call.__module__, owner)) and vars(place).get(name) is call:
            setattr(place, name, call.disabled())
    _DISABLED_LATER.clear()


def _owner(module: str, classes: list[str]) -> Any:
    return reduce(lambda place, name: getattr(place, name, None), classes, sys.modules.get(module))


Early = Callable[[str, str], Any]
#: By module and name: the beginning of the names of the modules that are given it early, and what they are given.
#: Where that raises ImportError or AttributeError, as it may in another version, the module is executed.
EARLY: dict[str, dict[str, tuple[str | tuple[str, ...], Early]]] = {
    "torch._dynamo": {
        "OptimizedModule": ("lightning.", _placeholder),
        "disable": (("torch._compile", "torch.compiler"), _disable),
        "graph_break": ("torch.optim.optimizer", lambda *_: _nothing),  # which it is where nothing is compiled
    },
    "torchmetrics": {
        "Metric": ("", _metric),
        "MetricCollection": ("lightning.", _placeholder),
        "__version__": ("lightning_utilities.", lambda *_: import_module("torchmetrics.__about__").__version__),
        "_logger": ("torchmetrics.utilities.", lambda *_: logging.getLogger("torchmetrics")),
    },
    # what imports matplotlib
    "torchmetrics.utilities.plot": {
        "plot_single_or_multi_val": ("torchmetrics.metric", _placeholder),
        "_AX_TYPE": ("torchmetrics.metric", _placeholder),
        "_PLOT_OUT_TYPE": ("torchmetrics.metric", _placeholder),
    },
}


# ---- the import system


class _Finder(MetaPathFinder):
    """Finds the modules of `EARLY`, and submodules of those that have not been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in EARLY and target is None:
            spec = PathFinder.find_spec(fullname, path)
            if spec and spec.loader:
                spec.loader = _LateLoader(spec.loader)
            return spec
        package, _, name = fullname.rpartition(".")
        parent = sys.modules.get(package)
        if isinstance(parent, LateModule) and name not in SUBMODULES.get(package, ()):
            _execute(parent)
            if fullname in sys.modules:  # its package has imported it; without this it would be executed again
                return ModuleSpec(fullname, _ImportedLoader(sys.modules.pop(fullname)))
        return None


class _LateLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__
        module.__spec__.loader = module.__loader__ = self.loader
        module.__class__ = LateModule


class _ImportedLoader(Loader):
    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec
