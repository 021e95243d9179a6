"""One tokenizer of each kind, trained once for all tests of a file."""

from collections.abc import Iterator

import pytest

from datamodules.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    UnigramTokenizer,
    train_tokenizer,
)
from tests.datamodules.conftest import SHARED
from tests.datamodules.tokenizers.cases import HARD, TEXTS


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
