"""Training steps on CUDA tensors without memory: devices, dtypes, and no wait for the GPU, for every option."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "fake_cuda"


@pytest.mark.timeout(1200)
@pytest.mark.slow  # a process that goes through 70 networks
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_no_step_joins_devices_changes_dtypes_or_waits_for_the_gpu(tmp_path: Path) -> None:
    root, library = Path(torch.__file__).parent, tmp_path / "stub.so"
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
    libraries = ["-lc10", "-ltorch_cpu"]
    subprocess.run(["g++", *flags, str(FOLDER / "stub.cpp"), "-o", str(library), *libraries], check=True)
    command = [sys.executable, "-W", "ignore", "-m", "tests.fake_cuda.steps", str(library)]
    done = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) > 60
    assert not [result for result in results if result["problem"]]
