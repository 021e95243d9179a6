"""The commits of lit_gpt and of the folder that a run starts in."""

import subprocess
from pathlib import Path

import lit_gpt


def package_commit() -> str | None:
    """The commit of lit_gpt. None: it is installed, or git is not."""
    package = Path(lit_gpt.__file__).parent
    return _commit(package) if _git(package, "ls-files", "__init__.py") else None


def started_in() -> dict[str, str | None]:
    """The current folder and its commit."""
    folder = Path.cwd()
    return {"folder": str(folder), "commit": None if _git(folder, "check-ignore", ".") else _commit(folder)}


def _commit(folder: Path) -> str | None:
    """The commit of the repository around a folder. None: there is no repository.

    The repository need not track the folder (site-packages of an environment inside a project): the callers check that.
    """
    return _git(folder, "describe", "--always", "--dirty")


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git in a folder. None: it is empty, git failed or is not installed."""
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
