"""The token store: what is written is read, by any process; no unfinished or foreign folder is taken for one."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from datamodules.integrity import is_whole, write_meta, written_by
from datamodules.tokens import TokenStore, TokenWriter, token_dtype


def write(folder: Path, eos_id: int | None, dtype: str = "uint16") -> TokenStore:
    folder.mkdir(exist_ok=True)
    writer = TokenWriter(folder, "train", np.dtype(dtype), eos_id)
    writer.add(np.array([1, 2]), 2, 2, end=False)
    writer.add(np.array([3]), 1, 2, end=True)
    writer.add(np.array([4]), 1, 1, end=True)
    write_meta(folder, written_by({"train": writer}), dtype=dtype, eos_id=eos_id)
    return TokenStore(folder, "train")


def test_eos_tokens_are_between_and_around_documents(tmp_path: Path) -> None:
    store = write(tmp_path, eos_id=9)
    assert store.tokens.tolist() == [9, 1, 2, 3, 9, 4, 9]
    assert store.starts.tolist() == [0, 4, 6]
    assert (len(store), store.counts.documents, store.counts.eos_tokens) == (7, 2, 2)
    assert (store.counts.chars, store.counts.bytes) == (4, 5)


def test_without_an_eos_token_it_is_the_bare_stream(tmp_path: Path) -> None:
    store = write(tmp_path, eos_id=None)
    assert store.tokens.tolist() == [1, 2, 3, 4]
    assert store.starts.tolist() == [0, 3, 4]
    assert store.counts.eos_tokens == 0


def test_ids_take_two_bytes_up_to_65536_and_four_above() -> None:
    assert token_dtype(1 << 16) == np.uint16
    assert token_dtype((1 << 16) + 1) == np.uint32


def test_a_store_pickles_as_its_path(tmp_path: Path) -> None:
    store = write(tmp_path, eos_id=9)
    assert store.tokens is not None
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert pickle.loads(data).tokens.tolist() == store.tokens.tolist()


@pytest.mark.parametrize(
    "damage", ["nothing written", "no meta", "cut short", "other version", "broken meta", "starts gone"]
)
def test_only_a_whole_store_of_this_version_is_whole(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "store"
    if damage != "nothing written":
        write(folder, eos_id=9)
        assert is_whole(folder)
    meta = folder / "meta.json"
    match damage:
        case "no meta":
            meta.unlink()
        case "cut short":
            (folder / "train.bin").write_bytes(b"12")
        case "other version":
            meta.write_text(json.dumps({**json.loads(meta.read_text()), "version": 0}))
        case "broken meta":
            meta.write_text(meta.read_text()[:50])
        case "starts gone":
            (folder / "train.starts").unlink()
    assert not is_whole(folder)
