"""Data sets of the hub, read from a folder: with `datasets` where it is installed, and with a stand-in everywhere."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from datamodules import BPEDataModule, UserError
from datamodules.downloads import offline
from datamodules.first_bytes import FirstBytes
from datamodules.hub import HubSource
from datamodules.offline import source_needs_network
from datamodules.reading import Cursor
from datamodules.sources import open_source

#: The files of each configuration and split, with the values of the column "text".
FILES = {
    ("titles", "train"): [[" one ", "two\r\nlines", None, "é"], ["five", "", "six " * 20], ["last"]],
    ("titles", "validation"): [["seen never"]],
    ("other", "train"): [["another text"]],
}


class _Rows:
    """As much of a `datasets.IterableDataset` as is used."""

    def __init__(self, files: list[list[str | None]]) -> None:
        self.files, self.num_shards = files, len(files)
        self.column_names: list[str] | None = ["text", "score"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"text": text, "score": 1} for file in self.files for text in file)

    def shard(self, num_shards: int, index: int) -> "_Rows":
        assert num_shards == len(self.files)
        return _Rows([self.files[index]])

    def skip(self, n: int) -> "_Rows":
        (file,) = self.files
        return _Rows([file[n:]])

    def select_columns(self, columns: list[str]) -> "_Rows":
        assert columns == ["text"]
        return self

    def iter(self, batch_size: int) -> Iterator[dict[str, list[str | None]]]:
        assert batch_size > 1
        for file in self.files:
            yield from ({"text": file[i : i + 2]} for i in range(0, len(file), 2))


def _load_stand_in(config: str | None, split: str) -> _Rows:
    if config is None:
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['titles']\nUsage:\n x")
    if (config, split) not in FILES:
        raise ValueError(f"Bad split: {split}. Available splits: ['train', 'validation']")
    return _Rows(FILES[config, split])


def _written(folder: Path) -> Path:
    """The data set as a folder in the form of the hub's."""
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    for (config, split), files in FILES.items():
        for number, texts in enumerate(files):
            table = arrow.table({"text": arrow.array(texts, arrow.string()), "score": [1] * len(texts)})
            parquet.write_table(table, folder / f"{config}-{split}-{number}.parquet")
    lines = ["---", "configs:"]
    for config in ("titles", "other"):
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in (split for name, split in FILES if name == config):
            lines += [f"  - split: {split}", f"    path: {config}-{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture(params=["stand-in", "datasets"])
def hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The requests that reach the hub."""
    asked: list[tuple[Any, ...]] = []
    if request.param == "datasets":
        real = pytest.importorskip("datasets")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        (tmp_path / "data").mkdir()
        folder, load = str(_written(tmp_path / "data")), real.load_dataset

    def load_dataset(name: str, config: str | None, *, split: str, revision: str, streaming: bool) -> Any:
        asked.append((name, config, split, revision))
        assert streaming
        if request.param == "datasets":
            return load(folder, config, split=split, streaming=True)
        return _load_stand_in(config, split)

    def list_repo_commits(name: str, repo_type: str) -> list[SimpleNamespace]:
        asked.append((name, repo_type))
        return [SimpleNamespace(commit_id="aaaa" * 10), SimpleNamespace(commit_id="9e21b0f3" * 5)]

    def dataset_info(name: str, revision: str) -> SimpleNamespace:
        asked.append((name, revision))
        return SimpleNamespace(sha="bbbb" * 10)

    if request.param == "datasets":
        monkeypatch.setattr(real, "load_dataset", load_dataset)
    else:
        _stand_in(monkeypatch, "datasets", load_dataset)
    _stand_in(monkeypatch, "huggingface_hub", list_repo_commits, dataset_info)
    return asked


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str, *functions: Any) -> None:
    module = ModuleType(name)
    for function in functions:
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, name, module)


def source_of(spec: str, tmp_path: Path, column: str = "text", **options: Any) -> HubSource:
    source = open_source(spec, documents="column", column=column, cache_dir=tmp_path, **options)
    assert isinstance(source, HubSource)
    return source


def test_configuration_and_split_are_parts_of_the_name(hub: list, tmp_path: Path) -> None:
    assert list(source_of("hf:a/b/titles/validation@main", tmp_path).documents()) == ["seen never"]
    assert list(source_of("hf:a/b/other@main", tmp_path).documents()) == ["another text"]
    texts = [text for file in FILES["titles", "train"] for text in file if text]
    expected = [text.replace("\r\n", "\n") for text in texts]
    assert list(source_of("hf:a/b/titles@main", tmp_path).documents()) == expected
    stripped = source_of("hf:a/b/titles/train@main", tmp_path, strip=True)
    assert list(stripped.documents()) == [text.strip() for text in expected]


def test_a_branch_is_read_at_the_commit_that_it_had_at_first(hub: list, tmp_path: Path) -> None:
    fingerprint = source_of("hf:a/b/titles@main", tmp_path).fingerprint()
    assert hub == [("a/b", "dataset"), ("a/b", "main")]
    del hub[:]
    list(source_of("hf:a/b/titles@main", tmp_path).documents())
    assert hub == [("a/b", "titles", "train", "bbbb" * 10)]
    with offline():
        assert source_of("hf:a/b/titles@main", tmp_path).fingerprint() == fingerprint
    specs = ("hf:a/b/titles@9e21", "hf:a/b/titles/validation@main", "hf:a/b/other@main")
    assert len({fingerprint, *(source_of(spec, tmp_path).fingerprint() for spec in specs)}) == 4
    assert source_of("hf:a/b/titles@main", tmp_path, strip=True).fingerprint() != fingerprint


def test_the_beginning_of_a_hash_names_its_commit(hub: list, tmp_path: Path) -> None:
    list(source_of("hf:a/b/titles@9e21b0f3", tmp_path).documents())
    assert hub == [("a/b", "dataset"), ("a/b", "titles", "train", "9e21b0f3" * 5)]


def test_a_reading_goes_on_from_every_piece(hub: list, tmp_path: Path) -> None:
    source, cursor = source_of("hf:a/b/titles@main", tmp_path), Cursor()
    pieces = [(piece, replace(cursor)) for piece in source.read(30, cursor)]
    assert sum(piece.end for piece, _ in pieces) == 6
    assert len(pieces) > 7  # the longest text has several
    for number, (_, behind) in enumerate(pieces, 1):
        assert list(source.read(30, replace(behind))) == [piece for piece, _ in pieces[number:]]
    files = [behind.file for _, behind in pieces]
    assert (files[0], files[-1]) == (0, 2)  # a later file is read without those before it


def test_a_run_is_prepared_from_a_stream(hub: list, tmp_path: Path) -> None:
    options: dict[str, Any] = {"documents": "column", "column": "text", "tokenizer": "byte", "block_size": 8}
    options |= {"val_source": "hf:a/b/titles/validation@main", "cache_dir": str(tmp_path)}
    data = BPEDataModule("hf:a/b/titles@main", **options)
    data.prepare_data()
    del hub[:]
    data = BPEDataModule("hf:a/b/titles@main", **options)
    with offline():
        data.setup()
    assert hub == []  # the tokens are here
    text = data.tokenizer.decode(data.stores["train"].tokens.tolist())
    assert text.split("<|endoftext|>")[1:3] == [" one ", "two\nlines"]
    assert data.stores["val"].counts.chars == len("seen never")


def test_a_trial_reads_only_the_beginning(hub: list, tmp_path: Path) -> None:
    source = FirstBytes("x", source_of("hf:a/b/titles@main", tmp_path), 9)
    assert list(source.documents()) == [" one ", "two\n"]
    assert source.fingerprint() != FirstBytes("x", source.source, 8).fingerprint()


@pytest.mark.parametrize(
    ("spec", "column", "message"),
    [
        ("hf:a/b/titles@main", "title", "'title'; it has text, score"),
        ("hf:a/b/titles/test@main", "text", r"titles/test@main could not be read .*Bad split: test"),
        (
            "hf:a/b@main",
            "text",
            r"Please pick one among the available configs: .*write it as hf:OWNER/NAME@REVISION or",
        ),
        ("hf:a/b/c/d/e@main", "text", "is no data set of the hub; write hf:OWNER/NAME@REVISION or"),
        ("hf:a//c@main", "text", "is no data set of the hub"),
    ],
)
def test_what_is_not_there_is_named(hub: list, tmp_path: Path, spec: str, column: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        list(source_of(spec, tmp_path, column).documents())
    assert "\n" not in str(error.value)


def test_a_network_that_fails_in_the_middle_is_named(
    hub: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of("hf:a/b/titles@main", tmp_path)
    rows = source._opened()

    class Failing:
        num_shards = rows.num_shards

        def shard(self, num_shards: int, index: int) -> Any:
            if index == 1:
                raise ConnectionError("Couldn't reach the Hub")
            return rows.shard(num_shards=num_shards, index=index)

    monkeypatch.setattr(HubSource, "_opened", lambda self: Failing())
    pieces = source.pieces()
    assert len(list(islice(pieces, 3))) == 3
    message = r"titles@main could not be read from the hub \(Couldn't reach the Hub\): connect this machine, or prepare"
    with pytest.raises(UserError, match=message):
        next(pieces)


class TransportError(Exception):
    """As in httpx: no OSError."""


class ConnectError(TransportError):
    """No answer came."""


class NotFoundError(OSError):
    """As in the hub's library: an OSError with the answer."""

    response = "404"


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (ConnectError("Name or service not known"), "connect this machine, or prepare the tokens on one that is"),
        (ConnectionError("reset"), "connect this machine"),
        (NotFoundError("404 Client Error"), "write it as hf:OWNER/NAME@REVISION"),
        (ValueError("Unknown split"), "write it as hf:OWNER/NAME@REVISION"),
    ],
)
def test_what_is_to_be_done_depends_on_whether_the_hub_answered(tmp_path: Path, error: Exception, fix: str) -> None:
    refusal = source_of("hf:a/b/titles@main", tmp_path)._unreadable(error)
    assert f"could not be read from the hub ({error}): {fix}" in str(refusal)


def test_a_data_set_always_needs_the_network(tmp_path: Path) -> None:
    assert source_needs_network("hf:a/b@main", tmp_path)
    assert source_needs_network("hacker_news", tmp_path)
    with offline(), pytest.raises(UserError, match="is not on this machine, and nothing is downloaded now"):
        source_of("hf:a/b@main", tmp_path).fingerprint()
