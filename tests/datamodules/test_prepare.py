"""Text to store: splits, EOS tokens, several processes, kills, full disks."""

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import merging
from datamodules import prepare as prepare_module
from datamodules.encoding import encode_all, useful_workers
from datamodules.errors import UserError
from datamodules.files import default_cache_dir
from datamodules.prepare import NewTokenizer, Recipe, load_tokenizer_of, prepare
from datamodules.reading import Piece
from datamodules.sources import Source, open_source
from datamodules.splitting import Split, scan, split_documents, split_text
from datamodules.tokenizers import EOS_TOKEN, ByteTokenizer, CharTokenizer, train_tokenizer
from datamodules.tokens import TokenStore, TokenWriter, read_meta

ROOT = Path(__file__).parents[2]
CHARS = NewTokenizer("char", train_on="all", eos=False)


class Pieces(Source):
    """Documents given as lists of pieces."""

    name = "pieces"

    def __init__(self, documents: list[list[str]]) -> None:
        self.all = [Piece(text, i == len(d) - 1) for d in documents for i, text in enumerate(d)]

    def fingerprint(self) -> str:
        return str(self.all)

    def pieces(self, size: int = 0):
        return iter(self.all)

    def documents(self):
        raise NotImplementedError


def texts_of(folder: Path) -> dict[str, str]:
    tokenizer = load_tokenizer_of(folder)
    return {split: tokenizer.decode(TokenStore(folder, split).tokens.tolist()) for split in read_meta(folder)["splits"]}


# ---- splits


@settings(deadline=None)
@given(
    documents=st.lists(
        st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=4), min_size=1, max_size=6
    ),
    val=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
)
def test_a_text_is_cut_in_two_places_and_nothing_is_lost(documents: list[list[str]], val: float, test: float) -> None:
    source, split = Pieces(documents), Split(val=val, test=test)
    whole = "".join(text for document in documents for text in document)
    if int(len(whole) * (1 - val - test)) == 0:
        return
    pieces = list(split_text(source, split, scan(source, split)))
    assert "".join(piece.text for piece in pieces) == whole
    train = "".join(piece.text for piece in pieces if piece.split == "train")
    assert len(train) == int(len(whole) * (1 - val - test))
    last = {piece.split: piece for piece in pieces}
    assert all(piece.end for piece in last.values())


@settings(deadline=None)
@given(
    documents=st.lists(
        st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=2), min_size=3, max_size=20
    ),
    shuffle=st.none() | st.integers(0, 99),
    deduplicate=st.booleans(),
)
def test_documents_go_whole_to_one_split(documents: list[list[str]], shuffle: int | None, deduplicate: bool) -> None:
    whole = ["".join(document) for document in documents]
    kept = list(dict.fromkeys(whole)) if deduplicate else whole
    if len(kept) < 3:
        return
    source, split = Pieces(documents), Split("documents", 1, 1, shuffle, deduplicate)
    found: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    text = ""
    for piece in split_documents(source, split, scan(source, split)):
        text += piece.text
        if piece.end:
            found[piece.split].append(text)
            text = ""
    assert sorted(found["train"] + found["val"] + found["test"]) == sorted(kept)
    assert (len(found["val"]), len(found["test"])) == (1, 1)
    if shuffle is None:
        assert found["train"] + found["val"] + found["test"] == kept


def test_a_shuffled_split_depends_on_its_seed_only(text_source: Callable[..., Source]) -> None:
    source = text_source("\n".join(f"line {i}" for i in range(200)), documents="line")

    def validation(seed: int) -> str:
        split = Split("documents", 0.1, 0.0, seed)
        return texts_of(prepare(Recipe(source, ByteTokenizer(eos=True), split)))["val"]

    assert validation(1) == validation(1) != validation(2)


@pytest.mark.parametrize(
    ("split", "complaint"),
    [
        (Split(val=0.6, test=0.5), "leave nothing to train on"),
        (Split("documents", 5, 0), "leave nothing to train on"),
        (Split(val=1.0), "leave nothing to train on"),
        (Split(val=None), "part is null: leave the option out"),  # type: ignore[arg-type]
        (Split(val=-0.1), "is no share: give 0 to 1"),
    ],
)
def test_a_split_that_leaves_nothing_to_train_on_is_refused(
    text_source: Callable[..., Source], split: Split, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        prepare(Recipe(text_source("a\nb\nc", documents="line"), ByteTokenizer(eos=True), split))


# ---- stores


def test_files_without_eos_tokens_are_joined_by_newlines(text_source: Callable[..., Source]) -> None:
    folder = prepare(Recipe(text_source("one", "two\n", "three"), CHARS, Split(val=0.25)))
    assert texts_of(folder) == {"train": "one\ntwo\n\nth", "val": "ree"}


def test_documents_have_an_eos_token_between_and_around_them(text_source: Callable[..., Source]) -> None:
    folder = prepare(Recipe(text_source("ab", "é"), ByteTokenizer(eos=True)))
    store = TokenStore(folder, "train")
    assert store.tokens.tolist() == [256, 97, 98, 256, 0xC3, 0xA9, 256]
    assert (store.counts.chars, store.counts.bytes, store.counts.documents) == (3, 4, 2)


def test_separate_sources_become_their_splits(text_source: Callable[..., Source]) -> None:
    recipe = Recipe(text_source("abc"), CHARS, val_source=text_source("cd"), test_source=text_source("e"))
    assert texts_of(prepare(recipe)) == {"train": "abc", "val": "cd", "test": "e"}


def test_progress_ends_at_the_whole_of_all_sources(
    text_source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    amounts: list[int] = []

    @contextmanager
    def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield amounts.append
        amounts.append(-total)

    monkeypatch.setattr("datamodules.units.progress", counted)
    for tokenizer in (CHARS, ByteTokenizer()):
        prepare(Recipe(text_source("train " * 9), tokenizer, Split(), text_source("val"), text_source("test")))
        assert len(amounts) > 1
        assert sum(amounts) == 0
        amounts.clear()


def test_the_key_follows_text_split_and_tokenizer_but_not_the_place(text_source: Callable[..., Source]) -> None:
    recipe = Recipe(text_source("abc"), CHARS)
    assert recipe.key == Recipe(text_source("abc"), CHARS).key
    others = [
        Recipe(text_source("abd"), CHARS),
        Recipe(text_source("abc"), CHARS, Split(val=0.5)),
        Recipe(text_source("abc"), ByteTokenizer()),
        Recipe(text_source("abc"), CHARS, val_source=text_source("abc")),
    ]
    assert len({recipe.key, *(other.key for other in others)}) == 5


def test_the_cache_lies_where_the_environment_says_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "lit_gpt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "lit_gpt"


def test_a_lone_surrogate_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"t": "fine"}\n{"t": "bad \\ud800"}\n')
    source = open_source(str(tmp_path / "rows.jsonl"), documents="column", column="t")
    for tokenizer in (ByteTokenizer(eos=True), NewTokenizer("char")):
        with pytest.raises(UserError, match="lone surrogate"):
            prepare(Recipe(source, tokenizer, Split("documents", deduplicate=True)))


# ---- processes


def test_workers_give_the_same_as_this_process() -> None:
    jobs = [[(f"text {i}", True), ("é" * i, False)] for i in range(50)]
    here = [[e.ids.tolist() for e in job] for job in encode_all(ByteTokenizer(), jobs, workers=0)]
    there = [[e.ids.tolist() for e in job] for job in encode_all(ByteTokenizer(), jobs, workers=2)]
    assert there == here


@pytest.mark.parametrize("name", ["one.txt", "one.txt.gz"])
def test_stores_are_the_same_with_and_without_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    texts = ["".join(f"Zeile {i}, café 日本語\r\n" for i in range(3000)), "naïve\rété\n\n" * 2000 + "no newline é"]
    for file, text in zip((name, "two.txt"), texts, strict=True):
        data = text.encode()
        (tmp_path / file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
    source = open_source([str(tmp_path / name), str(tmp_path / "two.txt")])
    tokenizer = train_tokenizer("bpe", texts, 300)
    whole = "".join(texts).replace("\r\n", "\n").replace("\r", "\n")
    folders = []
    for per_worker in (10**9, 10):
        monkeypatch.setattr("datamodules.encoding._CHARS_PER_WORKER", per_worker)
        monkeypatch.setattr("datamodules.units._JOB_CHARS", 10_000)
        monkeypatch.setattr("datamodules.splitting.PIECE", 1000)
        recipe = Recipe(source, tokenizer, Split(val=0.3))
        folders.append(prepare(recipe, tmp_path / str(per_worker)))
    assert useful_workers(tokenizer, 10**6) > 0 or len(os.sched_getaffinity(0)) == 1
    for file in ("train.bin", "train.starts", "val.bin", "val.starts", "meta.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    assert "".join(texts_of(folders[0]).values()).replace(EOS_TOKEN, "") == whole


def test_an_error_in_a_worker_is_the_callers() -> None:
    with pytest.raises(UserError, match="'b'"):
        list(encode_all(CharTokenizer("a"), [[("a", True)], [("b", True)], [("a", True)]], workers=2))


def test_character_lookups_stay_in_this_process() -> None:
    assert useful_workers(ByteTokenizer(), 10**9) == 0


def test_neither_preparing_nor_its_workers_import_torch() -> None:
    code = "import sys, datamodules, datamodules.prepare, datamodules.encoding; print('torch' in sys.modules)"
    job = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert job.stdout == "False\n"


def script(tmp_path: Path, text: Path, cache: Path) -> list[str]:
    """A program that prepares a text and writes a line for each time that it had to build."""
    path = tmp_path / "job.py"
    path.write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from datamodules import prepare as p
from datamodules.sources import open_source
from datamodules.splitting import Split
build = p._build
def counted(*args):
    open({str(tmp_path / "builds")!r}, "a").write("x")
    build(*args)
p._build = counted
recipe = p.Recipe(open_source({str(text)!r}), p.NewTokenizer("char", train_on="all", eos=False), Split(val=0.1))
print(p.prepare(recipe, {str(cache)!r}))
"""
    )
    return [sys.executable, str(path)]


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    words = random.Random(0)
    path = tmp_path / "long.txt"
    path.write_text(" ".join(f"{words.random():.6f}" for _ in range(400_000)))
    return path


def test_processes_that_start_together_prepare_once(tmp_path: Path, long_text: Path) -> None:
    command = script(tmp_path, long_text, tmp_path / "cache")
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {job.communicate()[0] for job in jobs}
    assert all(job.returncode == 0 for job in jobs)
    assert len(folders) == 1
    assert (tmp_path / "builds").read_text() == "x"


def test_a_killed_preparation_is_done_again(tmp_path: Path, long_text: Path) -> None:
    cache, draw = tmp_path / "cache", random.Random(1)
    command = script(tmp_path, long_text, cache)
    for _ in range(5):
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not list(cache.glob("*.part")) and job.poll() is None:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.04)
        job.send_signal(signal.SIGKILL)
        job.wait()
    folder = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    text = long_text.read_text()
    assert "".join(texts_of(folder).values()) == text
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path, long_text: Path) -> None:
    def peak(text: Path) -> int:
        command = script(tmp_path, text, tmp_path / "cache")
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(status)
        assert job.returncode == 0
        return usage.ru_maxrss // 1024

    longer = tmp_path / "longer.txt"
    longer.write_bytes(long_text.read_bytes() * 12)  # 43 MB
    assert peak(longer) - peak(long_text) < 15


# ---- disks and caches


def damaged(folder: Path) -> None:
    (folder / "train.bin").write_bytes(b"")


def from_another_version(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "version": 0}))


@pytest.mark.parametrize("spoil", [damaged, from_another_version])
def test_a_spoilt_or_foreign_cache_is_rebuilt(
    text_source: Callable[..., Source], spoil: Callable[[Path], None]
) -> None:
    recipe = Recipe(text_source("abc"), CHARS)
    spoil(prepare(recipe))
    assert texts_of(prepare(recipe)) == {"train": "abc"}


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    text_source: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TokenWriter, "add", refuse)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"the disk is full.*set cache_dir"):
        prepare(Recipe(text_source("abc"), CHARS), cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_small_tmpfs_that_fills_up(tmp_path: Path, long_text: Path) -> None:
    cache = tmp_path / "small"
    cache.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", cache], check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        with pytest.raises(UserError, match="the disk is full"):
            prepare(Recipe(open_source(str(long_text)), CHARS), cache)
        assert [path.suffix for path in cache.iterdir()] == [".lock"]
    finally:
        subprocess.run(["umount", cache], check=True)


def test_a_cache_that_cannot_be_made_is_one_sentence(text_source: Callable[..., Source], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        prepare(Recipe(text_source("abc"), CHARS), tmp_path / "file")


@pytest.mark.parametrize("later", ["new text " * 2000, "shorter\n", "\n" * 5000, None])
@pytest.mark.parametrize("name", ["train.txt", "val.txt"])
def test_text_that_is_written_to_meanwhile_leaves_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, later: str | None
) -> None:
    for file in ("train.txt", "val.txt"):
        (tmp_path / file).write_text("old text\n" * 2000)
    source, val = (open_source(str(tmp_path / file), documents="line") for file in ("train.txt", "val.txt"))
    save = prepare_module.save_tokenizer

    def another_program(*args: object) -> None:
        save(*args)  # type: ignore[arg-type]
        (tmp_path / name).unlink() if later is None else (tmp_path / name).write_text(later)

    monkeypatch.setattr(prepare_module, "save_tokenizer", another_program)
    split = Split("documents", shuffle=1)
    with pytest.raises(UserError, match=rf"the text of .*{name} was written to while it was prepared: start again"):
        prepare(Recipe(source, NewTokenizer("char", train_on="all"), split, val), tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_in_nobodys_home_is_one_sentence(text_source: Callable[..., Source]) -> None:
    with pytest.raises(UserError, match="nobody's home folder on this machine; write the folder out"):
        prepare(Recipe(text_source("abc"), CHARS), "~nobody_of_that_name/cache")


def test_the_store_is_there_only_when_it_is_whole(
    text_source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    write_meta = merging.write_meta

    def look(folder: Path, *args: object, **facts: object) -> None:
        seen.append([path.suffix for path in folder.parent.iterdir() if path.is_dir()])
        write_meta(folder, *args, **facts)  # type: ignore[arg-type]

    monkeypatch.setattr(merging, "write_meta", look)
    folder = prepare(Recipe(text_source("abc"), CHARS))
    assert seen == [[".part"]]
    assert np.array_equal(TokenStore(folder, "train").tokens, [0, 1, 2])
