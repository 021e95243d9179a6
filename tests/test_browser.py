"""TensorBoard of a run, in a browser."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def address(fit: Callable[..., Path], tmp_path: Path) -> Iterator[str]:
    """The page of a TensorBoard server that shows a tiny run."""
    fit("--tensorboard.every_n_validations", "1")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "logs", "--port", "0", "--host", "localhost"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        assert server.stderr is not None
        found = (re.search(r"http://\S+", line) for line in server.stderr)
        yield next(match[0] for match in found if match)
        server.kill()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_first_page_has_losses_of_all_splits_in_one_chart(address: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=30000", "--window-size=1600,1200", "--dump-dom", address]
    page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    (card,) = [part for part in page.split("<card-view")[1:] if 'title="metrics/loss"' in part]
    runs = {split for split in ("train", "train_eval", "val") if re.search(rf"run/version_0/{split}\b(?!_)", card)}
    assert runs == {"train", "train_eval", "val"}
    assert "optimizer" in page
    assert "No dashboards are active" not in page
