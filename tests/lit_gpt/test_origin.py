"""What summary.json says of the code: version and commit of lit_gpt, and the commit of the folder of the start."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import lit_gpt
from lit_gpt.version import __version__

Fit = Callable[..., Path]


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> str:
    """A repository in the test's folder, and its commit."""
    git(tmp_path, "init", "-q")
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / ".gitignore").write_text("ignored/\n")
    git(tmp_path, "add", "notes.md", ".gitignore")
    git(tmp_path, "commit", "-q", "-m", "mine")
    return git(tmp_path, "describe", "--always")


def origin(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    summary = json.loads((folder / "summary.json").read_text())
    return summary["versions"], summary["started_in"]


def test_a_project_around_an_installed_lit_gpt_is_not_its_commit(
    fit: Fit, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "venv" / "lit_gpt" / "__init__.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(lit_gpt, "__file__", str(installed))
    versions, started = origin(fit("--trainer.max_steps", "1"))
    assert (versions["lit_gpt"], versions["lit_gpt_commit"]) == (__version__, None)
    assert started == {"folder": str(tmp_path), "commit": project}
    git(tmp_path, "add", "-f", str(installed))
    git(tmp_path, "commit", "-q", "-m", "lit_gpt is a part of the project")
    versions, started = origin(fit("--trainer.max_steps", "1"))
    assert versions["lit_gpt_commit"] == started["commit"] == git(tmp_path, "describe", "--always")


@pytest.mark.usefixtures("project")
def test_an_ignored_folder_has_no_commit(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ignored").mkdir()
    monkeypatch.chdir(tmp_path / "ignored")
    folder = tmp_path / "logs"
    assert fit("--logs_dir", str(folder), "--trainer.max_steps", "1")
    assert origin(folder / "run" / "version_0")[1] == {"folder": str(tmp_path / "ignored"), "commit": None}


def test_outside_of_any_repository_there_is_no_commit(fit: Fit, tmp_path: Path) -> None:
    assert origin(fit("--trainer.max_steps", "1"))[1] == {"folder": str(tmp_path), "commit": None}
