"""Modules whose code runs as late as at their first use."""

import gc
import importlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lit_gpt.cli import late_imports
from lit_gpt.cli.late_imports import LateModule, collecting_later
from tests.conftest import TINY

#: A package that counts how often it is executed, with a submodule that it imports, and one that it does not.
FILES = {
    "late/__init__.py": "import builtins\nbuiltins.executed.append('late')\nfrom late.inner import Thing\nother = 7\n",
    "late/inner.py": "import builtins\nbuiltins.executed.append('inner')\nclass Thing: pass\n",
    "late/outer.py": "from late.inner import Thing\n",
    "late/alone.py": "value = 1\n",
    "reader.py": "from late import Thing\nfound = isinstance(3, Thing)\n",
}
ROOT = Path(__file__).parents[3]
Executed = list[str]


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Executed]:
    """What has been executed of a package that is imported late, by a process in which nothing else is."""
    for name, code in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    ran: Executed = []
    early = {"late": {"Thing": ("reader", late_imports._placeholder)}}
    monkeypatch.setattr("builtins.executed", ran, raising=False)
    monkeypatch.setattr(late_imports, "EARLY", early)
    monkeypatch.setattr(late_imports, "SUBMODULES", {"late": ("alone",)})
    monkeypatch.setattr(late_imports, "_PLACEHOLDERS", {})
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.syspath_prepend(str(tmp_path))
    late_imports.install()
    yield ran
    for name in [name for name in sys.modules if name.partition(".")[0] in ("late", "reader")]:
        del sys.modules[name]


def imported(name: str) -> Any:
    return importlib.import_module(name)


def test_a_module_is_executed_when_a_name_is_asked_for(executed: Executed) -> None:
    late = imported("late")
    assert isinstance(late, LateModule)
    assert executed == []
    assert late.other == 7
    assert executed == ["late", "inner"]
    assert type(late) is ModuleType
    assert late.__spec__.loader.get_source("late") == FILES["late/__init__.py"]
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = late.absent


@pytest.mark.parametrize("look", [dir, lambda module: module.Thing, lambda module: getattr(module, "__all__", None)])
def test_whoever_else_looks_sees_the_executed_module(look: Callable[[Any], Any], executed: Executed) -> None:
    late = imported("late")
    look(late)
    assert executed == ["late", "inner"]


def test_a_package_is_executed_once_before_its_submodules(executed: Executed) -> None:
    inner = imported("late.inner")
    assert executed == ["late", "inner"]
    assert inner is imported("late").inner is sys.modules["late.inner"]
    assert inner.__spec__.origin == inner.__file__
    assert imported("late.outer").Thing is inner.Thing is imported("late").Thing
    assert executed == ["late", "inner"]


def test_a_submodule_that_needs_no_package_is_imported_alone(executed: Executed) -> None:
    alone = imported("late.alone")
    assert executed == []
    assert alone.value == 1
    assert imported("late").alone is alone


def test_a_placeholder_is_replaced_by_the_class(executed: Executed) -> None:
    reader = imported("reader")
    placeholder = reader.Thing
    assert reader.found is False
    assert executed == []
    thing = placeholder()
    assert type(thing) is imported("late").Thing is reader.Thing
    assert isinstance(thing, placeholder)
    assert not isinstance(3, placeholder)


@pytest.mark.parametrize("error", [ImportError, AttributeError])
def test_a_module_is_executed_where_a_name_cannot_be_had_early(
    error: type[Exception], executed: Executed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(module: str, name: str) -> Any:
        raise error("moved in this version")

    monkeypatch.setitem(late_imports.EARLY, "late", {"Thing": ("reader", fails)})
    reader = imported("reader")
    assert executed == ["late", "inner"]
    assert reader.Thing is imported("late").Thing


def test_an_error_of_a_module_is_raised_at_each_use(executed: Executed, tmp_path: Path) -> None:
    (tmp_path / "late" / "inner.py").write_text("raise ValueError('broken')\n")
    late = imported("late")
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            _ = late.other
    assert executed == ["late", "late"]


def test_a_second_thread_waits_until_the_module_is_executed(executed: Executed, tmp_path: Path) -> None:
    (tmp_path / "late" / "inner.py").write_text("import time\ntime.sleep(0.2)\nclass Thing: pass\n")
    late, found = imported("late"), []
    threads = [threading.Thread(target=lambda: found.append(late.other)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 4
    assert executed == ["late"]


def test_a_module_that_is_not_installed_is_not_found(executed: Executed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(late_imports.EARLY, "absent", {})
    with pytest.raises(ModuleNotFoundError, match="No module named 'absent'"):
        imported("absent")


def test_garbage_is_collected_again_after_imports() -> None:
    with pytest.raises(ImportError, match="False"):
        import_while_collecting_later()
    assert gc.isenabled()


def import_while_collecting_later() -> None:
    with collecting_later():
        raise ImportError(str(gc.isenabled()))


FIT = """
import sys
from lit_gpt.__main__ import main
from lit_gpt.cli.late_imports import LateModule
LATE = ("torch._dynamo", "torchmetrics", "torchmetrics.utilities.plot")
def late():
    return [name for name in LATE if isinstance(sys.modules[name], LateModule)]
sys.argv = ["lit_gpt", "fit", *TINY]
main()
import torch
from lightning.pytorch.cli import LightningCLI
assert late() == list(LATE), late()
assert not {"matplotlib", "transformers"} & set(sys.modules)
"""
USES = """
import lightning, pickle
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
zero_grad = torch.optim.Optimizer.zero_grad
assert not hasattr(_ResultCollection.log, "_torchdynamo_disable")
import torch._dynamo.eval_frame
assert late() == [*LATE[1:]]
assert torch._dynamo.OptimizedModule is torch._dynamo.eval_frame.OptimizedModule
assert lightning.fabric.wrappers.OptimizedModule is torch._dynamo.OptimizedModule
assert _ResultCollection.log._torchdynamo_disable and _ResultCollection.update_metrics._torchdynamo_disable
zero_grad(torch.optim.SGD([torch.zeros(1)]))
assert vars(zero_grad.__wrapped__)["__dynamo_disable"]._torchdynamo_disable
from lightning.pytorch.demos.boring_classes import BoringModel
net = torch.compile(BoringModel(), backend="eager")
assert lightning.pytorch.utilities.compile._maybe_unwrap_optimized(net) is net._orig_mod
assert net(torch.ones(1, 32)).shape == (1, 2)
from torchmetrics import Metric
assert late() == [*LATE[1:]]
from torchmetrics.text.bert import BERTScore
import torchmetrics
assert late() == []
assert torchmetrics.text.BERTScore is BERTScore and issubclass(BERTScore, Metric) and torchmetrics.Metric is Metric
assert torchmetrics.MetricCollection is lightning.pytorch.core.module.MetricCollection
assert torchmetrics.metric.plot_single_or_multi_val is torchmetrics.utilities.plot.plot_single_or_multi_val
assert pickle.loads(pickle.dumps(torchmetrics.MeanMetric())).compute
assert bool(torchmetrics.utilities.imports._MATPLOTLIB_AVAILABLE) and "matplotlib" in sys.modules
"""


def run_in_process(code: str, folder: Path) -> None:
    text = folder / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 50)
    tiny = ["--config", str(ROOT / "configs" / "char.yaml"), *TINY, f"--data.source={text}"]
    done = subprocess.run(
        [sys.executable, "-c", f"TINY = {tiny!r}\n{code}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_fit_executes_none_of_them(tmp_path: Path) -> None:
    run_in_process(FIT, tmp_path)


@pytest.mark.slow  # 7 s: what a fit leaves out is imported after it
def test_after_a_fit_all_of_them_can_be_used(tmp_path: Path) -> None:
    run_in_process(FIT + USES, tmp_path)
