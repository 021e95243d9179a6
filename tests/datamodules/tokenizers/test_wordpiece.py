"""WordPiece: the ids of Hugging Face's BertTokenizer, a training that repeats itself, and files that are refused."""

import json
import pickle
from pathlib import Path

import pytest

from datamodules import UserError
from datamodules.embedded import corpus
from datamodules.tokenizers import (
    WordPieceTokenizer,
    from_huggingface,
    load_tokenizer,
    save_tokenizer,
    to_huggingface,
    tokenizer_from_dict,
    train_wordpiece,
)
from tests.conftest import SHARED

VOCAB = SHARED / "data" / "bert_base_uncased_vocab.txt"
HARD = "Café naïve ﬁne Ünïcödé 你好 世界 don't  stop\tNOW\n[MASK] [SEP] \u200b\u00ad 3.14 e.g. \U0001f44d Ελλάδα هذا"


@pytest.fixture(scope="module")
def trained() -> WordPieceTokenizer:
    return train_wordpiece([corpus()[:60_000]], 800)


def theirs(vocab: list[str], folder: Path, uncased: bool = True) -> "object":
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return BertTokenizer.from_pretrained(folder, do_lower_case=uncased)


def ids(tokenizer: object, text: str) -> list[int]:
    """Without the special tokens around it, and with the names of special tokens as text."""
    return tokenizer._tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[attr-defined]


@pytest.mark.parametrize("uncased", [True, False])
def test_ids_are_those_of_transformers(trained: WordPieceTokenizer, tmp_path: Path, uncased: bool) -> None:
    ours = WordPieceTokenizer(trained.vocab, uncased)
    other = theirs(trained.vocab, tmp_path, uncased)
    other._tokenizer.encode_special_tokens = True  # type: ignore[attr-defined]
    text = corpus()[60_000:75_000] + HARD
    assert ours.encode(text) == ids(other, text)
    assert ours.unk_id in ours.encode("你")
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours, f"{name}_id") == getattr(other, f"{name}_token_id")


@pytest.mark.skipif(not VOCAB.is_file(), reason="needs ../shared/data, with the vocabulary of bert-base-uncased")
def test_ids_of_real_text_with_the_real_vocabulary(tmp_path: Path) -> None:
    ours = WordPieceTokenizer.from_file(VOCAB)
    assert ours.vocab_size == 30_522
    assert (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id) == (0, 100, 101, 102, 103)
    other = theirs(ours.vocab, tmp_path)
    for name in ("moby_dick.txt", "hn_titles_100k.txt"):
        text = (SHARED / "data" / name).read_text(encoding="utf-8")[:50_000]
        assert ours.encode(text) == other.encode(text, add_special_tokens=False)  # type: ignore[attr-defined]
    assert ours.decode(ours.encode("The Capital of FRANCE is embeddings")) == "the capital of france is embeddings"


def test_training_repeats_itself_and_spells_its_text(trained: WordPieceTokenizer) -> None:
    again = train_wordpiece([corpus()[:60_000]], 800)
    assert again.vocab == trained.vocab
    assert again.fingerprint == trained.fingerprint
    assert trained.vocab_size == 800
    assert trained.vocab[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    encoded = trained.encode(corpus()[:20_000])
    assert encoded.count(trained.unk_id) < len(encoded) / 100
    assert {"the", "##ing", "function"} <= set(trained.vocab)


def test_a_long_text_is_encoded_in_pieces(trained: WordPieceTokenizer) -> None:
    text = corpus()[: (1 << 18) + 20_000]  # more than a piece
    assert len(text) > 1 << 18
    assert trained.encode(text) == trained._library.encode(text, add_special_tokens=False).ids


def test_it_is_kept_in_files_checkpoints_and_pickles(trained: WordPieceTokenizer, tmp_path: Path) -> None:
    save_tokenizer(trained, tmp_path / "ours.json")
    (tmp_path / "tokenizer.json").write_text(json.dumps(to_huggingface(trained)))
    for copy in (
        tokenizer_from_dict(trained.to_dict()),
        pickle.loads(pickle.dumps(trained)),
        load_tokenizer(tmp_path / "ours.json"),
        load_tokenizer(tmp_path / "tokenizer.json"),
    ):
        assert isinstance(copy, WordPieceTokenizer)
        assert copy.fingerprint == trained.fingerprint
        assert copy.encode(HARD) == trained.encode(HARD)
    assert WordPieceTokenizer(trained.vocab, uncased=False).fingerprint != trained.fingerprint


def test_a_tokenizer_json_of_transformers_is_read(trained: WordPieceTokenizer, tmp_path: Path) -> None:
    theirs(trained.vocab, tmp_path).save_pretrained(tmp_path / "saved")  # type: ignore[attr-defined]
    assert load_tokenizer(tmp_path / "saved" / "tokenizer.json").fingerprint == trained.fingerprint


def test_a_tokenizer_json_with_other_ids_is_refused(trained: WordPieceTokenizer) -> None:
    state = to_huggingface(trained)
    assert from_huggingface({**state, "normalizer": {**state["normalizer"], "strip_accents": True}})
    for part, other in (
        ("normalizer", {**state["normalizer"], "strip_accents": False}),
        ("normalizer", None),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("model", {**state["model"], "max_input_chars_per_word": 50}),
        ("model", {**state["model"], "vocab": {**state["model"]["vocab"], "one more": 5000}}),
    ):
        with pytest.raises(UserError, match="its ids"):
            from_huggingface({**state, part: other})


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"It was the best of times,\nit was the worst of times.\n",
            r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]",
        ),
        ("\n".join([*SPECIAL, "a", "a"]).encode(), "has the token 'a' twice"),
        ("\n".join([*SPECIAL, "", "a"]).encode(), "its line 6 is empty"),
        (b'{"kind": "byte"}', "lacks"),
        (b"\x80\x81", "not UTF-8 at byte 0"),
        (b"", "its line 1 is empty"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_one_sentence(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "some.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        WordPieceTokenizer.from_file(path)
    assert str(caught.value).startswith(f"{path} is no WordPiece vocabulary (")
    assert "give a vocab.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [10, 10**9])
def test_sizes_that_no_vocabulary_can_have(size: int) -> None:
    with pytest.raises(UserError, match=f"vocab_size={size} is none for wordpiece"):
        train_wordpiece(["a text"], size)
