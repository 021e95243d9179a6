"""A space before each text: nothing is lost, and a word is the same token at the beginning as elsewhere."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings

from datamodules import BPEDataModule, HeadlinesDataModule
from datamodules.base import RowKind
from datamodules.errors import UserError
from datamodules.scoring import scored_split
from datamodules.sources import open_source
from datamodules.tokenizers import (
    Tokenizer,
    UnigramTokenizer,
    from_huggingface,
    load_tokenizer,
    save_tokenizer,
    to_huggingface,
    train_tokenizer,
)
from datamodules.tokenizers.sampling import SampledTexts
from datamodules.tokens import TokenStore
from tests.datamodules.tokenizers.cases import HARD, TEXTS, VALID, library_of


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return train_tokenizer("unigram", TEXTS, 1000, prefix_space=True)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def spaced(request: pytest.FixtureRequest, unigram: Tokenizer) -> Tokenizer:
    return unigram if request.param == "unigram" else train_tokenizer("bpe", TEXTS, 1000, prefix_space=True)


@settings(max_examples=80, deadline=None)
@given(text=VALID)
def test_every_text_comes_back_here_and_in_hugging_faces_library(spaced: Tokenizer, text: str) -> None:
    library = library_of(spaced)
    for one in (text, f" {text}"):
        ids = spaced.encode(one)
        assert spaced.decode(ids) == one
        assert library.encode(one).ids == ids
        assert library.decode(ids) == one


def test_hard_texts_come_back(spaced: Tokenizer) -> None:
    assert [spaced.decode(spaced.encode(text)) for text in HARD] == HARD


def test_the_first_word_is_the_token_that_it_is_elsewhere(spaced: Tokenizer) -> None:
    word = TEXTS[0].split()[0]
    assert spaced.encode(f"{word} {word}") == 2 * spaced.encode(word)
    assert spaced.decode_bytes(spaced.encode_array(word, start=False).tolist()) == word.encode()


def test_it_is_kept_in_files_of_both_kinds(spaced: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(spaced, tmp_path / "spaced.json")
    assert load_tokenizer(tmp_path / "spaced.json").encode("a b") == spaced.encode("a b")
    assert from_huggingface(to_huggingface(spaced)).fingerprint == spaced.fingerprint


def test_segmentations_drawn_anew_begin_with_it_too(unigram: UnigramTokenizer) -> None:
    ids, starts = SampledTexts(unigram, TEXTS[:20], 1000.0).draw(0)
    assert [ids[a + 1 : b].tolist() for a, b in pairwise(starts)] == [unigram.encode(text) for text in TEXTS[:20]]


def test_a_document_read_in_pieces_has_one(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("the cat sat on the mat and\nthe dog sat on the log; " * 25_000)
    pieces = list(open_source(str(path)).pieces())
    data = BPEDataModule(str(path), val_fraction=0.0, vocab_size=300, prefix_space=True, block_size=64)
    data.setup()
    eos, whole = data.tokenizer.eos_id, "".join(piece.text for piece in pieces)
    assert len(pieces) > 1
    assert TokenStore(data._folder, "train").tokens.tolist() == [eos, *data.tokenizer.encode(whole), eos]


@pytest.mark.parametrize("rows", ["windows", "padded", "packed"])
@pytest.mark.parametrize("prefix_space", [False, True])
def test_it_is_no_text_where_the_training_split_is_scored(tmp_path: Path, rows: RowKind, prefix_space: bool) -> None:
    path = tmp_path / "titles.txt"
    path.write_text("\n".join(f"{text} \u00e9" for text in TEXTS if "\n" not in text))
    data = HeadlinesDataModule(
        str(path),
        tokenizer="bpe",
        vocab_size=400,
        prefix_space=prefix_space,
        rows=rows,
        block_size=16,
        train_eval_rows=10**6,
    )
    data.setup()
    assert data.scored_text("train_eval") == scored_split(data.stores["train"], data.tokenizer)


def test_a_tokenizer_without_words_refuses_it() -> None:
    with pytest.raises(UserError, match="prefix_space means nothing to a char tokenizer"):
        train_tokenizer("char", TEXTS, prefix_space=True)
