"""Damaged token stores: found, named, and prepared anew."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from datamodules import BPEDataModule
from datamodules.errors import UserError
from datamodules.files import SummedFile
from datamodules.integrity import damage
from datamodules.prepare import Recipe, prepare
from datamodules.sources import open_source
from datamodules.splitting import Split
from datamodules.tokenizers import train_tokenizer
from datamodules.tokens import TokenStore
from lit_gpt.commands.data import main

TEXT = "".join(random.Random(0).choices("abcdefgh \n", k=3000))
FILES = ("meta.json", "tokenizer.json", "train.bin", "train.starts", "val.bin", "val.starts")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return Recipe(open_source(str(path)), train_tokenizer("bpe", [TEXT], 300), Split(val=0.3))


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that stays whole, to take copies of."""
    return prepare(recipe, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "cache" / whole.name))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def test_every_flipped_bit_of_every_file_is_mended(
    recipe: Recipe, whole: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, good = random.Random(1), contents(whole)
    meta = json.loads(good["meta.json"])
    for name in FILES:
        for _ in range(15):
            flip(copy / name, draw)
            assert prepare(recipe, copy.parent) == copy
            found = contents(copy)
            if name == "meta.json":  # a flip in its white space changes nothing that it says
                assert json.loads(found.pop("meta.json")) == meta
            said = capsys.readouterr().err
            assert all(found[other] == good[other] for other in found)
            assert (f"The tokens in {copy} are damaged ({name} " in said) == (said != "")
            assert said or name == "meta.json"
            assert said.count("\n") <= 1
    assert damage(copy) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_what_is_missing_or_cut_is_prepared_anew(
    recipe: Recipe, whole: Path, copy: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if how == "cut" else b"")
    assert prepare(recipe, copy.parent) == copy
    assert contents(copy) == contents(whole)
    assert capsys.readouterr().err.count(f"are damaged ({name} ") == 1


def test_an_untouched_file_of_tokens_is_read_when_asked_only(recipe: Recipe, copy: Path) -> None:
    os.utime(copy / "train.bin", ns=(0, 10**18))  # older than a clock's tick
    assert damage(copy) is None
    stat = (copy / "train.bin").stat()
    with (copy / "train.bin").open("r+b") as file:
        file.write(b"\xff\xff")
    os.utime(copy / "train.bin", ns=(0, stat.st_mtime_ns))  # as a disk that forgets: nobody wrote
    assert damage(copy) is None
    assert damage(copy, verify=True) == "train.bin differs from its checksum"
    prepare(recipe, copy.parent, verify=True)
    assert int(TokenStore(copy, "train").tokens.max()) < 300


@pytest.mark.parametrize("change", ["time", "inode"])
def test_another_time_or_inode_has_the_tokens_read_again(copy: Path, tmp_path: Path, change: str) -> None:
    path = copy / "train.bin"
    os.utime(path, ns=(0, 10**18))
    assert damage(copy) is None
    if change == "time":
        path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    else:
        (tmp_path / "other").write_bytes(b"\xff\xff" + path.read_bytes()[2:])
        os.utime(tmp_path / "other", ns=(0, 10**18))
        (tmp_path / "other").rename(path)
    assert damage(copy) == "train.bin differs from its checksum"


@pytest.mark.parametrize("stamps", [None, "[]", "\xff", '{"train.bin": 1}'])
def test_without_a_record_of_the_last_comparison_there_is_another(copy: Path, stamps: str | None) -> None:
    (copy / "stamps.json").unlink(missing_ok=True)
    if stamps is not None:
        (copy / "stamps.json").write_text(stamps, encoding="latin-1")
    assert damage(copy) is None
    flip(copy / "val.bin", random.Random(0))
    assert damage(copy) == "val.bin differs from its checksum"


def test_a_disk_that_does_not_keep_what_is_written_is_one_sentence(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close_short(file: SummedFile) -> None:
        file._file.close()
        os.truncate(file._file.name, 10)

    monkeypatch.setattr("datamodules.tokens.SummedFile.close", close_short)
    with pytest.raises(UserError, match=r"does not keep what is written to it \(\w+.\w+ has 10 bytes, not .*cache_dir"):
        prepare(recipe, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_tokenizer_that_is_gone_is_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT)

    def fingerprint() -> str:
        data = BPEDataModule(str(tmp_path / "text.txt"), vocab_size=300, block_size=8, cache_dir=str(tmp_path / "c"))
        data.prepare_data()
        data.setup("fit")
        (data._folder / "tokenizer.json").unlink()
        return data.fingerprints["tokenizer"]

    assert fingerprint() == fingerprint()
    assert "(tokenizer.json is missing): preparing them anew" in capsys.readouterr().err


def test_the_verb_reads_everything_when_told_to(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ["--data.source", str(tmp_path / "text.txt"), "--model.config.block_size", "8", "--verify"]
    main(arguments)
    assert "checked" in capsys.readouterr().out
    path = next((own_cache / "lit_gpt").glob("*/train.bin"))
    os.utime(path, ns=(0, 10**18))
    assert damage(path.parent) is None
    flip(path, random.Random(0))
    os.utime(path, ns=(0, 10**18))
    main(arguments)
    assert "train.bin differs from its checksum" in capsys.readouterr().err
    assert damage(path.parent, verify=True) is None
