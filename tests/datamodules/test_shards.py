"""Stores in shards: the same tokens from any size of shard, any number of machines, and after any kill."""

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules import HeadlinesDataModule
from datamodules import units as units_module
from datamodules.errors import UserError
from datamodules.prepare import NewTokenizer, Recipe, Share, prepare, prepare_share, store_folder
from datamodules.reading import Cursor
from datamodules.sources import open_source
from datamodules.splitting import Split, scan
from datamodules.tokenizers import train_tokenizer
from datamodules.tokens import TokenStore, read_meta
from lit_gpt.commands.data import main

WORDS = ["a", "café", "tokens", "日本", "in", "shards", "of", "text", "\n", "read", "anywhere,"]


def prose(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.splitting.PIECE", 300)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Texts that a reading can enter anywhere, and those that it must read from the beginning."""
    contents = {
        "plain.txt": prose(0, 400).encode(),
        "marked.txt": b"\xef\xbb\xbf" + prose(1, 150).encode(),
        "windows.txt": prose(2, 150).replace("\n", "\r\n").encode(),
        "packed.txt.gz": gzip.compress(prose(3, 150).encode()),
        "blank.txt": b"\n\n \n" + prose(4, 100).encode() + b"\n\n",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return [str(tmp_path / name) for name in contents]


BPE = train_tokenizer("bpe", [prose(9, 500)], 300)
NO_EOS = train_tokenizer("bpe", [prose(9, 500)], 300, eos=False)
CHARS = NewTokenizer("char", train_on="all", eos=False)
SPLITS = [
    Split(val=0.3, test=0.1),
    Split("documents", val=0.3, test=0.2, shuffle=7),
    Split("documents", val=0.3, shuffle=1, deduplicate=True),
]


def contents(folder: Path) -> dict[str, tuple[list[int], list[int], object]]:
    stores = {split: TokenStore(folder, split) for split in read_meta(folder)["splits"]}
    return {split: (s.tokens[:].tolist(), s.starts.tolist(), s.counts) for split, s in stores.items()}


@pytest.mark.parametrize("documents", ["file", "line"])
@pytest.mark.parametrize("split", SPLITS, ids=["text", "shuffled", "deduplicated"])
@pytest.mark.parametrize("tokenizer", [BPE, NO_EOS, CHARS], ids=["eos", "joined", "chars"])
def test_shards_together_are_the_store_in_one(
    files: list[str], tmp_path: Path, documents: str, split: Split, tokenizer: object
) -> None:
    strip = split.deduplicate
    (tmp_path / "more.txt").write_text(prose(5, 300))

    def recipe() -> Recipe:
        source, more = (
            open_source(spec, documents=documents, strip=strip)  # type: ignore[arg-type]
            for spec in (files, str(tmp_path / "more.txt"))
        )
        return Recipe(source, tokenizer, split, test_source=None if split.test else more)  # type: ignore[arg-type]

    whole = prepare(recipe(), tmp_path / "one")
    shards = prepare(recipe(), tmp_path / "many", shard_bytes=600)
    assert sum(map(len, read_meta(shards)["shards"].values())) > 4
    assert contents(shards) == contents(whole)
    assert shards.name == whole.name


@pytest.mark.parametrize("documents", ["file", "line"])
def test_a_reading_goes_on_from_every_mark(files: list[str], documents: str) -> None:
    source = open_source(files, documents=documents)  # type: ignore[arg-type]
    pieces = list(source.pieces(300))
    marks = scan(source, Split()).marks
    assert len(marks) > 15
    for mark in marks:
        rest = list(source.read(300, Cursor(mark.file, mark.offset, mark.skip)))
        assert rest == pieces[len(pieces) - len(rest) :]
        assert sum(len(piece.text) for piece in pieces[: len(pieces) - len(rest)]) == mark.chars
    plain = [mark for mark in marks if mark.file == 0]
    assert all(mark.skip == 0 for mark in plain if not mark.inside or documents == "file")


def test_marks_of_a_long_text_are_bounded(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.splitting._MARKS", 8)
    marks = scan(open_source(files), Split()).marks
    assert 4 <= len(marks) <= 8
    distances = np.diff([mark.chars for mark in marks])
    assert distances.max() < 4 * distances.mean()


@pytest.fixture
def recipe(files: list[str]) -> Recipe:
    return Recipe(open_source(files), BPE, Split(val=0.2))


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_the_share_that_ends_last_makes_the_store(recipe: Recipe, tmp_path: Path, order: tuple[int, ...]) -> None:
    *early, last = order
    cache = tmp_path / "cache"
    for number in early:
        assert prepare_share(recipe, Share(number, 3), cache, 600) is None
    folder = prepare_share(recipe, Share(last, 3), cache, 600)
    assert folder == store_folder(recipe, cache)
    assert contents(folder) == contents(prepare(recipe, tmp_path / "one"))
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]
    rest = {path.name for path in folder.iterdir()} - set(read_meta(folder)["files"])
    assert rest - {"stamps.json"} == {"meta.json"}


def test_every_share_is_done_once(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted_units(monkeypatch)
    for number in (1, 1, 2, 3, 3):
        prepare_share(recipe, Share(number, 3), tmp_path / "cache", 600)
    assert built == list(range(len(built)))
    assert len(built) > 3


def counted_units(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    built: list[int] = []
    build = units_module._build_unit

    def counted(*args: object):  # type: ignore[no-untyped-def]
        built.append(args[4])  # type: ignore[arg-type]
        return build(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(units_module, "_build_unit", counted)
    return built


class Killed(BaseException):
    """Ends a preparation without its cleaning up, as a kill does."""


@pytest.mark.parametrize("at", range(5))
def test_after_a_kill_only_what_is_missing_is_done(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    places = [
        (units_module, "written_by"),
        ("datamodules.merging", "write_meta"),
        ("datamodules.prepare", "store_text_facts"),
        ("datamodules.prepare", "remove_units"),
        ("pathlib.Path", "rename"),
    ]
    cache, built, calls = tmp_path / "cache", counted_units(monkeypatch), [0]

    def kill(*_: object, **__: object) -> None:
        calls[0] += 1
        if at or calls[0] > 3:  # of the units, the fourth
            raise Killed

    with monkeypatch.context() as patch:
        place, name = places[at]
        path = f"{place}.{name}" if isinstance(place, str) else f"{place.__name__}.{name}"
        original = units_module.written_by

        def kill_or_do(*args: object, **options: object) -> object:
            kill()
            return original(*args, **options)  # type: ignore[arg-type]

        patch.setattr(path, kill_or_do if at == 0 else kill)
        with pytest.raises(Killed):
            prepare(recipe, cache, shard_bytes=600)
    folder = prepare(recipe, cache, shard_bytes=600)
    units = max(built) + 1
    assert built == ([*range(4), *range(3, units)] if at == 0 else list(range(units)))
    assert contents(folder) == contents(prepare(recipe, tmp_path / "one"))


def test_what_a_killed_machine_left_damaged_is_made_again(recipe: Recipe, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert prepare_share(recipe, Share(1, 2), cache, 600) is None
    part = store_folder(recipe, cache).with_suffix(".part")
    flipped = part / "train-00000.bin"
    data = bytearray(flipped.read_bytes())
    data[5] ^= 1
    flipped.write_bytes(data)
    cut = part / "train-00001.bin"
    cut.write_bytes(cut.read_bytes()[:-2])
    assert contents(prepare(recipe, cache)) == contents(prepare(recipe, tmp_path / "one"))


@pytest.mark.parametrize("name", ["train-00000.starts", "tokenizer.json", "keep-0.npy"])
def test_small_files_that_a_killed_machine_left_damaged_are_made_again(
    files: list[str], tmp_path: Path, name: str
) -> None:
    source = open_source(files, documents="line", strip=True)

    def recipe() -> Recipe:
        return Recipe(source, NewTokenizer("bpe", 300), Split("documents", val=0.3, deduplicate=True))

    good = contents(prepare(recipe(), tmp_path / "one"))
    for number, spoil in enumerate((cut_short, with_a_flipped_bit, Path.unlink)):
        cache = tmp_path / str(number)
        assert prepare_share(recipe(), Share(1, 2), cache, 600) is None
        spoil(store_folder(recipe(), cache).with_suffix(".part") / name)
        assert contents(prepare(recipe(), cache)) == good


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def with_a_flipped_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def missing(folder: Path, _: Path) -> str:
    (folder / "train-00002.bin").unlink()
    return "train-00002.bin is missing"


def cut(folder: Path, _: Path) -> str:
    path = folder / "train-00002.bin"
    path.write_bytes(path.read_bytes()[:-2])
    return "train-00002.bin has "


def of_another_tokenizer(folder: Path, other: Path) -> str:
    shutil.copy(other / "tokenizer.json", folder)
    return "tokenizer.json "


def swapped(folder: Path, _: Path) -> str:
    path = folder / "train-00002.bin"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    return "train-00002.bin differs from its checksum"


@pytest.mark.parametrize("spoil", [missing, cut, of_another_tokenizer, swapped])
def test_a_shard_that_is_damaged_is_named_and_the_store_made_again(
    recipe: Recipe, tmp_path: Path, spoil: Callable[[Path, Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(recipe, tmp_path / "cache", shard_bytes=600)
    good = contents(folder)
    other = prepare(Recipe(recipe.source, NO_EOS, recipe.split), tmp_path / "other")
    fault = spoil(folder, other)
    assert contents(prepare(recipe, tmp_path / "cache", shard_bytes=600)) == good
    assert f"are damaged ({fault}" in capsys.readouterr().err


def test_no_file_is_larger_than_asked_for(recipe: Recipe, tmp_path: Path) -> None:
    ids = Recipe(recipe.source, NewTokenizer("char", train_on="all"), recipe.split)
    for chosen in (ids, recipe):
        folder = prepare(chosen, tmp_path / "cache", shard_bytes=700)
        assert max(path.stat().st_size for path in folder.glob("*.bin")) <= 700


def test_a_piece_of_text_that_is_larger_than_a_file_is_cut(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.splitting.PIECE", 10_000)
    folder = prepare(recipe, tmp_path / "cache", shard_bytes=701)
    assert max(path.stat().st_size for path in folder.glob("train*.bin")) == 700
    assert contents(folder) == contents(prepare(recipe, tmp_path / "one"))


@pytest.mark.parametrize("size", ["1", "99", "0.09KB"])
def test_a_file_of_next_to_nothing_is_one_sentence(size: str) -> None:
    with pytest.raises(UserError, match=rf"^the data's max_shard_size is {size}: give at least 100 bytes\.$"):
        HeadlinesDataModule(max_shard_size=size)


def test_the_record_of_a_shard_has_a_checksum_of_each_block(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zlib

    monkeypatch.setattr("datamodules.files.BLOCK", 100)
    folder = prepare(recipe, tmp_path)
    for name, record in read_meta(folder)["files"].items():
        data = (folder / name).read_bytes()
        assert zlib.crc32(data) == record["crc32"]
        if name.endswith(".bin"):
            assert record["blocks"] == [zlib.crc32(data[low : low + 100]) for low in range(0, len(data), 100)]
    assert json.loads((folder / "meta.json").read_text())["version"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_share_that_is_none_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"shard is .*such as 1/4 to 4/4\.$"):
        Share.parsed(text)


def test_shares_divide_the_work() -> None:
    for count in (0, 1, 5, 16):
        units = [unit for number in range(1, 5) for unit in Share(number, 4).units(count)]
        assert units == list(range(count))


def test_the_verb_prepares_a_share_and_says_what_is_missing(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--data.source={files[0]}", f"--data.cache_dir={tmp_path / 'cache'}", "--data.max_shard_size=600"]
    main([*given, "--prepare", "--shard", "2/2"])
    assert "shard 2/2 is done; the tokens are complete when the other shards are" in capsys.readouterr().out
    main([*given, "--prepare", "--shard", "1/2"])
    folder = next(path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    said = capsys.readouterr().out
    assert f"the tokens are complete: {folder}\ntrain " in said
    main([*given, "--prepare"])
    assert capsys.readouterr().out == said


def test_a_share_without_a_preparation_is_one_sentence() -> None:
    with pytest.raises(UserError, match="--shard 1/2 is a share of a preparation: give --prepare too"):
        main(["--shard", "1/2"])


@pytest.mark.parametrize(("option", "least"), [("batches", 0), ("rows", 1)])
def test_too_few_batches_to_print_is_one_sentence(option: str, least: int) -> None:
    with pytest.raises(UserError, match=f"{option} is -1: give at least {least}"):
        main([f"--{option}", "-1"])
