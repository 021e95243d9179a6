"""What `benchmarks.gpu` needs and this machine lacks; and, as a command, versions and the seconds of a compilation.

    python -m benchmarks.gpu_needs [--nanogpt CLONE]

Only Python's own modules are imported before the answer, so that it comes at once.
"""

import argparse
import configparser
import importlib.util
import json
import platform
import re
import shutil
import sysconfig
import time
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
#: What jsonargparse's extra `signatures` consists of.
SIGNATURES = ("docstring_parser", "typeshed_client")
#: Packages without which a part fails: peers and the tests.
OF_PARTS = ("transformers", "safetensors", "pytest", "pytest_timeout")


def missing_packages() -> list[str]:
    """Packages without which nothing runs."""
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    required = setup["options"]["install_requires"].split("\n")
    names = [re.split(r"[\[<>=,]", line)[0] for line in required if line]
    return _absent([*names, *SIGNATURES])


def missing(nanogpt: Path | None) -> list[str]:
    """What else is missing, without which a part fails or has fewer peers."""
    found = [] if shutil.which("gcc") or shutil.which("cc") else ["a C compiler (nothing can be compiled)"]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    found += [] if header.exists() else ["Python.h (nothing can be compiled)"]
    found += _absent(OF_PARTS)
    if nanogpt is None:
        return [*found, "a clone of nanoGPT (--nanogpt)"]
    return found if (nanogpt / "model.py").is_file() else [*found, "model.py in the folder of --nanogpt"]


def refusal(packages: list[str]) -> str:
    """The sentence for packages without which nothing runs."""
    names = " ".join(packages)
    return (
        f"missing: {', '.join(packages)}: pip install {names} (for a machine without a network: pip download --no-deps "
        f"-d wheels {names}, carry the folder, and pip install --no-index --no-deps wheels/*.whl)."
    )


def _absent(names: list[str] | tuple[str, ...]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def main() -> None:
    """Print versions and what is missing, then how long the first compilation takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="folder of a clone of nanoGPT")
    options = parser.parse_args()
    lacks = missing_packages() + missing(options.nanogpt)
    print(json.dumps({"python": platform.python_version(), "missing": lacks}), flush=True)

    import torch

    found = {"torch": str(torch.__version__)}
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "device": torch.cuda.get_device_name()}
    print(json.dumps(found), flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    torch.compile(lambda x: x.sin().sum())(torch.ones(9, device=device))
    print(json.dumps({"first_compilation_seconds": round(time.perf_counter() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()
