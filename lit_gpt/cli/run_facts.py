"""What must be equal in all processes of a run before its data is known: the code, the libraries and the options."""

import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import Namespace

import datamodules
import lit_gpt
from datamodules.agreement import Fact
from datamodules.options import SOURCES
from lit_gpt.origin import package_commit
from lit_gpt.version import __version__

#: Options in which processes may differ: what only process 0 uses, what each machine has its own of, and texts and
#: tokenizers, whose content is compared later.
LOCAL_OPTIONS = (
    *("config", "name", "logs_dir", "ckpt_path", "resume", "plan", "shrink", "progress", "predictions"),
    *("trainer.logger", "trainer.profiler", "trainer.default_root_dir", "trainer.enable_progress_bar"),
    *(f"data.{name}" for name in (*SOURCES, "tokenizer", "cache_dir", "num_workers")),
)
CODE, OWN_CODE = "version of lit_gpt", "code of "
FIXES = {
    CODE: "install the same version everywhere, or check out the same commit",
    "version of torch": "install the same version everywhere",
    "version of lightning": "install the same version everywhere",
    "": "start all processes with the same command line and the same files",
}


def run_facts(config: Namespace, classes: Iterable[type]) -> dict[str, Fact]:
    """The facts of this process, for `check_agreement`.

    Args:
        config: The resolved options of the verb.
        classes: The classes of the model and the data. Those of other packages are compared by their source files.
    """
    version = f"{__version__} (commit {package_commit()}, SHA-256 of its files {_sources()})"
    facts = {
        CODE: Fact(f"{__version__} {_sources()}", version),
        "version of torch": Fact(torch.__version__, torch.__version__),
        "version of lightning": Fact(lightning.__version__, lightning.__version__),
    }
    own = (cls for cls in classes if cls.__module__.partition(".")[0] not in ("lit_gpt", "datamodules"))
    facts |= {f"{OWN_CODE}{cls.__module__}": _fact_of_source(cls) for cls in own}
    return facts | {f"option --{name}": Fact(value, value) for name, value in options_to_compare(config).items()}


def options_to_compare(config: Namespace) -> dict[str, str]:
    """The options that must be equal in all processes, by their dotted names, with their values as JSON."""
    flat = {name.replace(".init_args.", "."): value for name, value in vars(config.as_flat()).items()}
    return {
        name: json.dumps(value, default=_described)
        for name, value in flat.items()
        if not any(name == local or name.startswith(f"{local}.") for local in LOCAL_OPTIONS)
    }


def _described(value: Any) -> str:
    """A value without JSON. The default text of an object would hold its address."""
    return str(value) if isinstance(value, Path) else f"a {type(value).__name__}"


def _sources() -> str:
    """A hash of the source files of lit_gpt and datamodules, so that changes without a commit are seen."""
    result = hashlib.sha256()
    for package in (lit_gpt, datamodules):
        folder = Path(package.__file__ or "").parent
        for path in sorted(folder.rglob("*.py")):
            result.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return result.hexdigest()[:8]


def _fact_of_source(cls: type) -> Fact:
    path = inspect.getsourcefile(cls)
    content = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8] if path else ""
    return Fact(content, f"SHA-256 {content} of {path}")
