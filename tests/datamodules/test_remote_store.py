"""Stores in object storage: the same batches as from a local store, through a bounded cache, over faults."""

import itertools
import os
import pickle
import shutil
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from datamodules import HeadlinesDataModule, TextDataModule
from datamodules.block_cache import BlockCache
from datamodules.errors import UserError
from datamodules.files import default_cache_dir
from datamodules.prepare import Share
from datamodules.read_ahead import ahead
from datamodules.tokens import TokenStore

BLOCK = 512
ABC = zlib.crc32(b"abc")


class FlakyFileSystem(LocalFileSystem):
    """A folder whose requests fail as the class says."""

    protocol = "flaky"
    fails: Callable[[int], bool] = staticmethod(lambda _: False)
    error: Exception = OSError("the connection was reset")
    requests = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("flaky://"))

    def _request(self) -> None:
        type(self).requests += 1
        if type(self).fails(type(self).requests):
            raise self.error

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._request()
        return super().cat_file(path, start=start, end=end, **options)

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        self._request()
        return super().ls(path, detail=detail, **options)


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datamodules.remote._WAITS", (0.0,) * 5)
    for module in ("files", "block_cache", "remote_store"):
        monkeypatch.setattr(f"datamodules.{module}.BLOCK", BLOCK)
    monkeypatch.setattr(FlakyFileSystem, "fails", staticmethod(lambda _: False))
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join("word " * (1 + i * i % 7) + str(i) for i in range(250)))
    return str(path)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path / 'bucket'}"


def opened(source: str, cache_dir: str, **options: Any) -> TextDataModule:
    given: dict[str, Any] = {"tokenizer": "byte", "block_size": 16, "tokens_per_step": 128, "max_shard_size": 1500}
    data = HeadlinesDataModule(source, cache_dir=cache_dir, **{**given, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def batches(data: TextDataModule, steps: int = 12) -> list[dict[str, torch.Tensor]]:
    loaders = [data.train_dataloader(), *data.val_dataloader()]
    return [batch for loader in loaders for batch in itertools.islice(iter(loader), steps)]


def assert_equal(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("storage", "rows"), [("memory", "packed"), ("file", "windows"), ("flaky", "padded")])
def test_batches_are_those_of_a_local_store(lines: str, tmp_path: Path, storage: str, rows: str) -> None:
    url = f"{storage}://{tmp_path / 'bucket'}"
    local = opened(lines, str(tmp_path / "local"), rows=rows)
    remote = opened(lines, url, rows=rows)
    assert remote.stores["train"].is_remote
    assert len(remote.stores["train"].shards) > 2
    assert_equal(batches(remote), batches(local))
    assert remote.text_facts == local.text_facts
    assert np.array_equal(remote.stores["train"].tokens[:], local.stores["train"].tokens[:])


def test_the_machine_that_made_the_store_keeps_no_copy_and_another_finds_it(
    lines: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = batches(opened(lines, url))
    assert not list((tmp_path / "home").rglob("train-*.bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    monkeypatch.setattr("datamodules.prepare._build", None)  # it prepares nothing
    assert_equal(batches(opened(lines, url)), first)


def test_a_store_that_was_there_before_stays(lines: str, url: str) -> None:
    local = opened(lines, str(default_cache_dir()))
    assert_equal(batches(opened(lines, url)), batches(local))
    assert local._folder.exists()


@pytest.mark.parametrize("place", ["upload", "_remove", "store_text_facts"])
def test_a_kill_while_a_store_is_copied_leaves_nothing_on_this_machine(
    lines: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"datamodules.prepare.{place}", kill)
        with pytest.raises(KeyboardInterrupt):
            opened(lines, url)
    key = opened(lines, url)._recipe.key
    assert {path.suffix for path in default_cache_dir().glob(f"{key}*")} == {".lock"}
    assert not list((tmp_path / "home").rglob("train*.bin"))


def test_shares_are_copied_by_the_last(lines: str, url: str, tmp_path: Path) -> None:
    options = {"tokenizer": "byte", "block_size": 16, "max_shard_size": 1500}
    shares = [HeadlinesDataModule(lines, cache_dir=url, **options).prepare_share(Share(i, 2)) for i in (1, 2, 2)]
    assert shares[0] is None
    assert shares[1] == shares[2]
    local = opened(lines, str(tmp_path / "local"))
    assert np.array_equal(TokenStore(shares[1], "train", 10**6).tokens[:], local.stores["train"].tokens[:])


def test_worker_processes_and_pickles_read_the_same(lines: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'bucket'}"
    with_workers = opened(lines, url, num_workers=2)
    assert_equal(batches(with_workers), batches(opened(lines, url)))
    store = with_workers.stores["train"]
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data).tokens[5:2000], store.tokens[5:2000])


# ---- faults


def test_a_storage_that_fails_every_tenth_time_changes_nothing(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlakyFileSystem, "fails", staticmethod(lambda number: number % 10 == 0))
    monkeypatch.setattr(FlakyFileSystem, "requests", 0)
    remote = opened(lines, f"flaky://{tmp_path / 'bucket'}")
    found = batches(remote, steps=10**6)
    assert FlakyFileSystem.requests > 30
    assert_equal(found, batches(opened(lines, str(tmp_path / "local")), steps=10**6))


@pytest.mark.parametrize("spoiled", [lambda data: data[: len(data) // 2], lambda data: data.swapcase()])
def test_a_storage_that_now_and_then_gives_other_bytes_changes_nothing(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[bytes], bytes]
) -> None:
    url = f"flaky://{tmp_path / 'bucket'}"
    opened(lines, url)
    shutil.rmtree(tmp_path / "home")
    read, calls = FlakyFileSystem.cat_file, itertools.count()

    def now_and_then(self: FlakyFileSystem, path: str, **options: Any) -> bytes:
        data = read(self, path, **options)
        return spoiled(data) if next(calls) % 7 == 0 else data

    monkeypatch.setattr(FlakyFileSystem, "cat_file", now_and_then)
    assert_equal(batches(opened(lines, url), steps=99), batches(opened(lines, str(tmp_path / "local")), steps=99))
    assert next(calls) > 9


def test_a_storage_that_does_not_tell_sizes_is_read(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, ls = f"flaky://{tmp_path / 'bucket'}", FlakyFileSystem.ls

    def without_sizes(self: FlakyFileSystem, *args: Any, **options: Any) -> Any:
        return [{**entry, "size": None} for entry in ls(self, *args, **options)]

    monkeypatch.setattr(FlakyFileSystem, "ls", without_sizes)
    assert_equal(batches(opened(lines, url)), batches(opened(lines, str(tmp_path / "local"))))


def test_a_storage_that_keeps_nothing_is_one_sentence(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlakyFileSystem, "put_file", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"flaky://.* is not there after it was written: give storage that keeps"):
        opened(lines, f"flaky://{tmp_path / 'bucket'}")


def test_a_file_system_that_needs_the_network_to_be_opened_is_tried_again(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, open_url, calls = f"flaky://{tmp_path / 'bucket'}", fsspec.core.url_to_fs, itertools.count()

    def now_and_then(*args: Any) -> Any:
        if next(calls) % 2 == 0:
            raise ConnectionError("no route to the host")
        return open_url(*args)

    monkeypatch.setattr("fsspec.core.url_to_fs", now_and_then)
    assert_equal(batches(opened(lines, url)), batches(opened(lines, str(tmp_path / "local"))))


@pytest.mark.parametrize("url", ["memory://", "memory:///", "memory://bucket/"])
def test_a_protocol_alone_is_the_root_of_its_storage(
    lines: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = opened(lines, url)
    folder = url.removeprefix("memory://").strip("/")
    assert fsspec.filesystem("memory").exists(f"{folder}/{data._recipe.key}/meta.json")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "lines.txt"}


@pytest.mark.parametrize(
    ("error", "workers"),
    [
        # torch waits five seconds for a worker that has ended with an error.
        pytest.param(OSError("the connection was reset"), 1, marks=pytest.mark.slow),
        (ValueError("bad gateway"), 0),
        (TimeoutError(), 0),
    ],
)
def test_a_storage_that_fails_always_is_one_sentence(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, workers: int
) -> None:
    url = f"flaky://{tmp_path / 'bucket'}"
    data = opened(lines, url, num_workers=workers, rows="windows")
    monkeypatch.setattr(FlakyFileSystem, "fails", staticmethod(lambda _: True))
    monkeypatch.setattr(FlakyFileSystem, "error", error)
    reason = str(error) or "TimeoutError"
    message = rf"could not be used in 6 tries \({reason}\): check the network and the storage, and start again\.$"
    with pytest.raises(UserError, match=rf"^{url}/\w+/train-[\d-]+.bin {message}"):
        list(data.train_dataloader())
    with pytest.raises(UserError, match=rf"^{url}/\w+ {message}"):
        opened(lines, url)


def shard_of(url: str, number: int = 2) -> Path:
    return sorted(Path(url.partition("://")[2]).glob("*/train-*.bin"))[number]


def test_a_missing_and_a_cut_shard_are_named(lines: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'bucket'}"
    opened(lines, url)
    path = shard_of(url)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=rf"{path.name} has {len(whole) - 2:,} bytes, not {len(whole):,}: copy it"):
        opened(lines, url)
    path.unlink()
    with pytest.raises(UserError, match=rf"{url}/\w+/{path.name} is missing: copy it there again"):
        opened(lines, url)


def test_a_shard_that_vanishes_while_it_is_read_is_named(lines: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'bucket'}"
    data = opened(lines, url)
    path = shard_of(url)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name} is missing"):
        batches(data, steps=10**6)


def test_a_shard_of_another_store_is_named(lines: str, tmp_path: Path) -> None:
    url, other = f"file://{tmp_path / 'bucket'}", f"file://{tmp_path / 'other'}"
    data = opened(lines, url)
    Path(lines).write_text(Path(lines).read_text().replace("word", "text"))
    opened(lines, other)
    shutil.copy(shard_of(other), shard_of(url))
    with pytest.raises(
        UserError, match=rf"{shard_of(url).name} is damaged \(block \d+ differs from its checksum\): copy it there"
    ):
        batches(data, steps=10**6)


@pytest.mark.parametrize("name", ["tokenizer.json", "meta.json"])
def test_a_damaged_small_file_is_named(lines: str, tmp_path: Path, name: str) -> None:
    url = f"file://{tmp_path / 'bucket'}"
    opened(lines, url)
    path = next((tmp_path / "bucket").glob(f"*/{name}"))
    path.write_text(path.read_text().replace("e", "i", 1))
    (next((tmp_path / "home").rglob(f"remote/*/{name}"))).unlink()
    with pytest.raises(UserError, match=rf"{url}/\w+/{name} is damaged \(it differs from its checksum\): copy it"):
        opened(lines, url)


def test_verifying_reads_everything(lines: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'bucket'}"
    data = opened(lines, url)
    data.prepare_data(verify=True)
    path = shard_of(url)
    path.write_bytes(bytes(reversed(path.read_bytes())))
    data.prepare_data()
    with pytest.raises(UserError, match="differs from its checksum"):
        data.prepare_data(verify=True)


def test_a_place_that_cannot_be_written_is_one_sentence(lines: str) -> None:
    with pytest.raises(UserError, match=r"^file:///proc/x/\w+/[\w.-]+ cannot be used \(.*\): check the perm"):
        opened(lines, "file:///proc/x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("://bucket", r"://bucket/\w+ names no protocol: give a folder, or a URL such as s3://bucket/folder\.$"),
        ("s3://bucket/x", r"s3://bucket/x/\w+ needs a package that is not installed: pip install s3fs\.$"),
        ("nosuch://bucket/x", r"nosuch://bucket/x/\w+ cannot be used \(Protocol not known: nosuch\): give a folder"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_sentence(
    lines: str, url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=message):
        opened(lines, url)


# ---- the cache on this machine


def test_the_cache_stays_below_its_limit_and_batches_do_not_depend_on_it(lines: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'bucket'}"
    blocks, most = default_cache_dir() / "blocks", 0
    data = opened(lines, url, max_cache_size=4 * BLOCK)
    found = []
    for batch in itertools.islice(iter(data.train_dataloader()), 40):
        found.append(batch)
        most = max(most, len(list(blocks.glob("*.bin-*"))) * BLOCK)
    assert BLOCK < most <= (4 + 8) * BLOCK  # and what eight threads fetch at once
    assert_equal(found, list(itertools.islice(iter(opened(lines, str(tmp_path / "c")).train_dataloader()), 40)))


def test_a_cache_that_is_too_small_for_the_order_is_named(
    lines: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {"max_cache_size": 3000}
    for options, hints in (
        ({}, 0),
        (small, 1),
        ({**small, "shuffle_window": 999}, 0),
        ({**small, "shuffle": False}, 0),
    ):
        opened(lines, url, **options)._print_hint()
        assert capsys.readouterr().err.count("set --data.shuffle_window to half of the cache") == hints


def test_a_block_that_is_in_the_cache_is_not_fetched(tmp_path: Path) -> None:
    for _ in range(2):
        cache = BlockCache(tmp_path, 100)
        assert bytes(cache.block("a", 3, ABC, lambda: b"abc")) == b"abc"
    cache = BlockCache(tmp_path, 100)
    assert bytes(cache.block("a", 3, ABC, lambda: pytest.fail("it is there"))) == b"abc"


@pytest.mark.parametrize("damaged", [b"ab", b"abd", b"", b"abcd"])
def test_a_block_that_is_damaged_on_this_machine_is_fetched_again(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "a").write_bytes(damaged)
    assert bytes(BlockCache(tmp_path, 100).block("a", 3, ABC, lambda: b"abc")) == b"abc"
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    for name, age in (("old", 3600), ("new", 0)):
        path = tmp_path / f".{name}.1-2.tmp"
        path.write_bytes(b"ab")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    BlockCache(tmp_path, 100).block("a", 3, ABC, lambda: b"abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.1-2.tmp", "a"]


def test_a_cache_that_cannot_be_written_costs_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = BlockCache(tmp_path / "file" / "blocks", 100)
    assert bytes(cache.block("a", 3, ABC, lambda: b"abc")) == b"abc"


def test_threads_that_want_the_same_block_fetch_it_once(tmp_path: Path) -> None:
    cache, fetched, wait = BlockCache(tmp_path, 100), [], threading.Event()

    def fetch() -> bytes:
        fetched.append(1)
        wait.wait(5)
        return b"abc"

    threads = [threading.Thread(target=lambda: cache.block("a", 3, ABC, fetch)) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait.set()
    for thread in threads:
        thread.join()
    assert fetched == [1]


# ---- reading ahead


def test_what_is_built_ahead_comes_in_order_and_errors_where_they_are_due() -> None:
    assert list(ahead(lambda i: i * i, range(100))) == [i * i for i in range(100)]

    def refuse(i: int) -> int:
        if i == 3:
            raise UserError("the third")
        return i

    values = ahead(refuse, range(10))
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="the third"):
        next(values)


def test_a_loop_that_is_left_early_leaves_no_threads() -> None:
    before = threading.active_count()
    for value in ahead(lambda i: i, itertools.count()):
        if value == 5:
            break
    del value
    assert threading.active_count() == before
