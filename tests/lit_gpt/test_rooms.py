"""Who imports whom: the core knows no method, baseline or command line, and works where the methods are not there."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from lit_gpt.config import GPTConfig

ROOT = Path(__file__).parents[2]
CORE = sorted(path.stem for path in (ROOT / "lit_gpt").glob("*.py") if path.stem not in ("__init__", "__main__"))
#: What a person reads in plain torch.
PLAIN = ("model", "config", "attention", "loss", "optim", "muon", "muon_shared", "protocols", "decode", "generate")
PLAIN += ("bounds", "sizes")
COMMAND_LINE = ("lit_gpt/cli/", "lit_gpt/commands/", "lit_gpt/diagnostics/", "lit_gpt/__main__.py")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; not those for the type checker alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by its own place"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(path: Path, *prefixes: str) -> list[str]:
    return [name for name in imports(path) if any(name == one or name.startswith(f"{one}.") for one in prefixes)]


def test_datamodules_know_nothing_of_lit_gpt() -> None:
    for path in (ROOT / "datamodules").rglob("*.py"):
        assert not forbidden(path, "lit_gpt"), path


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_no_room_above_it(name: str) -> None:
    rooms = [f"lit_gpt.{room}" for room in ("methods", "baselines", "cli", "commands", "callbacks", "diagnostics")]
    assert not forbidden(ROOT / "lit_gpt" / f"{name}.py", *rooms)


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_plain_torch_imports_no_lightning(name: str) -> None:
    """Nor does anything that it imports of ours."""
    seen, queue = set(), [f"lit_gpt.{name}"]
    while queue:
        path = ROOT.joinpath(*queue.pop().split(".")).with_suffix(".py")
        if path.is_file() and path not in seen:
            seen.add(path)
            assert not forbidden(path, "lightning", "pytorch_lightning"), path
            ours = [one for one in imports(path) if one.startswith("lit_gpt.")]
            queue += [*ours, *(one.rpartition(".")[0] for one in ours)]
    assert seen


def test_only_the_command_line_imports_the_command_line() -> None:
    for path in (ROOT / "lit_gpt").rglob("*.py"):
        if not str(path.relative_to(ROOT)).startswith(COMMAND_LINE):
            assert not forbidden(path, "lit_gpt.cli", "lit_gpt.commands"), path


def test_methods_are_imported_by_themselves_alone() -> None:
    for path in (ROOT / "lit_gpt").rglob("*.py"):
        if not path.is_relative_to(ROOT / "lit_gpt" / "methods"):
            assert not forbidden(path, "lit_gpt.methods"), path


def test_a_gpt_has_no_option_of_a_method() -> None:
    assert len(fields(GPTConfig)) <= 28


WITHOUT_METHODS = """
import importlib, sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "lit_gpt.methods" or name.startswith("lit_gpt.methods."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import warnings
warnings.simplefilter("ignore")
import torch
from datamodules.errors import UserError
from lit_gpt.cli.lightning_cli import run
from lit_gpt.commands import run as run_command
for name in CORE:
    importlib.import_module(f"lit_gpt.{name}")
run("fit", ["--config", "configs/char.yaml", *TINY])
folder = Path("logs/char/version_0")
run("fit", ["--config", "configs/char.yaml", *TINY, "--trainer.max_steps", "4", "--ckpt_path", str(folder)])
run_command("generate", ["--ckpt_path", str(folder), "--max_new_tokens", "3", "--device", "cpu"])
def without_methods():
    assert not [name for name in sys.modules if name.startswith("lit_gpt.methods")]
without_methods()
assert not [name for name in sys.modules if name.startswith("lit_gpt.diagnostics")]
if not WHOLE:
    sys.exit()
run("validate", ["--ckpt_path", str(folder), "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"])
run_command("export", ["--ckpt_path", str(folder), "--format", "safetensors", "--out", "out"])
stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
stored["lit_gpt"]["module"] = "lit_gpt.methods.module.LitExtendedGPT"
torch.save(stored, "extended.ckpt")
for use in (
    lambda: run_command("generate", ["--ckpt_path", "extended.ckpt", "--device", "cpu"]),
    lambda: run("validate", ["--ckpt_path", "extended.ckpt"]),
):
    try:
        use()
    except UserError as error:
        print("refused:", error)
without_methods()
try:
    run("fit", ["--config", "configs/char.yaml", "--help"])
except SystemExit as left:
    print("help:", left.code)
"""


def without_methods(folder: Path, whole: bool) -> str:
    """The output of a process that finds no methods: it fits, resumes and generates, and as a whole all the rest."""
    tiny = [
        *("--model.config.block_size", "16", "--model.config.n_layer", "1", "--model.config.n_head", "2"),
        *("--model.config.n_embd", "16", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"),
        *("--trainer.limit_val_batches", "1", "--data.tokens_per_step", "128", "--trainer.accelerator", "cpu"),
        *("--samples.max_new_tokens", "5", "--trainer.precision", "32-true"),
    ]
    code = f"CORE, TINY, WHOLE = {CORE!r}, {tiny!r}, {whole}\n{WITHOUT_METHODS}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # 8 s: each verb once
def test_without_the_methods_a_gpt_is_trained_and_writes(tmp_path: Path) -> None:
    """Nor does training import the diagnostics."""
    without_methods(tmp_path, whole=False)
    assert (tmp_path / "logs" / "char" / "version_0" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_without_the_methods_the_rest_works(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="the hf extra is not installed")
    shown = without_methods(tmp_path, whole=True)
    told = [line for line in shown.splitlines() if line.startswith("refused:")]
    needs = "refused: the checkpoint needs lit_gpt.methods, which is not installed: install lit-gpt whole."
    assert told == [needs, needs]
    assert "help: 0" in shown
    assert (tmp_path / "out" / "model.safetensors").is_file()
