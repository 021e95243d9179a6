"""What all tokenizers promise: lossless, the same after every way of keeping them; then characters and bytes."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.errors import UserError
from datamodules.tokenizers import (
    EOS_TOKEN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    open_tokenizer,
    save_tokenizer,
    tokenizer_from_dict,
)
from tests.datamodules.tokenizers.cases import HARD, TEXTS, library_of


def test_every_text_comes_back_and_every_id_is_in_range(any_tokenizer: Tokenizer) -> None:
    for text in TEXTS[:200] + HARD:
        ids = any_tokenizer.encode(text)
        assert any_tokenizer.decode(ids) == text
        assert any_tokenizer.decode_bytes(ids) == text.encode()
        assert all(0 <= i < any_tokenizer.vocab_size for i in ids)
        assert any_tokenizer.eos_id not in ids
        assert any_tokenizer.encode_array(text).tolist() == ids
        assert any_tokenizer.encode_array(text).dtype == np.uint32


def test_the_bytes_of_tokens_add_up(any_tokenizer: Tokenizer) -> None:
    for text in HARD:
        assert b"".join(map(any_tokenizer.token_bytes, any_tokenizer.encode(text))) == text.encode()


def test_the_eos_token_is_the_last_id_and_shows_its_name(any_tokenizer: Tokenizer) -> None:
    assert any_tokenizer.eos_id == any_tokenizer.vocab_size - 1
    assert any_tokenizer.decode([any_tokenizer.eos_id]) == any_tokenizer.token_text(any_tokenizer.eos_id) == EOS_TOKEN


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
        assert [copy.encode(text) for text in HARD] == [any_tokenizer.encode(text) for text in HARD]
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
    assert library.token_to_id(EOS_TOKEN) == any_tokenizer.eos_id


# Characters and bytes


def test_characters_are_sorted_whatever_the_order_of_the_text() -> None:
    assert CharTokenizer.from_texts(["bca", "\n"]).fingerprint == CharTokenizer("c\nabba").fingerprint
    assert CharTokenizer.from_texts(["ba\n"]).encode("\nab") == [0, 1, 2]


@pytest.mark.parametrize("character", ["c", "`", "\U0010ffff"])
def test_unknown_characters(character: str) -> None:
    place = re.escape(repr("b" * 12 + character + "a" * 12))
    with pytest.raises(UserError, match=rf"U\+{ord(character):04X}\), as in {place}, is not among the 2 "):
        CharTokenizer("ab").encode("b" * 90 + character + "a" * 90)
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
        EOS_TOKEN,
    ]


def test_an_empty_alphabet_is_refused() -> None:
    with pytest.raises(UserError, match="at least one character"):
        CharTokenizer.from_texts([""])
