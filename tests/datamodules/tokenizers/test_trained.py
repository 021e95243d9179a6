"""BPE and Unigram: lossless, trained to size, sampled as defined, in agreement with the library that trains them."""

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from datamodules.errors import UserError
from datamodules.reading import cut
from datamodules.tokenizers import (
    EOS_TOKEN,
    PATTERNS,
    BPETokenizer,
    Tokenizer,
    UnigramTokenizer,
    train_tokenizer,
)
from datamodules.tokenizers.sampling import SampledTexts
from tests.datamodules.conftest import SHARED
from tests.datamodules.tokenizers.cases import TEXTS, VALID, library_of


@settings(max_examples=100, deadline=None)
@given(text=VALID)
def test_bpe_is_lossless_and_agrees_with_the_library_that_trained_it(bpe: BPETokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text
    assert library_of_bpe(bpe).encode(text).ids == bpe.encode(text)


@settings(max_examples=300, deadline=None)
@given(text=VALID, alpha=st.sampled_from([0.0, 0.2, 1.0]), seed=st.integers(0, 9))
def test_unigram_is_lossless_sampled_or_not(unigram: UnigramTokenizer, text: str, alpha: float, seed: int) -> None:
    assert unigram.decode(unigram.encode(text)) == text
    ids, starts = SampledTexts(unigram, [text, text], alpha).draw(seed)
    assert unigram.decode(ids.tolist()) == f"{EOS_TOKEN}{text}{EOS_TOKEN}{text}{EOS_TOKEN}"
    assert [ids[start] for start in starts] == [unigram.eos_id] * 3


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


@pytest.mark.slow
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
    for text in (" " * 1_100_000 + "a", "a" * 30_000, "中" * 30_000):
        assert bpe.decode(bpe.encode(text)) == text
        assert unigram.decode(unigram.encode(text)) == text


def test_no_warning_after_a_fork() -> None:
    code = (
        "import os, sys\n"
        "from datamodules.tokenizers import train_tokenizer\n"
        "t = train_tokenizer('unigram', ['one two three four'] * 500, 270)\n"
        "if os.fork() == 0:\n"
        "    t.encode('one two' * 100); os._exit(0)\n"
        "os.wait()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""


# Sampling


def test_sampling_is_seeded_and_follows_the_model(unigram: UnigramTokenizer) -> None:
    texts = [TEXTS[0]] * 50
    flat = SampledTexts(unigram, texts, 0.1)
    assert flat.draw(7, 1)[0].tolist() == flat.draw(7, 1)[0].tolist() != flat.draw(7, 2)[0].tolist()
    ids, starts = flat.draw(0)
    assert len({tuple(ids[a + 1 : b].tolist()) for a, b in pairwise(starts)}) > 20
    sharp, starts = SampledTexts(unigram, texts, 1000.0).draw(0)
    assert all(sharp[a + 1 : b].tolist() == unigram.encode(TEXTS[0]) for a, b in pairwise(starts))


def test_texts_without_eos_tokens_follow_one_another(unigram: UnigramTokenizer) -> None:
    bare = UnigramTokenizer(unigram.tokens, unigram.pattern, unigram.specials, None, unigram.scores)
    ids, starts = SampledTexts(bare, TEXTS[:20], 0.2).draw(0)
    assert [bare.decode(ids[a:b].tolist()) for a, b in pairwise(starts)] == TEXTS[:20]
    assert starts[-1] == len(ids)


def test_sampled_frequencies_are_those_of_the_definition() -> None:
    tokens = [chr(i) for i in range(256)] + ["ab", "bc", "abc", ""]
    scores = [-5.0] * 256 + [-3.0, -4.0, -6.0, 0.0]
    tokenizer = UnigramTokenizer(tokens, PATTERNS["cl100k"], {EOS_TOKEN: 259}, EOS_TOKEN, scores)
    ways = {(97, 98, 99): -15.0, (256, 99): -8.0, (97, 257): -9.0, (258,): -6.0}
    alpha, words = 0.3, 60_000
    ids, starts = SampledTexts(tokenizer, ["abc"] * words, alpha).draw(0)
    counts = Counter(tuple(ids[a + 1 : b].tolist()) for a, b in pairwise(starts))
    weights = {way: np.exp(alpha * score) for way, score in ways.items()}
    for way, weight in weights.items():
        assert counts[way] / words == pytest.approx(weight / sum(weights.values()), abs=0.007)


def test_a_common_word_that_nothing_follows_becomes_a_token() -> None:
    rng = random.Random(0)
    names = ["".join(rng.choices("abcdefghijklmnopqrst", k=5)) for _ in range(60)]
    texts = [f"{rng.choice(names)} comes from {rng.choice(names)}" for _ in range(400)]
    tokenizer = train_tokenizer("unigram", texts, 400)
    assert [tokenizer.decode([i]) for i in tokenizer.encode(texts[0])][1:3] == [" comes", " from"]
    assert len(tokenizer.encode(texts[0])) == 4


# Real titles


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_titles_round_trip(titles: list[str], kind: str) -> None:
    tokenizer = train_tokenizer(kind, titles[:1500], 2048)  # type: ignore[arg-type]
    assert all(tokenizer.decode(tokenizer.encode(title)) == title for title in titles[-2000:])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tokens_per_title"), [("bpe", 12.5), ("unigram", 12.7)])
def test_all_titles_round_trip_at_16k(titles: list[str], kind: str, tokens_per_title: float) -> None:
    tokenizer = train_tokenizer(kind, titles[:90_000], 16_384)  # type: ignore[arg-type]
    encoded = [tokenizer.encode(title) for title in titles]
    assert [tokenizer.decode(ids) for ids in encoded] == titles
    assert sum(map(len, encoded)) / len(titles) < tokens_per_title
    library = library_of(tokenizer)
    assert [library.encode(title).ids for title in titles[::10]] == encoded[::10]
