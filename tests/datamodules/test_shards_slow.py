"""The longer proofs of stores in shards, which are parts of a benchmark."""

from pathlib import Path

import pytest

from benchmarks import shards

pytestmark = pytest.mark.slow  # each trains or prepares in several processes, for 10 to 60 s


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def test_two_processes_at_once_make_the_store_of_one(tmp_path: Path) -> None:
    figures = shards.preparation(tmp_path, 70)
    assert figures["equal_to_one_process"]
    assert figures["preparation_peak_mb"] < 1.1 * figures["preparation_peak_mb_of_a_tenth"]  # type: ignore[operator]
    mapped = 128  # 32 blocks of the cache; a tenth of the text has only four
    assert figures["reading_peak_mb"] < 1.1 * figures["reading_peak_mb_of_a_tenth"] + mapped  # type: ignore[operator]


def test_a_run_from_memory_has_the_losses_of_a_local_one_also_when_it_resumes(tmp_path: Path) -> None:
    figures = shards.training(tmp_path, 5)
    assert figures == {"memory_losses_equal": True, "memory_resumed_equal": True}


def test_a_run_from_a_url_that_is_killed_goes_on_exactly(tmp_path: Path) -> None:
    assert shards.killed(tmp_path) == {"killed_and_resumed_equal": True}


def test_the_index_of_a_terabyte_is_small() -> None:
    figures = shards.terabyte()
    assert figures["terabyte_memory_mb"] < 150  # type: ignore[operator]
    assert figures["terabyte_first_batch_seconds"] < 30  # type: ignore[operator]
