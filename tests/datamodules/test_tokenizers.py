"""Tokenizers: lossless, equal to their libraries, the same after every way of keeping them."""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from datamodules.errors import UserError
from datamodules.reading import cut
from datamodules.synthetic import headlines
from datamodules.tokenizers import (
    END_MARK,
    PATTERNS,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    UnigramTokenizer,
    from_huggingface,
    load_tokenizer,
    open_tokenizer,
    save_tokenizer,
    to_huggingface,
    tokenizer_from_dict,
    train_tokenizer,
)
from tests.datamodules.conftest import SHARED

TEXTS = list(headlines(3000))
HARD = [
    "",
    " ",
    "\n\n \t\r\n x",
    "It's  I'LL 12345\u00a0e\u0301 你好\uff0c世界 👍🏽 \x00\u200b\ufeff",
    END_MARK,
    f"a{END_MARK}b <unk>",
    "".join(map(chr, range(256))),
    "\U0010ffff\ue000\u0378",
]
#: Any text that UTF-8 can hold, with more white space, letters and marks than chance would give.
VALID = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t'aAé1.<|>\u0301中👍"), max_size=60)


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    tokenizer = train_tokenizer("bpe", TEXTS, 1000)
    assert isinstance(tokenizer, BPETokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def unigram() -> UnigramTokenizer:
    tokenizer = train_tokenizer("unigram", TEXTS, 1000)
    assert isinstance(tokenizer, UnigramTokenizer)
    return tokenizer


@pytest.fixture(scope="module", params=["char", "byte", "bpe", "unigram", "unsplit"])
def any_tokenizer(request: pytest.FixtureRequest, bpe: BPETokenizer, unigram: UnigramTokenizer) -> Tokenizer:
    """One of each kind; the alphabet of the character one covers TEXTS and HARD."""
    return {
        "char": lambda: CharTokenizer.from_texts(TEXTS + HARD, eos=True),
        "byte": lambda: ByteTokenizer(eos=True),
        "bpe": lambda: bpe,
        "unigram": lambda: unigram,
        "unsplit": lambda: train_tokenizer("bpe", TEXTS[:50], 300, pattern="none"),
    }[request.param]()


@pytest.fixture(scope="module")
def gpt2() -> Iterator[BPETokenizer]:
    with pytest.MonkeyPatch.context() as patch:
        cache = SHARED / "tiktoken_cache"
        if not cache.exists():
            pytest.skip("gpt2's ranks are not in ../shared/tiktoken_cache")
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        yield BPETokenizer.from_encoding("gpt2")


@pytest.fixture(scope="module")
def titles() -> list[str]:
    path = SHARED / "data" / "hn_titles_100k.txt"
    if not path.exists():
        pytest.skip("the titles are not in ../shared/data")
    return path.read_text(encoding="utf-8").splitlines()


def library_of(tokenizer: Tokenizer) -> Library:
    """What Hugging Face's library makes of our export, told as we are to leave the names of marks in a text alone."""
    library = Library.from_str(json.dumps(to_huggingface(tokenizer)))
    library.encode_special_tokens = True
    return library


# What all of them promise


def test_every_text_comes_back_and_every_id_is_in_range(any_tokenizer: Tokenizer) -> None:
    for text in TEXTS[:200] + HARD:
        ids = any_tokenizer.encode(text)
        assert any_tokenizer.decode(ids) == text
        assert any_tokenizer.decode_bytes(ids) == text.encode()
        assert all(0 <= i < any_tokenizer.vocab_size for i in ids)
        assert any_tokenizer.eos_id not in ids
        assert any_tokenizer.encode_array(text).tolist() == ids
        assert any_tokenizer.encode_array(text).dtype == np.uint32
    assert any_tokenizer.encode_batch(TEXTS[:20]) == [any_tokenizer.encode(text) for text in TEXTS[:20]]


def test_the_bytes_of_tokens_add_up(any_tokenizer: Tokenizer) -> None:
    for text in HARD:
        assert b"".join(map(any_tokenizer.token_bytes, any_tokenizer.encode(text))) == text.encode()


def test_the_end_mark_is_the_last_id_and_shows_its_name(any_tokenizer: Tokenizer) -> None:
    assert any_tokenizer.eos_id == any_tokenizer.vocab_size - 1
    assert any_tokenizer.decode([any_tokenizer.eos_id]) == any_tokenizer.token_text(any_tokenizer.eos_id) == END_MARK


def test_survives_every_way_of_keeping_it(any_tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(any_tokenizer, tmp_path / "folder" / "t.json")
    torch.save({"tokenizer": any_tokenizer.to_dict()}, tmp_path / "t.ckpt")
    copies = [
        tokenizer_from_dict(json.loads(json.dumps(any_tokenizer.to_dict()))),
        tokenizer_from_dict(torch.load(tmp_path / "t.ckpt", weights_only=True)["tokenizer"]),
        load_tokenizer(tmp_path / "folder" / "t.json"),
        open_tokenizer(str(tmp_path / "folder" / "t.json")),
        pickle.loads(pickle.dumps(any_tokenizer)),
    ]
    for copy in copies:
        assert type(copy) is type(any_tokenizer)
        assert (copy.fingerprint, copy.eos_id) == (any_tokenizer.fingerprint, any_tokenizer.eos_id)
        assert copy.encode_batch(HARD) == any_tokenizer.encode_batch(HARD)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["t.json"]


def test_a_lone_surrogate_is_refused(any_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"surrogate U\+D83D at character 2"):
        any_tokenizer.encode("ab\ud83d")


def test_decode_replaces_broken_utf8_and_refuses_ids_beyond_the_vocabulary(bpe: BPETokenizer) -> None:
    half = bpe.encode("中")[:1]
    assert bpe.decode(half) == "\ufffd" or len(bpe.encode("中")) == 1
    assert ByteTokenizer().decode([0xE4, 0x41]) == "\ufffdA"
    with pytest.raises(UserError, match="vocabulary of 1000"):
        bpe.decode([1000])


def test_equal_ids_in_hugging_face(any_tokenizer: Tokenizer) -> None:
    library = library_of(any_tokenizer)
    assert library.get_vocab_size() == any_tokenizer.vocab_size
    for text in TEXTS[:300] + HARD:
        assert library.encode(text).ids == any_tokenizer.encode(text)
    assert library.decode(any_tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert library.token_to_id(END_MARK) == any_tokenizer.eos_id


# Characters and bytes


def test_characters_are_sorted_whatever_the_order_of_the_text() -> None:
    assert CharTokenizer.from_texts(["bca", "\n"]).fingerprint == CharTokenizer("c\nabba").fingerprint
    assert CharTokenizer.from_texts(["ba\n"]).encode("\nab") == [0, 1, 2]


@pytest.mark.parametrize("character", ["c", "`", "\U0010ffff"])
def test_unknown_characters(character: str) -> None:
    with pytest.raises(UserError, match=rf"U\+{ord(character):04X}\) at position 1"):
        CharTokenizer("ab").encode("a" + character)
    lenient = CharTokenizer("ab", unknown="unk", eos=True)
    assert lenient.encode("a" + character) == [0, 2]
    assert lenient.decode([0, 2]) == "a\ufffd"
    assert (lenient.vocab_size, lenient.eos_id) == (4, 3)


def test_visible_form_of_tokens() -> None:
    assert [ByteTokenizer(eos=True).token_text(i) for i in (10, 32, 65, 0xC3, 256)] == [
        "\\n",
        " ",
        "A",
        "\\xc3",
        END_MARK,
    ]


def test_an_empty_alphabet_is_refused() -> None:
    with pytest.raises(UserError, match="at least one character"):
        CharTokenizer.from_texts([""])


# Trained


@settings(max_examples=300, deadline=None)
@given(text=VALID)
def test_bpe_is_lossless_and_agrees_with_the_library_that_trained_it(bpe: BPETokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text
    assert library_of_bpe(bpe).encode(text).ids == bpe.encode(text)


@settings(max_examples=300, deadline=None)
@given(text=VALID, alpha=st.sampled_from([0.0, 0.2, 1.0]), seed=st.integers(0, 9))
def test_unigram_is_lossless_sampled_or_not(unigram: UnigramTokenizer, text: str, alpha: float, seed: int) -> None:
    assert unigram.decode(unigram.encode(text)) == text
    assert unigram.decode(unigram.sample(text, np.random.default_rng(seed), alpha)) == text


_LIBRARIES: dict[str, Library] = {}


def library_of_bpe(tokenizer: Tokenizer) -> Library:
    return _LIBRARIES.setdefault(tokenizer.fingerprint, library_of(tokenizer))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_gives_the_size_asked_for(kind: str) -> None:
    for size, eos in ((257, True), (257, False), (400, True)):
        tokenizer = train_tokenizer(kind, TEXTS, size, eos=eos)  # type: ignore[arg-type]
        assert tokenizer.vocab_size == size
        assert (tokenizer.eos_id is None) == (not eos)


def test_bpe_training_is_deterministic_and_does_not_depend_on_how_a_text_is_cut() -> None:
    text = "\n".join(TEXTS)
    whole = train_tokenizer("bpe", [text], 600)
    pieces = train_tokenizer("bpe", (piece.text for piece in cut([text], 1000)), 600)
    assert whole.fingerprint == pieces.fingerprint == train_tokenizer("bpe", [text], 600).fingerprint


def test_a_text_too_small_for_the_vocabulary_gives_a_smaller_one() -> None:
    tokenizer = train_tokenizer("bpe", ["aaab"], 1000)
    assert 257 < tokenizer.vocab_size < 265
    assert tokenizer.decode(tokenizer.encode("aaab 中")) == "aaab 中"


@pytest.mark.parametrize(
    ("kind", "texts", "size", "message"),
    [
        ("bpe", TEXTS, 256, "at least 257"),
        ("unigram", TEXTS, None, "vocab_size=None is too small"),
        ("char", TEXTS, 300, "means nothing to a char"),
        ("bpe", ["", ""], 300, "no text to train"),
        ("bpe", ["a\udc00"], 300, "surrogate"),
    ],
)
def test_training_refuses(kind: str, texts: list[str], size: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_tokenizer(kind, texts, size)  # type: ignore[arg-type]


def test_without_a_pattern_merges_cross_words() -> None:
    tokenizer = train_tokenizer("bpe", ["of the " * 100], 262, pattern="none")
    assert any(b" " in token[1:] for token in map(tokenizer.token_bytes, range(256, 261)))


def test_the_published_byte_bpe_of_275_tokens() -> None:
    """A learning log trained one on this article and counted 148,582 tokens."""
    article = SHARED / "data" / "taylor_swift.txt"
    if not article.exists():
        pytest.skip("the article is not in ../shared/data")
    text = article.read_text(encoding="utf-8")
    tokenizer = train_tokenizer("bpe", [text], 275, pattern="none", eos=False)
    assert tokenizer.vocab_size == 275
    assert len(tokenizer.encode(text)) == 148_582


def test_a_million_spaces_do_not_overflow_the_regular_expression(bpe: BPETokenizer, unigram: UnigramTokenizer) -> None:
    for text in (" " * 1_100_000 + "a", "a" * 300_000, "中" * 300_000):
        assert bpe.decode(bpe.encode(text)) == text
        assert unigram.decode(unigram.encode(text)) == text


def test_no_warning_after_a_fork() -> None:
    code = (
        "import os, sys\n"
        "from datamodules.tokenizers import train_tokenizer\n"
        "t = train_tokenizer('unigram', ['one two three four'] * 500, 270)\n"
        "if os.fork() == 0:\n"
        "    t.encode_batch(['one two'] * 100); os._exit(0)\n"
        "os.wait()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""


# Sampling


def test_sampling_is_seeded_and_follows_the_model(unigram: UnigramTokenizer) -> None:
    text = TEXTS[0]
    first, again = (unigram.sample(text, np.random.default_rng(7), 0.1) for _ in range(2))
    assert first == again
    rng = np.random.default_rng(0)
    assert len({tuple(unigram.sample(text, rng, 0.1)) for _ in range(50)}) > 40
    assert unigram.sample(text, rng, 1000.0) == unigram.encode(text)


def test_sampled_frequencies_are_those_of_the_definition() -> None:
    tokens = [chr(i) for i in range(256)] + ["ab", "bc", "abc", ""]
    scores = [-5.0] * 256 + [-3.0, -4.0, -6.0, 0.0]
    tokenizer = UnigramTokenizer(tokens, PATTERNS["cl100k"], {END_MARK: 259}, END_MARK, scores)
    ways = {(97, 98, 99): -15.0, (256, 99): -8.0, (97, 257): -9.0, (258,): -6.0}
    alpha, rng = 0.3, np.random.default_rng(0)
    draws = [tuple(tokenizer.sample("abc", rng, alpha)) for _ in range(20_000)]
    weights = {way: np.exp(alpha * score) for way, score in ways.items()}
    for way, weight in weights.items():
        assert draws.count(way) / len(draws) == pytest.approx(weight / sum(weights.values()), abs=0.012)


# tiktoken's encodings


def test_gpt2_ids(gpt2: BPETokenizer) -> None:
    assert gpt2.encode("I love machine learning.") == [40, 1842, 4572, 4673, 13]
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)
    assert gpt2.encode(END_MARK) == tiktoken.get_encoding("gpt2").encode_ordinary(END_MARK)


def test_gpt2_encodes_a_novel_as_tiktoken_does(gpt2: BPETokenizer) -> None:
    text = "\n".join(TEXTS * 8)
    assert len(text) > 1 << 20  # longer than what is matched in one go
    assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


def test_gpt2_reloads_fast_and_without_a_network(gpt2: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nowhere")
    state = pickle.loads(pickle.dumps(gpt2.to_dict()))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        ids = tokenizer_from_dict(state).encode("I love machine learning.")
        seconds.append(time.perf_counter() - start)
    assert ids == [40, 1842, 4572, 4673, 13]
    assert min(seconds) < 0.1


def test_gpt2_goes_to_hugging_face_and_back(gpt2: BPETokenizer) -> None:
    state = json.loads(json.dumps(to_huggingface(gpt2)))
    library = Library.from_str(json.dumps(state))
    assert library.token_to_id("Ġthe") == 262
    assert all(library.encode(text).ids == gpt2.encode(text) for text in TEXTS[:200])
    assert from_huggingface(state).fingerprint == gpt2.fingerprint


@pytest.fixture(scope="module")
def split_by_every_pattern(gpt2: BPETokenizer) -> list[BPETokenizer]:
    """gpt2's ranks with all patterns, published and ours: ranks do not matter to where text splits."""
    patterns = {gpt2.pattern, _published("cl100k_base"), _published("o200k_base"), PATTERNS["cl100k"], PATTERNS["gpt2"]}
    assert len(patterns) == 5
    return [BPETokenizer(gpt2.tokens, pattern, gpt2.specials, END_MARK) for pattern in patterns]


def test_pieces_have_the_tokens_of_the_whole(
    split_by_every_pattern: list[BPETokenizer], unigram: UnigramTokenizer
) -> None:
    text = " ".join(TEXTS[:300]) + "\n".join(TEXTS[300:500]) + "  I'll  \n\n x  yz\t\n a\u0301 é 12 b?! \n c"
    for tokenizer in [*split_by_every_pattern, unigram]:
        for size in (50, 101, 1000):
            pieces = list(cut([text], size))
            assert len(pieces) > len(text) // size
            assert "".join(piece.text for piece in pieces) == text
            assert [i for piece in pieces for i in tokenizer.encode(piece.text)] == tokenizer.encode(text)


@settings(max_examples=300, deadline=None)
@given(left=VALID, letter=st.characters(categories=["L"]), space=st.sampled_from(" \n"), right=VALID)
def test_no_token_reaches_across_a_space_after_a_letter(
    split_by_every_pattern: list[BPETokenizer], left: str, letter: str, space: str, right: str
) -> None:
    left, right = left + letter, space + right
    for tokenizer in split_by_every_pattern:
        assert tokenizer.encode(left) + tokenizer.encode(right) == tokenizer.encode(left + right)


def _published(name: str) -> str:
    """The pattern of an encoding without its ranks, which need a network."""
    import tiktoken_ext.openai_public as public

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
        return str(public.ENCODING_CONSTRUCTORS[name]()["pat_str"])


def test_ranks_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"o200k_base .* TIKTOKEN_CACHE_DIR"):
        open_tokenizer("o200k_base")


# Files and other people's tokenizers


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match="'gpt3' is neither a file nor one of gpt2"):
        open_tokenizer("gpt3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("\udcff", "not JSON"),
        ("[1]", "is no tokenizer"),
        ('{"kind": "wordpiece"}', "'wordpiece' is not known"),
        ('{"model": {"type": "WordPiece"}}', "model is WordPiece"),
    ],
)
def test_files_that_hold_no_tokenizer(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path / "t.json")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "t.json").mkdir()
    with pytest.raises(UserError, match=r"t\.json cannot be written \(Is a directory\)"):
        save_tokenizer(ByteTokenizer(), tmp_path / "t.json")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer train"):
        load_tokenizer(tmp_path / "t.json")


Change = Callable[[dict], None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(normalizer={"type": "Lowercase"}), "not plain byte-level"),
        (lambda s: s["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "not plain byte-level"),
        (lambda s: s["pre_tokenizer"]["pretokenizers"].pop(), "pre-tokenizer"),
        (lambda s: s["model"]["merges"].reverse(), "order of its merges"),
        (lambda s: s["model"]["vocab"].update({"▁of": 1000}), "not byte-level"),
        (lambda s: s["model"]["vocab"].pop("Ġ"), "lacks 1 of the 256"),
    ],
)
def test_what_would_not_have_equal_ids_is_refused(bpe: BPETokenizer, change: Change, message: str) -> None:
    state = json.loads(json.dumps(to_huggingface(bpe)))
    change(state)
    with pytest.raises(UserError, match=message):
        from_huggingface(state)


@pytest.mark.parametrize("model", ["BPE", "Unigram"])
def test_a_tokenizer_that_others_trained_with_marks_in_front(model: str) -> None:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(getattr(models, model)())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    make = trainers.BpeTrainer if model == "BPE" else trainers.UnigramTrainer
    marks = ["<pad>", "</s>"]
    trainer = make(vocab_size=400, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    tokenizer = from_huggingface(json.loads(library.to_str()))
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (1, 400)
    assert all(tokenizer.encode(text) == library.encode(text).ids for text in TEXTS[:200])
    assert tokenizer.decode(tokenizer.encode("<pad>a</s>")) == "<pad>a</s>"


# Real titles


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_titles_round_trip(titles: list[str], kind: str) -> None:
    tokenizer = train_tokenizer(kind, titles[:4000], 4096)  # type: ignore[arg-type]
    assert all(tokenizer.decode(tokenizer.encode(title)) == title for title in titles[-4000:])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tokens_per_title"), [("bpe", 12.5), ("unigram", 14.5)])
def test_all_titles_round_trip_at_16k(titles: list[str], kind: str, tokens_per_title: float) -> None:
    tokenizer = train_tokenizer(kind, titles[:90_000], 16_384)  # type: ignore[arg-type]
    encoded = tokenizer.encode_batch(titles)
    assert [tokenizer.decode(ids) for ids in encoded] == titles
    assert sum(map(len, encoded)) / len(titles) < tokens_per_title
    library = library_of(tokenizer)
    assert [library.encode(title).ids for title in titles[::10]] == encoded[::10]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["cl100k", "gpt2"])
def test_both_regular_expression_engines_class_every_code_point_alike(pattern: str) -> None:
    """Merges of "b", "1" and "." with the first byte of a character show which of these it was split from."""
    leads = [first + chr(byte) for first in "b1." for byte in range(0xC2, 0xF5)]
    tokenizer = BPETokenizer([chr(byte) for byte in range(256)] + leads, PATTERNS[pattern], {})  # type: ignore[index]
    library = library_of(tokenizer)
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        text = f"b{chr(code)} 1{chr(code)} .{chr(code)}"
        assert library.encode(text).ids == tokenizer.encode(text), hex(code)
