"""BPEDataModule: any tokenizer, contiguous splits, EOS tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules import BPEDataModule
from datamodules.errors import UserError
from datamodules.prepare import Recipe
from datamodules.sources import open_source
from datamodules.tokenizers import ByteTokenizer, save_tokenizer, train_tokenizer
from datamodules.tokens import TokenStore

SHARED = Path(__file__).parents[3] / "shared"
WORDS = "the cat sat on the mat and the dog sat on the log; " * 40


@pytest.fixture
def sentence(tmp_path: Path) -> str:
    path = tmp_path / "sentence.txt"
    path.write_text("I love machine learning.")
    return str(path)


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text(WORDS + "ZEBRA " * 40)
    return str(path)


def ids_of(data: BPEDataModule, split: str) -> list[int]:
    return TokenStore(data._folder, split).tokens.tolist()


@pytest.mark.usefixtures("gpt2_ranks")
def test_one_sentence_gives_the_three_windows_of_the_notebook(sentence: str) -> None:
    data = BPEDataModule(sentence, val_fraction=0.0, tokenizer="gpt2", block_size=4, stride=1, tokens_per_step=12)
    data.setup()
    stream = [50256, 40, 1842, 4572, 4673, 13, 50256]
    assert ids_of(data, "train") == stream
    batch = next(iter(data.train_dataloader()))
    order = batch["input_ids"][:, 0].argsort(descending=True)  # 50256, 1842, 40: shuffled, but all three are there
    assert batch["input_ids"][order].tolist() == [stream[0:4], stream[2:6], stream[1:5]]
    assert batch["targets"][order].tolist() == [stream[1:5], stream[3:7], stream[2:6]]
    assert batch["attention_mask"].tolist() == [[True] * 4] * 3


@pytest.mark.usefixtures("gpt2_ranks")
def test_long_text_in_pieces_and_on_two_workers_gives_the_tokens_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    novel = SHARED / "data" / "moby_dick.txt"
    if not novel.exists():
        pytest.skip("../shared/data/moby_dick.txt is absent")
    text = open_source(str(novel))
    whole = "".join(piece.text for piece in text.pieces())
    monkeypatch.setattr("datamodules.encoding._CHARS_PER_WORKER", 100_000)
    data = BPEDataModule(str(novel), val_fraction=0.0, tokenizer="gpt2", block_size=64)
    data.setup()
    assert ids_of(data, "train") == [50256, *data.tokenizer.encode(whole), 50256]


def test_a_tokenizer_is_trained_once_on_the_training_split_only(words: str, own_cache: Path) -> None:
    def module() -> BPEDataModule:
        data = BPEDataModule(words, tokenizer="bpe", vocab_size=300, block_size=8, val_fraction=0.2)
        data.prepare_data()
        data.setup()
        return data

    data = module()
    assert data.vocab_size <= 300
    tokens = [data.tokenizer.token_text(i) for i in range(data.vocab_size)]
    assert " the" in tokens
    assert not any("ZEB" in token for token in tokens)
    stores = own_cache / "lit_gpt"
    written = {path: path.stat().st_mtime_ns for path in stores.rglob("tokenizer.json")}
    assert len(written) == 1
    assert module().fingerprints == data.fingerprints
    assert {path: path.stat().st_mtime_ns for path in stores.rglob("tokenizer.json")} == written

    leaky = BPEDataModule(words, tokenizer="bpe", vocab_size=300, block_size=8, train_tokenizer_on="all")
    leaky.setup()
    assert any("ZEBRA" in leaky.tokenizer.token_text(i) for i in range(leaky.vocab_size))


@pytest.mark.parametrize("tokenizer", ["byte", "char", "unigram"])
def test_every_kind_of_tokenizer_stores_text_that_reads_back(words: str, tokenizer: str) -> None:
    data = BPEDataModule(words, tokenizer=tokenizer, vocab_size=270 if tokenizer == "unigram" else None, block_size=8)
    data.setup()
    text = ""
    for split in ("train", "val"):
        ids = ids_of(data, split)
        assert ids[0] == ids[-1] == data.tokenizer.eos_id
        text += data.tokenizer.decode(ids[1:-1])
    assert text == Path(words).read_text()


def test_scored_text_counts_a_newline_for_each_eos_token(words: str) -> None:
    data = BPEDataModule(words, tokenizer="bpe", vocab_size=300, block_size=8, train_eval_rows=10_000)
    data.setup()
    for split in ("val", "train_eval"):
        store = TokenStore(data._folder, "val" if split == "val" else "train")
        text = data.tokenizer.decode(store.tokens[1:-1].tolist())
        counted = data.scored_text(split)
        assert (counted.tokens, counted.eos_tokens) == (len(store) - 1, 1)
        assert (counted.chars, counted.bytes) == (len(text) + 1, len(text.encode()) + 1)


def test_a_tokenizer_file_is_used_and_another_than_the_checkpoints_refused(words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save_tokenizer(train_tokenizer("bpe", [WORDS], 280), path)
    data = BPEDataModule(words, tokenizer=str(path), block_size=8)
    data.use_tokenizer(ByteTokenizer(eos=True))
    with pytest.raises(UserError, match=r"names one of 2\d\d tokens, but the checkpoint has its own, of 257"):
        data.setup()
    data = BPEDataModule(words, tokenizer=str(path), block_size=8)
    data.setup()
    assert data.tokenizer.encode(" the cat") == train_tokenizer("bpe", [WORDS], 280).encode(" the cat")


def test_a_checkpoints_tokenizer_stands_in_for_a_file_that_is_gone(words: str) -> None:
    data = BPEDataModule(words, tokenizer="gone.json", block_size=8)
    data.use_tokenizer(ByteTokenizer(eos=True))
    data.setup()
    assert data.vocab_size == 257


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "gpt3"}, "'gpt3' is neither a file nor one of"),
        ({"tokenizer": "byte", "vocab_size": 300}, "byte has 257 tokens, not vocab_size 300"),
        ({"tokenizer": "bpe", "vocab_size": 20}, "vocab_size=20 is too small"),
        ({"tokenizer": "byte", "prefix_space": True}, "prefix_space is for a bpe or unigram that is trained here, not"),
        (
            {"tokenizer": "byte", "pattern": "gpt2"},
            "pattern is for a bpe or unigram that is trained here, not for byte",
        ),
        ({"tokenizer": "gpt2", "train_tokenizer_on": "all"}, "train_tokenizer_on is for a bpe or unigram"),
        (
            {"tokenizer": "char", "vocab_size": 300},
            "vocab_size is for a bpe or unigram that is trained here, not for char",
        ),
        ({"documents": "column"}, "give a column"),
        ({"rows": "padded", "stride": 4}, "stride 4 is the distance of windows, and rows are padded: leave it out"),
    ],
)
def test_wrong_options_are_one_sentence(words: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        BPEDataModule(words, block_size=8, **options).setup()


def test_the_key_of_a_trained_tokenizer_follows_its_options(words: str) -> None:
    def key(**options: object) -> str:
        recipe: Recipe = BPEDataModule(words, **options).recipe()  # type: ignore[arg-type]
        return recipe.key

    options = [
        {},
        {"vocab_size": 300},
        {"tokenizer": "unigram"},
        {"pattern": "none"},
        {"prefix_space": True},
        {"train_tokenizer_on": "all"},
    ]
    assert len({key(**option) for option in options}) == len(options)


def test_a_fit_under_a_plain_trainer(words: str, recorder: Callable, make_trainer: Callable) -> None:
    data = BPEDataModule(words, tokenizer="byte", rows="padded", tokens_per_step=32)
    module = recorder(block_size=8)
    make_trainer(max_steps=3).fit(module, datamodule=data)
    assert len(module.seen["train"]) == 3
    assert module.seen["train"][0]["document"].dtype == torch.int64
