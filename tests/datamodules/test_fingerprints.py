"""A text that one process has hashed is not read for that by another, and a text that changes always is."""

import gzip
import hashlib
import os
import time
from pathlib import Path

import pytest

from datamodules.files import default_cache_dir
from datamodules.first_bytes import FirstBytes
from datamodules.reading import TextFile
from datamodules.sources import Source, open_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(path: Path, text: str) -> Path:
    """A file that is older than a clock's tick."""
    path.write_text(text)
    time.sleep(0.06)
    return path


def source_of(path: Path, first: int | None) -> Source:
    source = open_source(str(path))
    return source if first is None else FirstBytes(source.name, source, first)


@pytest.mark.parametrize("first", [None, 5])
def test_a_second_process_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int | None) -> None:
    path = written(tmp_path / "text.txt", "some text")
    once = source_of(path, first).fingerprint()

    def refuse(_: TextFile) -> None:
        raise AssertionError("it reads the text")

    monkeypatch.setattr(TextFile, "raw", refuse)
    assert source_of(path, first).fingerprint() == once


@pytest.mark.parametrize("first", [None, 5])
def test_a_change_is_seen_even_with_the_old_size_and_time(tmp_path: Path, first: int | None) -> None:
    path = written(tmp_path / "text.txt", "some text")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    once = source_of(path, first).fingerprint()
    path.write_text("Same text")
    os.utime(path, ns=times)
    assert source_of(path, first).fingerprint() != once


def test_a_file_that_has_just_been_written_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    open_source(str(tmp_path / "text.txt")).fingerprint()
    assert not list((default_cache_dir() / "fingerprints").glob("*"))


def test_a_change_within_a_second_is_seen_on_a_disk_whose_times_are_whole_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_seconds(file: TextFile) -> tuple[str, int, int, int, int]:
        assert file.path
        stat = file.path.stat()
        second = stat.st_mtime_ns // 10**9 * 10**9
        return str(file.path), stat.st_size, second, second, stat.st_ino

    monkeypatch.setattr("datamodules.fingerprints._state", with_seconds)
    if time.time() % 1 > 0.5:
        time.sleep(1 - time.time() % 1)  # what follows is within one second
    path = written(tmp_path / "text.txt", "some text")
    once = open_source(str(path)).fingerprint()
    path.write_text("Same text")
    assert open_source(str(path)).fingerprint() != once


def test_a_damaged_record_is_not_believed(tmp_path: Path) -> None:
    path = written(tmp_path / "text.txt", "some text")
    once = open_source(str(path)).fingerprint()
    record = next((default_cache_dir() / "fingerprints").iterdir())
    value = hashlib.sha256(b"some text").hexdigest()
    assert value in record.read_text()
    record.write_text(record.read_text().replace(value[:8], "00000000"))
    assert open_source(str(path)).fingerprint() == once


def test_where_nothing_can_be_recorded_the_text_is_read(tmp_path: Path) -> None:
    default_cache_dir().parent.write_text("a file in the way")
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(b"some text"))
    time.sleep(0.06)
    assert open_source(str(path)).fingerprint() == open_source(str(path)).fingerprint()
