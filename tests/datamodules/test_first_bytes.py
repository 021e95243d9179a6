"""The beginning of a text, and what is on this machine."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from datamodules import CharDataModule
from datamodules.errors import UserError
from datamodules.first_bytes import FirstBytes
from datamodules.offline import ENCODING_FILES, encoding_needs_network, source_needs_network
from datamodules.reading import Piece
from datamodules.sources import Source, open_source

TIKTOKEN = Path(__file__).parents[3] / "shared" / "tiktoken_cache"


@dataclass(frozen=True)
class Listed(Source):
    """Documents in memory. Reading behind the last one is an error."""

    name: str
    texts: tuple[str, ...]

    def fingerprint(self) -> str:
        raise AssertionError("the whole text would be read")

    def documents(self) -> Iterator[str]:
        yield from self.texts
        raise AssertionError("more than the beginning was read")


def beginning(texts: list[str], limit: int) -> list[str]:
    """The documents by hand: bytes are counted one document after the other."""
    kept = []
    for text in texts:
        raw = text.encode()
        kept.append(raw[:limit].decode(errors="ignore"))
        limit -= len(raw)
        if limit <= 0:
            break
    return kept


@given(st.lists(st.text(alphabet="aé中👍\n ", min_size=1, max_size=9), min_size=1, max_size=5), st.data())
def test_the_documents_are_cut_at_a_byte(texts: list[str], data: st.DataObject) -> None:
    limit = data.draw(st.integers(4, max(4, len("".join(texts).encode()))))
    if limit > len("".join(texts).encode()):
        return
    source = FirstBytes("texts", Listed("texts", tuple(texts)), limit)
    found, wanted = list(source.documents()), beginning(texts, limit)
    assert found == [text for text in wanted if text]  # a cut inside the first character leaves out its document
    for size in (1, 3):
        pieces: list[Piece] = list(source.pieces(size))
        assert "".join(piece.text for piece in pieces) == "".join(found)
        assert sum(piece.end for piece in pieces) == len(found)


def test_equal_beginnings_have_equal_fingerprints(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one two three"), ("b.txt", "one two four"), ("c.txt", "one owt")):
        (tmp_path / name).write_text(text)
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"one two three"))
    cut = {path.name: FirstBytes("t", open_source(str(path)), 8).fingerprint() for path in tmp_path.iterdir()}
    assert cut["a.txt"] == cut["b.txt"] == cut["d.txt.gz"] != cut["c.txt"]
    assert FirstBytes("t", open_source(str(tmp_path / "a.txt")), 7).fingerprint() != cut["a.txt"]


def test_each_text_of_a_datamodule_is_cut_and_cached_under_its_own_key(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("abcd" * 500)
    (tmp_path / "val.txt").write_text("abcd" * 400)
    folders = set()
    for max_bytes, sizes in ((None, (2000, 1600)), (1000, (1000, 1000)), (1800, (1800, 1600))):
        data = CharDataModule(str(tmp_path / "train.txt"), str(tmp_path / "val.txt"), block_size=8, max_bytes=max_bytes)
        data.prepare_data()
        data.setup()
        assert (len(data.stores["train"]), len(data.stores["val"])) == sizes
        folders.add(data._folder)
    assert len(folders) == 3
    with pytest.raises(UserError, match="max_bytes is 0"):
        CharDataModule(max_bytes=0)


def test_a_source_needs_the_network_until_it_is_kept(tmp_path: Path) -> None:
    assert not source_needs_network("embedded", tmp_path)
    assert not source_needs_network(str(tmp_path), tmp_path)
    (tmp_path / "downloads").mkdir()
    assert source_needs_network("taylor_swift", tmp_path)
    (tmp_path / "downloads" / "taylor_swift.txt").touch()
    assert not source_needs_network("taylor_swift", tmp_path)


@pytest.mark.parametrize("name", ENCODING_FILES)
def test_an_encoding_needs_the_network_where_tiktoken_asks_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def read(path: str) -> bytes:
        asked.append(path)
        raise OSError("no network")

    monkeypatch.setattr("tiktoken.load.read_file", read)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    for folder in (tmp_path, TIKTOKEN):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        asked.clear()
        try:
            tiktoken.get_encoding(name)
        except OSError:
            assert encoding_needs_network(name)
        else:
            assert not asked
            assert not encoding_needs_network(name)
    assert not encoding_needs_network("byte")
