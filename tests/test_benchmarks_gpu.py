"""The GPU's benchmark keeps what it measured, also of a part that is given up, and says at once what it lacks."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_needs, gpu_parts, report, train_speed
from benchmarks.turns import Turn

#: A command that shows a figure, starts a process of its own, and then hangs.
HANGS = """
import subprocess, sys, time
print("words", flush=True)
print('{"benchmark": "x", "first": 1.5}', flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print('{"child": %d}' % child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figures that were recorded so far, by part."""
    monkeypatch.setattr(report, "FIGURES", tmp_path / "benchmarks.json")
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmarks.md")

    def read() -> dict[str, Any]:
        return {name: entry["figures"] for name, entry in json.loads(report.FIGURES.read_text()).items()}

    return read


def options(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"record": True, "tiny": True, "nanogpt": None, "text": None, **more})


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow  # 2 s of waiting
def test_a_part_that_takes_too_long_keeps_its_figures_and_ends_with_all_its_processes(
    kept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "hangs.py").write_text(HANGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu_parts, "LIMIT", 2)
    monkeypatch.setitem(gpu_parts.PARTS, "micro", gpu_parts.command("hangs", [], []))
    start = time.monotonic()
    found = gpu.measure("micro", options())
    assert time.monotonic() - start < 20
    assert found["first"] == 1.5
    assert found["failed"] == "failed: benchmarks.hangs took longer than there was time for"
    assert kept() == {"gpu tiny micro": found}
    end = time.monotonic() + 5
    while is_running(found["child"]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(found["child"])


def test_figures_are_kept_before_a_part_ends_and_a_whole_record_outlives_a_failure(
    kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def part(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
        yield {"one": 1}
        seen.append(kept()["gpu tiny speed"])
        yield {"two": 2}
        if len(seen) != 2:
            raise ValueError("no /such/file here")

    monkeypatch.setitem(gpu_parts.PARTS, "speed", part)
    first = gpu.measure("speed", options())
    assert seen[0] == {"one": 1, "unfinished": True}
    assert first | {"seconds": 0} == {"one": 1, "two": 2, "failed": "failed: ValueError: no PATH here", "seconds": 0}
    whole = gpu.measure("speed", options())
    assert kept()["gpu tiny speed"] == whole
    assert gpu.is_whole(whole)
    gpu.measure("speed", options())
    assert kept()["gpu tiny speed"] == whole


def test_what_is_missing_is_said_before_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys, benchmarks.gpu; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert gpu_needs.missing_packages() == []
    there = gpu_needs.importlib.util.find_spec
    for gone in ("jsonargparse", "docstring_parser", "tiktoken"):
        with monkeypatch.context() as context:
            context.setattr(
                gpu_needs.importlib.util, "find_spec", lambda name, g=gone: None if name == g else there(name)
            )
            context.setattr(sys, "argv", ["gpu", "--tiny"])
            with pytest.raises(SystemExit, match=f"^missing: {gone}: pip install {gone} "):
                gpu.main()
    assert "model.py in the folder of --nanogpt" in gpu_needs.missing(tmp_path)
    assert "a clone of nanoGPT (--nanogpt)" in gpu_needs.missing(None)
    monkeypatch.setattr(gpu_needs.shutil, "which", lambda _: None)
    assert gpu_needs.missing(None)[0].startswith("a C compiler")


def test_the_record_beside_nanogpt_is_a_table_with_utilisation_and_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    case = train_speed.CASES["gpu"]
    monkeypatch.setattr(train_speed, "peak_flops", lambda _: 989e12)
    rates = {"nanogpt_compiled": 480_000, "fit_compiled": 540_000, "recommended": 500_000}
    found = train_speed.summary(case, {who: [Turn(case.tokens / rate, 0, 0, 0)] for who, rate in rates.items()})
    weights = 12 * 12 * 768**2 + 50304 * 768  # of matmuls
    per_token = 6 * weights + 12 * 12 * 768 * 1024
    assert found["fit_compiled"]["mfu"] == round(540_000 * per_token / 989e12, 4)
    assert "mfu" not in found["recommended"]
    assert found["fit_compiled_over_nanogpt_compiled"]["median"] == 1.125
    assert gpu.lines("train_speed", {**found, "seconds": 60.0})[2:5] == [
        f"| nanogpt compiled | 480,000 | {480_000 * per_token / 989e12:.1%} | 1.000 |",
        f"| fit compiled | 540,000 | {540_000 * per_token / 989e12:.1%} | 1.125 |",
        "| recommended | 500,000 |  | 1.042 |",
    ]


def test_tests_of_the_gpu_are_counted_and_failures_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["tests/test_gpu.py::test_a PASSED [ 50%]", "tests/test_gpu.py::test_b[1-x] FAILED [ 90%]", "1 failed"]
    monkeypatch.setattr(gpu_parts, "output", lambda *_: iter(lines))
    *_, last = gpu_parts.gpu_tests(Path(), options())
    assert last == {"passed": 1, "failed": 1, "names of failures": ["test_b[1-x]"]}


@pytest.mark.slow  # runs fit, and a part that ends with an error
def test_parts_run_one_after_the_other_also_when_one_fails(
    kept: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
        yield {"lines": list(gpu_parts.output("lit_gpt", "fitt"))}

    monkeypatch.setitem(gpu_parts.PARTS, "memory", fails)
    for status, parts in ((1, ["memory", "speed"]), (0, ["ready"])):
        monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--record", "--parts", *parts])
        with pytest.raises(SystemExit) as stop:
            gpu.main()
        assert stop.value.code == status
    assert kept()["gpu tiny memory"]["failed"].startswith("failed: lit_gpt ended with status 2: lit_gpt: ")
    assert kept()["gpu tiny speed"]["tokens_per_second"] > 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"benchmark": "gpu", "ready": kept()["gpu tiny ready"]}
