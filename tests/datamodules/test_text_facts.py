"""What is said of a text: its sizes, and the losses of models that know next to nothing, beside slow and plain sums."""

import math
import random
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from datamodules import BPEDataModule, CharDataModule, HeadlinesDataModule, TextDataModule, text_facts
from datamodules.corpus_stats import overlap
from datamodules.integrity import is_whole
from datamodules.text_facts import Baselines, baselines

WORDS = ["the", "model", "reads", "a", "token", "and", "writes", "another", "one", "before", "it", "stops", "sevenfold"]


def lines(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, range(1, 14), k=draw.randint(1, 12))) for _ in range(count)]


def module(kind: str, folder: Path) -> TextDataModule:
    path = folder / "text.txt"
    path.write_text("\n".join(lines(300, 0)))
    options = {"block_size": 8, "cache_dir": str(folder / "cache")}
    data: TextDataModule
    if kind == "characters":
        data = CharDataModule(str(path), **options)
    elif kind == "bytes in documents":
        data = BPEDataModule(str(path), documents="line", tokenizer="byte", **options)
    else:
        data = HeadlinesDataModule(str(path), tokenizer="bpe", vocab_size=300, **options)
    data.setup()
    return data


def scored(data: TextDataModule) -> list[tuple[int, int]]:
    """Every target that an evaluation scores, with the token before it, read from the evaluation's own batches."""
    pairs = []
    for batch in data.val_dataloader()[0]:
        is_scored = batch["targets"] != -100
        pairs += list(zip(batch["input_ids"][is_scored].tolist(), batch["targets"][is_scored].tolist(), strict=True))
    return pairs


def slowly(train: list[int], pairs: list[tuple[int, int]], V: int) -> Baselines:
    """The definitions of `Baselines`, with dictionaries."""
    count, after = Counter(train), defaultdict(Counter)
    for a, b in pairwise(train):
        after[a][b] += 1

    def p(b: int) -> float:
        return (count[b] + 1) / (len(train) + V)

    def p_after(a: int, b: int) -> float:
        if not after[a]:
            return p(b)
        kinds = len(after[a])
        return (after[a][b] + kinds * p(b)) / (after[a].total() + kinds)

    for a in (pairs[0][0], pairs[-1][0]):
        assert sum(p_after(a, b) for b in range(V)) == pytest.approx(1)  # it is a distribution
    unigram = -np.mean([math.log(p(b)) for _, b in pairs])
    bigram = -np.mean([math.log(p_after(a, b)) for a, b in pairs])
    return Baselines(math.log(V), float(unigram), float(bigram))


@pytest.mark.parametrize("kind", ["characters", "bytes in documents", "packed headlines"])
@pytest.mark.parametrize("memory", ["much", "little"])
def test_baselines_equal_plain_sums_over_the_targets_that_are_scored(
    kind: str, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if memory == "little":  # many chunks, many parts of the vocabulary, pairs merged many times
        monkeypatch.setattr(text_facts, "_CHUNK", 37)
        monkeypatch.setattr(text_facts, "_PAIRS", 50)
    data = module(kind, tmp_path)
    want = slowly(data.stores["train"].tokens.tolist(), scored(data), data.vocab_size)
    got = data.text_facts.baselines
    assert (got.uniform, got.unigram, got.bigram) == pytest.approx((want.uniform, want.unigram, want.bigram), rel=1e-9)
    assert got.uniform > got.unigram > got.bigram  # type: ignore[operator]


def test_sizes_and_shares_are_those_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(["a" * 60, "né", "b" * 70, "né", "c" * 50]))
    data = HeadlinesDataModule(str(path), tokenizer="byte", block_size=8, val_documents=2)
    data.setup()
    facts = data.text_facts
    assert (facts.total("documents"), facts.total("chars"), facts.total("bytes")) == (5, 184, 186)
    assert (facts.vocab_size, facts.train_tokens) == (257, 60 + 3 + 70 + 4)
    assert facts.bytes_per_token == 1
    assert (facts.shared_documents, facts.shared_text) == (0.5, 0.0)
    assert overlap(data.stores["train"], data.stores["val"], data.tokenizer).documents == 0.5


def test_long_and_undivided_texts_have_no_losses_but_the_uniform_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undivided = CharDataModule(str(module("characters", tmp_path).source), val_fraction=0.0, block_size=8)
    undivided.setup()
    monkeypatch.setattr(text_facts, "MAX_TOKENS", 100)
    (tmp_path / "long").mkdir()
    for data in (undivided, module("characters", tmp_path / "long")):
        facts = data.text_facts
        assert facts.baselines == Baselines(math.log(data.vocab_size))
        assert facts.shared_text is None


def test_a_token_that_begins_no_pair_of_the_training_split_has_the_unigram(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abababab")
    (tmp_path / "b.txt").write_text("cbcac")
    data = CharDataModule(str(tmp_path / "a.txt"), val_source=str(tmp_path / "b.txt"), block_size=2)
    data.setup()
    want = slowly([0, 1] * 4, [(2, 1), (1, 2), (2, 0), (0, 2)], 3)
    got = baselines(data.stores["train"], data.stores["val"], 3)
    assert (got.unigram, got.bigram) == pytest.approx((want.unigram, want.bigram))


def test_the_facts_are_kept_with_the_tokens_and_read_in_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = module("characters", tmp_path).text_facts

    def never(*_: object) -> None:
        raise AssertionError("the text was read again")

    monkeypatch.setattr(text_facts, "baselines", never)
    monkeypatch.setattr(text_facts, "overlap", never)
    again = module("characters", tmp_path)
    assert again.text_facts == first
    assert is_whole(again.stores["train"].folder, verify=True)
