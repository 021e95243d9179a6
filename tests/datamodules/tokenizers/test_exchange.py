"""Published encodings, files, and Hugging Face's tokenizer.json: equal ids on both sides or a refusal."""

import json
import math
import pickle
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from datamodules.errors import UserError
from datamodules.reading import cut
from datamodules.tokenizers import (
    EOS_TOKEN,
    PATTERNS,
    BPETokenizer,
    ByteTokenizer,
    UnigramTokenizer,
    from_huggingface,
    load_tokenizer,
    open_tokenizer,
    save_tokenizer,
    to_huggingface,
    tokenizer_from_dict,
    train_tokenizer,
)
from datamodules.tokenizers.bpe import ENCODINGS
from tests.datamodules.tokenizers.cases import HARD, TEXTS, VALID, library_of

# tiktoken's encodings


def test_gpt2_ids(gpt2: BPETokenizer) -> None:
    assert gpt2.encode("I love machine learning.") == [40, 1842, 4572, 4673, 13]
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)
    for text in (EOS_TOKEN, f"é{EOS_TOKEN}{EOS_TOKEN} x {EOS_TOKEN}"):
        assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


def test_gpt2_encodes_a_novel_as_tiktoken_does(gpt2: BPETokenizer) -> None:
    text = "\n".join(TEXTS * 8)
    assert len(text) > 1 << 20  # longer than what is matched in one go
    assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


def test_gpt2_reloads_fast_and_without_a_network(gpt2: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nowhere")
    state = pickle.loads(pickle.dumps(gpt2.to_dict()))
    seconds = []
    for _ in range(5):
        start = time.process_time()  # a busy machine does not count
        ids = tokenizer_from_dict(state).encode("I love machine learning.")
        seconds.append(time.process_time() - start)
    assert ids == [40, 1842, 4572, 4673, 13]
    assert min(seconds) < 0.1


@pytest.mark.slow
def test_gpt2_goes_to_hugging_face_and_back(gpt2: BPETokenizer) -> None:
    state = json.loads(json.dumps(to_huggingface(gpt2)))
    library = Library.from_str(json.dumps(state))
    assert library.token_to_id("Ġthe") == 262
    assert all(library.encode(text).ids == gpt2.encode(text) for text in TEXTS[:200])
    assert from_huggingface(state).fingerprint == gpt2.fingerprint


@pytest.fixture(scope="module")
def split_by_every_pattern(gpt2: BPETokenizer) -> list[BPETokenizer]:
    """gpt2's ranks with all patterns, published and ours: ranks do not matter to where text splits."""
    patterns = {*map(_published, ENCODINGS), PATTERNS["cl100k"], PATTERNS["gpt2"]}
    assert len(patterns) == 5
    return [BPETokenizer(gpt2.tokens, pattern, gpt2.specials, EOS_TOKEN) for pattern in patterns]


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


def test_our_pattern_of_gpt2_splits_as_the_published_one_does(gpt2: BPETokenizer) -> None:
    published = BPETokenizer(gpt2.tokens, _published("gpt2"), gpt2.specials, EOS_TOKEN)
    alphabet = "ab Z019²éñ日\u0640\n\n\r\t  \u00a0\u2028'sllS.,-_/!🙂\u0301\x1c"
    rng = random.Random(0)
    drawn = ("".join(rng.choices(alphabet, k=rng.randint(1, 30))) for _ in range(5000))
    for text in (*HARD, *TEXTS[:300], *drawn):
        assert gpt2.encode(text) == published.encode(text)


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
        ('{"kind": "wordlevel"}', "'wordlevel' is not known"),
        ('{"kind": "wordpiece"}', "wordpiece tokenizer is damaged"),
        ('{"kind": "wordpiece", "vocab": ["a", 1]}', "not a list of tokens"),
        ('{"model": {"type": "WordLevel"}}', "model is WordLevel"),
        ('{"model": {"type": "WordPiece"}}', "is damaged"),
        ("[" * 100_000, "not JSON"),
        ('{"kind": "byte", "eos": ' + "1" * 5000 + "}", "not JSON"),
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
        (lambda s: s.update(post_processor={"type": "New"}), r"installed tokenizers \d.* cannot read it .*; upgrade"),
        (lambda s: s.update(truncation=3), "cannot read it"),
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


BOTH = ("bpe", "unigram")


@pytest.mark.parametrize(
    "state",
    [
        *({"kind": "char"}, {"kind": "byte", "more": 1}, {"model": {"type": "BPE"}}, {"model": 3}),
        *({"kind": ["char"]}, {"kind": "char", "chars": 5}, {"kind": "char", "chars": "ab", "eos": "no"}),
        *({"kind": "char", "chars": "ab", "unknown": 3}, {"kind": "byte", "eos": 10**9}),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(state: dict, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"broken\.json"):
        open_tokenizer(str(tmp_path / "broken.json"))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("bpe", {"pattern": "(("}, r"is damaged \(.*parenthesis"),
        ("unigram", {"pattern": "(("}, "cannot read it .*parenthesis"),
        ("unigram", {"scores": [0.0]}, "has 270 tokens and 1 scores"),
        ("unigram", {"scores": [math.nan] * 270}, "scores that are no finite numbers"),
        ("unigram", {"scores": ["high"] * 270}, "scores that are no finite numbers"),
        *((kind, {"specials": {EOS_TOKEN: 10**9}}, "has the id 1000000000, and ids must be 0 to 269") for kind in BOTH),
        *((kind, {"specials": {EOS_TOKEN: -1}}, r"has the id -1, and ids must be 0 to 269") for kind in BOTH),
        *((kind, {"specials": {EOS_TOKEN: "269"}}, r"has the id '269', and ids") for kind in BOTH),
        *((kind, {"specials": {EOS_TOKEN: 97}}, r"has the id 97, which is a token's") for kind in BOTH),
        *((kind, {"specials": {}}, r"EOS token .* is none of the 0 special tokens") for kind in BOTH),
        *((kind, {"specials": [EOS_TOKEN]}, "special tokens are of another type") for kind in BOTH),
        *((kind, {"tokens": "".join(map(chr, range(256)))}, "is not a list of texts") for kind in BOTH),
        *((kind, {"tokens": [3] * 270}, "is not a list of texts") for kind in BOTH),
        *((kind, {"tokens": [*map(chr, range(256)), "\u4f60"]}, "which is no byte") for kind in BOTH),
        *((kind, {"prefix_space": "yes"}, "prefix_space .* of another type") for kind in BOTH),
    ],
)
def test_a_tokenizer_that_could_not_encode_is_refused_when_it_is_opened(
    kind: str, change: dict, message: str, tmp_path: Path
) -> None:
    state = train_tokenizer(kind, TEXTS[:50], 270).to_dict()  # type: ignore[arg-type]
    (tmp_path / "t.json").write_text(json.dumps(state | change))
    with pytest.raises(UserError, match=rf"t\.json.*{message}"):
        open_tokenizer(str(tmp_path / "t.json"))


@pytest.mark.parametrize("token_id", [10**9, 2**70, -1, "5", 1.5, None])
@pytest.mark.parametrize("place", ["vocab", "added"])
def test_a_tokenizer_json_with_a_forged_id_is_refused_before_it_takes_memory(
    token_id: object, place: str, tmp_path: Path
) -> None:
    state = to_huggingface(train_tokenizer("bpe", TEXTS[:50], 270))
    if place == "vocab":
        state["model"]["vocab"]["th"] = token_id
    else:
        state["added_tokens"][0]["id"] = token_id
    (tmp_path / "t.json").write_text(json.dumps(state))
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"t\.json: the token .* has the id {token_id!r}, and ids must be 0 to"):
        open_tokenizer(str(tmp_path / "t.json"))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("specials", [{EOS_TOKEN: 10**9}, {EOS_TOKEN: -1}, 3])
def test_a_forged_tokenizer_of_a_checkpoint_is_one_sentence(specials: object) -> None:
    state = train_tokenizer("bpe", TEXTS[:50], 270).to_dict()
    with pytest.raises(UserError, match=r"special tokens|ids must be 0 to 269"):
        tokenizer_from_dict(state | {"specials": specials})
    with pytest.raises(UserError, match="the bpe tokenizer is damaged"):
        tokenizer_from_dict({"kind": "bpe"})


def test_a_tokenizer_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tokenizer(ByteTokenizer(eos=True), tmp_path / "mine.json")
    assert open_tokenizer("~/mine.json").vocab_size == 257
    for read in (open_tokenizer, load_tokenizer):
        with pytest.raises(UserError, match="nobody's home folder on this machine"):
            read("~nobody_of_that_name/mine.json")
