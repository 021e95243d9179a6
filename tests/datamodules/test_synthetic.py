"""Synthetic headlines: different ones, the same everywhere."""

import subprocess
import sys
from itertools import islice

import pytest

from datamodules.errors import UserError
from datamodules.synthetic import headlines


def test_they_are_all_different() -> None:
    lines = list(headlines(60_000))
    assert len(set(lines)) == 60_000
    assert all(line.isprintable() and line == line.strip() and "{" not in line for line in lines)
    assert 45 < sum(map(len, lines)) / len(lines) < 60  # real ones have 51 characters


def test_the_same_in_every_process_and_for_every_count() -> None:
    code = "from datamodules.synthetic import headlines; print('\\n'.join(headlines(5000, seed=3)))"
    environment = {"PYTHONHASHSEED": "5", "PYTHONIOENCODING": "utf-8"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    lines = list(headlines(5000, seed=3))
    assert other.stdout.splitlines() == lines
    assert list(islice(headlines(100_000, seed=3), 5000)) == lines


def test_seeds_differ() -> None:
    assert len(set(headlines(1000, seed=0)) & set(headlines(1000, seed=1))) < 10


def test_no_shape_of_headline_dominates() -> None:
    starts = [line.split()[0] for line in headlines(5000)]
    assert max(map(starts.count, set(starts))) < 1500


@pytest.mark.parametrize("count", [0, 10**9])
def test_counts_out_of_range(count: int) -> None:
    with pytest.raises(UserError, match="ask for 1 to that many"):
        next(headlines(count))
