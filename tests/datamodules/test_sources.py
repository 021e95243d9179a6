"""Sources: the same documents on every reading, in bounded memory, and one sentence for what cannot be read."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import downloads
from datamodules.errors import UserError
from datamodules.reading import CHUNK, TextFile, cut, stripped
from datamodules.sources import Source, open_source

TITLES = ["one", "two, or three", 'a "quoted"\nvalue', "é中👍"]


def joined(source: Source, size: int = CHUNK) -> list[str]:
    """Documents put together from pieces."""
    documents, held = [], ""
    for text, end in source.pieces(size):
        assert len(text) <= size
        held += text
        if end:
            documents.append(held)
            held = ""
    assert held == ""
    return documents


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# Names


def test_embedded_is_this_pythons_documentation_without_repeats() -> None:
    (text,) = open_source("embedded").documents()
    assert len(text) > 300_000
    if sys.version_info[:3] == (3, 11, 7):
        assert len(text) == 357_713
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)
    long_lines = [line for line in text.split("\n") if len(line) >= 20]
    assert len(set(long_lines)) == len(long_lines)
    assert text == next(open_source("embedded").documents())


def test_the_last_tenth_of_embedded_is_new() -> None:
    (text,) = open_source("embedded").documents()
    at = len(text) * 9 // 10
    known = {text[i : i + 50] for i in range(at - 50)}
    assert sum(text[i : i + 50] in known for i in range(at, len(text) - 50)) / (len(text) - at) < 0.01


def test_embedded_headlines_are_lines_of_a_size_of_choice() -> None:
    assert len(list(open_source("embedded_headlines", documents="line").documents())) == 10_000
    few = list(open_source("embedded_headlines:3", documents="line").documents())
    assert len(few) == 3
    assert next(open_source("embedded_headlines:3").documents()) == "\n".join(few)
    with pytest.raises(UserError, match="whole number, not 'x'"):
        open_source("embedded_headlines:x")


def test_a_named_download_comes_from_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "downloads").mkdir()
    write(tmp_path / "downloads" / "moby_dick.txt", "Call me Ishmael.")
    assert list(open_source("moby_dick", cache_dir=tmp_path).documents()) == ["Call me Ishmael."]
    (tmp_path / "lit_gpt" / "downloads").mkdir(parents=True)
    write(tmp_path / "lit_gpt" / "downloads" / "tiny_shakespeare.txt", "First Citizen:")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert list(open_source("tiny_shakespeare").documents()) == ["First Citizen:"]


def test_the_recorded_hashes_are_those_of_the_files() -> None:
    data = Path(__file__).parents[3] / "shared" / "data"
    if not data.exists():
        pytest.skip("the files are not in ../shared/data")
    for name, file in downloads.DOWNLOADS.items():
        downloads._check(name, file, data / f"{name}.txt")
        assert (data / f"{name}.txt").stat().st_size == file.size


# Files


def test_a_file_is_a_document_with_normal_line_ends_and_no_byte_order_mark(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.txt", b"\xef\xbb\xbfa\r\nb\rc\n\r\nd\r"))
    assert list(source.documents()) == joined(source) == joined(source, 1) == ["a\nb\nc\n\nd\n"]
    assert "".join(TextFile("x", content=b"\xef\xbb\xbfa\r\n\r\nb").chunks(1)) == "a\n\nb"


def test_folders_globs_and_lists_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.txt", "d.py", "e.txt.gz", "F.TXT.GZ"):
        content = name.encode()
        write(tmp_path / name, gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert list(open_source(str(tmp_path)).documents()) == ["F.TXT.GZ", "a.md", "b.txt", "e.txt.gz", "sub/c.txt"]
    assert list(open_source(str(tmp_path / "**/*.p*")).documents()) == ["d.py"]
    two = [str(tmp_path / "d.py"), str(tmp_path / "a.md")]
    assert list(open_source(two).documents()) == ["d.py", "a.md"]


def test_a_folder_is_read_without_hidden_copies_and_other_files(tmp_path: Path) -> None:
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in ("n.md", ".ipynb_checkpoints/n-checkpoint.md", "._n.md"):
        write(tmp_path / name, name)
    write(tmp_path / "__init__.py", "")
    assert list(open_source(str(tmp_path)).documents()) == ["n.md"]


def test_an_empty_file_among_others_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "b.txt", "")
    for place in (tmp_path, tmp_path / "*.txt"):
        assert list(open_source(str(place)).documents()) == ["a"]


def test_a_link_to_a_text_is_that_text_and_files_of_one_name_are_several(tmp_path: Path) -> None:
    for name in ("blobs", "doubled", "linked/x", "linked/y"):
        (tmp_path / name).mkdir(parents=True)
    for name, text in (("1", "first"), ("2", "second")):
        write(tmp_path / "blobs" / name, text)
    (tmp_path / "linked" / "x" / "part.txt").symlink_to(tmp_path / "blobs" / "1")
    (tmp_path / "linked" / "y" / "part.txt").symlink_to(tmp_path / "blobs" / "2")
    assert list(open_source(str(tmp_path / "linked")).documents()) == ["first", "second"]
    write(tmp_path / "doubled" / "2024.txt.gz", gzip.compress(b"text"))
    (tmp_path / "doubled" / "latest.txt.gz").symlink_to("2024.txt.gz")
    with pytest.raises(UserError, match=r"has 2024\.txt twice \(as itself, by a link, or with \.gz\)"):
        open_source(str(tmp_path / "doubled"))


def test_lines_keep_what_only_looks_like_a_line_end(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.txt", "a\u2028b\x0c\r\n\n  c \nd"), documents="line")
    assert list(source.documents()) == joined(source) == ["a\u2028b\x0c", "  c ", "d"]
    stripped_source = open_source(str(tmp_path / "a.txt"), documents="line", strip=True)
    assert list(stripped_source.documents()) == ["a\u2028b", "c", "d"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".csv.gz", ".jsonl.gz"])
def test_columns(tmp_path: Path, suffix: str) -> None:
    if "jsonl" in suffix:
        text = "\n".join(json.dumps({"n": i, "title": title}) for i, title in enumerate(TITLES)) + "\n\n"
        text += json.dumps({"title": None}) + "\n"
    else:
        separator = "," if "csv" in suffix else "\t"
        quoted = ['"{}"'.format(title.replace('"', '""')) for title in TITLES]
        text = "\r\n".join(f"{i}{separator}{title}" for i, title in enumerate(["title", *quoted])) + "\r\n"
    content = gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode()
    source = open_source(write(tmp_path / f"t{suffix}", content), documents="column", column="title")
    assert list(source.documents()) == joined(source) == TITLES


def test_a_long_field(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "t.csv", "title\n" + "x" * 200_000), documents="column", column="title")
    assert [len(document) for document in source.documents()] == [200_000]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the hf extra is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"title": [*TITLES, None], "n": range(5)}), tmp_path / "t.parquet")
    options = {"documents": "column", "column": "title"}
    assert list(open_source(str(tmp_path), **options).documents()) == TITLES  # type: ignore[arg-type]
    for column, message in (("n", "which is not text"), ("text", "it has title, n")):
        with pytest.raises(UserError, match=message):
            list(open_source(str(tmp_path), documents="column", column=column).documents())
    write(tmp_path / "t.parquet", "no")
    with pytest.raises(UserError, match="not a parquet file"):
        list(open_source(str(tmp_path), **options).documents())  # type: ignore[arg-type]


# Pieces


@given(text=st.text(st.sampled_from("ab \n\t1.é"), max_size=200), size=st.integers(1, 30), chunk=st.integers(1, 40))
def test_pieces_make_up_the_text_and_end_once(text: str, size: int, chunk: int) -> None:
    pieces = list(cut([text[i : i + chunk] for i in range(0, len(text), chunk)], size))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(piece.text) <= size for piece in pieces)
    for left, right in pairwise(pieces):
        between_words = left.text[-1].isalpha() and right.text[0] in " \n"
        window = left.text + right.text[:1]
        assert between_words or (len(left.text) == size and not _has_a_cut(window))


def _has_a_cut(window: str) -> bool:
    return any(a.isalpha() and b in " \n" for a, b in pairwise(window))


@given(text=st.text(st.sampled_from("ab \n\t"), max_size=60), chunk=st.integers(1, 9))
def test_stripping_a_stream_is_stripping_the_text(text: str, chunk: int) -> None:
    assert "".join(stripped([text[i : i + chunk] for i in range(0, len(text), chunk)])) == text.strip()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("w", encoding="utf-8") as file:
        file.writelines("some words on a line, é 中\n" * 100_000 for _ in range(12))
    tracemalloc.start()
    characters = sum(len(piece.text) for piece in open_source(str(path)).pieces(1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == 12 * 100_000 * 26
    assert peak < 4 << 20


# Fingerprints


def test_fingerprints_tell_texts_and_readings_apart_and_not_places(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = write(tmp_path / "one" / "a.txt", "ab\ncd")
    same = write(tmp_path / "two" / "b.txt", "ab\ncd")
    third = write(tmp_path / "c.txt", "cd")
    prints = [
        open_source(first).fingerprint(),
        open_source(first, documents="line").fingerprint(),
        open_source(first, strip=True).fingerprint(),
        open_source(third).fingerprint(),
        open_source([first, third]).fingerprint(),
        open_source([third, first]).fingerprint(),
        open_source("embedded_headlines:3").fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(one) == 64 for one in prints)
    assert open_source(same).fingerprint() == prints[0]
    write(tmp_path / "two" / "b.txt", "ab\ncD")
    assert open_source(same).fingerprint() != prints[0]


def test_a_table_that_is_read_in_another_way_has_another_fingerprint(tmp_path: Path) -> None:
    for name in ("t.csv", "t.tsv", "other.csv"):
        write(tmp_path / name, "title\nHello, world\n")
    comma, tab, other = (
        open_source(str(tmp_path / name), documents="column", column="title")
        for name in ("t.csv", "t.tsv", "other.csv")
    )
    assert comma.fingerprint() == other.fingerprint() != tab.fingerprint()


def test_two_files_are_not_one_file_of_both(tmp_path: Path) -> None:
    parts = [write(tmp_path / "a.txt", "ab"), write(tmp_path / "b.txt", "cd")]
    whole = write(tmp_path / "c.txt", "abcd")
    assert open_source(parts).fingerprint() != open_source(whole).fingerprint()


# Bad input, one sentence each


def test_the_time_for_a_long_line_grows_with_its_length_and_not_its_square() -> None:
    def seconds(size: int) -> float:
        text = "word " * (size // 5)
        start = time.process_time()
        assert [len(line) for line in TextFile("x", content=f"{text}\nb".encode()).lines()] == [len(text), 1]
        assert sum(len(piece.text) for piece in cut([text], 1 << 17)) == len(text)
        return time.process_time() - start

    assert min(seconds(60_000_000), seconds(60_000_000)) < 25 * min(seconds(12_000_000), seconds(12_000_000))  # was 62


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write(tmp_path / "a.txt", "x"))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a\.txt cannot be read \(Permission denied\)"):
        list(source.pieces())


def test_not_utf8_names_the_byte(tmp_path: Path) -> None:
    content = "é中".encode() * 300_000 + b"ab\xe9d"
    source = open_source(write(tmp_path / "latin.txt", content))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8: byte 0xe9 at offset 1,500,002"):
        list(source.pieces())
    cut_short = open_source(write(tmp_path / "short.txt", "ab中".encode()[:-1]), documents="line")
    with pytest.raises(UserError, match="byte 0xe4 at offset 2"):
        list(cut_short.documents())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda p: str(p / "no.txt"), {}, r"no file, folder or source '.*no\.txt'; the names are embedded"),
        (lambda p: str(p / "*.txt"), {}, "no file, folder or source"),
        (lambda p: write(p / "empty.txt", ""), {}, r"empty\.txt is empty"),
        (str, {}, "has no .md, .rst, .text, .txt files"),
        (str, {"documents": "column", "column": "a"}, "has no .csv, .jsonl, .parquet, .tsv files"),
        (lambda p: [], {}, "a source is empty"),
        (lambda p: "", {}, "a source is empty"),
        (lambda p: "Call me Ishmael. " * 30, {}, "'Call me Ishmael.*is no path"),
        (lambda p: [write(p / "a.txt", "x"), str(p / "*.txt")], {}, r"has a\.txt twice"),
        (lambda p: [write(p / "a.txt", "x"), write(p / "a.txt.gz", gzip.compress(b"x"))], {}, r"has a\.txt twice"),
        (lambda p: [write(p / "a.TXT", "x"), write(p / "a.TXT.GZ", gzip.compress(b"x"))], {}, r"has a\.TXT twice"),
        (lambda p: ["hacker_news", write(p / "a.txt", "x")], {}, "hacker_news stands alone"),
        (lambda p: write(p / "a.txt", "\n \n"), {"strip": True, "documents": "line"}, "every line in it is empty"),
        (lambda p: write(p / "a.txt", " \n"), {"strip": True}, "every file in it is empty"),
        (lambda p: write(p / "a.txt", "x"), {"documents": "column"}, "with column=None"),
        (lambda p: write(p / "a.txt", "x"), {"column": "title"}, "with column='title'"),
        (lambda p: write(p / "a.txt", "x"), {"documents": "column", "column": "a"}, "has no columns"),
        (lambda p: write(p / "a.csv", "a,b\n1,2"), {"documents": "column", "column": "c"}, "'c'; it has a, b"),
        (lambda p: write(p / "a.csv", "a,b\n1"), {"documents": "column", "column": "b"}, r"line 2: 1 fields .* 2"),
        (lambda p: write(p / "a.csv", "a,b\n1"), {"documents": "column", "column": "a"}, "line 2: 1 fields"),
        (
            lambda p: write(p / "a.csv", "a\nb\n\nc, d"),
            {"documents": "column", "column": "a"},
            "line 4: 2 fields .* 1;",
        ),
        (lambda p: write(p / "a.csv", 'a,b\n"1'), {"documents": "column", "column": "b"}, "line 2: unexpected end"),
        (lambda p: write(p / "a.csv", "a,b,a\n1,2,3"), {"documents": "column", "column": "a"}, "2 columns named 'a'"),
        (lambda p: write(p / "a.tsv", "a\ta\n1\t2"), {"documents": "column", "column": "a"}, "2 columns named 'a'"),
        (
            lambda p: write(p / "a.jsonl", '{"a": "1"}\n{"a": "1", "b": "", "a": "2"}'),
            {"documents": "column", "column": "a"},
            r"a\.jsonl, line 2 has 2 columns named 'a': rename all but one",
        ),
        (lambda p: write(p / "a.tsv", 'a\n"x" y'), {"documents": "column", "column": "a"}, "line 2: .* quotes doubled"),
        (lambda p: write(p / "a.jsonl", '{"a": 1}'), {"documents": "column", "column": "b"}, "'b'; it has a"),
        (lambda p: write(p / "a.jsonl", '{"a": 1}'), {"documents": "column", "column": "a"}, "holds 1, which is not"),
        (lambda p: write(p / "a.jsonl", "[1]"), {"documents": "column", "column": "a"}, "'a'; it has none"),
        (lambda p: write(p / "a.jsonl", "{\n"), {"documents": "column", "column": "a"}, "line 1 is not JSON"),
        (
            lambda p: write(p / "a.jsonl", '{"a": "x", "n": ' + "1" * 5000 + "}"),
            {"documents": "column", "column": "a"},
            "line 1 is not JSON that can be read: .* 5000 digits",
        ),
        (
            lambda p: write(p / "a.jsonl", "[" * 100_000 + "]" * 100_000),
            {"documents": "column", "column": "a"},
            "line 1 is not JSON that can be read: maximum recursion depth",
        ),
        (lambda p: "~nobody_of_that_name/a.txt", {}, "~nobody_of_that_name is nobody's home folder on this machine"),
        (lambda p: write(p / "a.gz", b"no"), {}, "not a whole gzip file"),
        (lambda p: write(p / "a.gz", gzip.compress(b"abc" * 999)[:-9]), {}, "not a whole gzip file"),
        (lambda p: "hf:owner/name", {"documents": "column", "column": "a"}, "names no revision"),
        (lambda p: "hf:owner/name@main", {}, "is a table"),
    ],
)
def test_one_sentence_for(tmp_path: Path, make: Callable[[Path], str | list[str]], options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        list(open_source(make(tmp_path), **options).documents())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        list(open_source(make(tmp_path), **options).pieces())


def test_formats_of_the_hf_extra_say_so_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "datasets", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)
    table = write(tmp_path / "t.parquet", "x")
    for spec, options in ((table, {"documents": "column", "column": "a"}), ("hacker_news", {})):
        with pytest.raises(UserError, match=r"needs the hf extra: pip install -e '\.\[hf\]'"):
            list(open_source(spec, **options).documents())  # type: ignore[arg-type]


def test_texts_need_no_torch() -> None:
    code = (
        "import sys\n"
        "import datamodules.sources, datamodules.downloads, datamodules.synthetic, datamodules.tokenizers\n"
        "print([m for m in ('torch', 'lightning', 'tokenizers', 'tiktoken') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def packed(path: Path, how: str) -> Path:
    """A novel inside an archive or a compressed file."""
    (path / "novel.txt").write_text("Call me Ishmael. " * 99)
    data = (path / "novel.txt").read_bytes()
    if how in ("tar", "tar.gz", "tgz"):
        with tarfile.open(path / f"novel.{how}", "w:gz" if "g" in how else "w") as archive:
            archive.add(path / "novel.txt", "novel.txt")
    elif how == "zip":
        with zipfile.ZipFile(path / "novel.zip", "w") as archive:
            archive.write(path / "novel.txt", "novel.txt")
    else:
        pack = {"bz2": bz2.compress, "xz": lzma.compress, "gz.gz": lambda data: gzip.compress(gzip.compress(data))}
        (path / f"novel.{how}").write_bytes(pack.get(how, gzip.compress)(data))
    return path / f"novel.{how}"


@pytest.mark.parametrize("how", ["tar", "tar.gz", "zip", "bz2", "xz", "gz.gz", "gz as.txt"])
@pytest.mark.parametrize("documents", ["file", "line"])
def test_an_archive_is_no_text(tmp_path: Path, how: str, documents: Literal["file", "line"]) -> None:
    path = packed(tmp_path, how)
    with pytest.raises(UserError, match=rf"{path.name} is .*, and no text: give the texts in it, unpacked"):
        list(open_source(str(path), documents=documents).pieces())


def test_a_tgz_is_no_text_and_a_text_that_tells_of_archives_is_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is gzipped"):
        list(open_source(str(packed(tmp_path, "tgz"))).pieces())
    text = write(tmp_path / "a.txt", "ustar, PK and %PDF- are what archives begin with")
    assert "".join(piece.text for piece in open_source(text).pieces()).startswith("ustar")
