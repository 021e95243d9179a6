"""Masks: their shares, what is never masked, and that they are a function of seed, epoch and row."""

import time
from functools import cache

import numpy as np
import pytest

from datamodules import UserError
from datamodules.masking import EVALUATED, Masker, Masking
from datamodules.tokenizers import WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{i}" for i in range(600)] + [f"##p{i}" for i in range(395)]
TOKENIZER = WordPieceTokenizer(SPECIAL + WORDS)  # 1000 tokens; the last 395 continue a word
T = 128


@cache
def rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] text [SEP] of random lengths, and which positions are real."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 1000, (n, T))
    length = rng.integers(20, T + 1, n)[:, None]
    columns = np.arange(T)
    ids[:, 0] = TOKENIZER.cls_id
    ids = np.where(columns == length - 1, TOKENIZER.sep_id, ids)
    ids[rng.random((n, T)) < 0.02] = TOKENIZER.unk_id
    real = columns < length
    return np.where(real, ids, TOKENIZER.pad_id), real


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("kind", ["exact", "bernoulli"])
def test_shares_over_a_million_tokens(kind: str, whole_words: bool) -> None:
    # 330,000 places are chosen, whose shares have a standard error of 0.07 points; of whole words there are fewer.
    ids, real = (array[: 15_000 if whole_words else None] for array in rows(30_000))
    within = 0.004 if whole_words else 0.002
    start = time.process_time()
    masker = Masker(Masking(kind, whole_words=whole_words, seed=1), TOKENIZER)  # type: ignore[arg-type]
    inputs, targets = masker.masked(ids, real, 0, np.arange(len(ids)))
    print(f"{kind}, whole words {whole_words}: {real.sum() / (time.process_time() - start):,.0f} tokens/s")
    chosen = targets != -100
    special = np.isin(ids, range(5))
    counted = real if kind == "exact" else real & ~special  # the exact number counts special tokens
    assert counted.sum() > 1_000_000
    assert not (chosen & (special | ~real)).any()
    assert (targets[chosen] == ids[chosen]).all()
    assert (inputs[~chosen] == ids[~chosen]).all()
    slack = 0.005 if whole_words and kind == "exact" else 0.002  # words that do not fit are passed over
    assert chosen.sum() / counted.sum() == pytest.approx(0.15, abs=slack)
    shown, original = inputs[chosen], ids[chosen]
    assert np.mean(shown == TOKENIZER.mask_id) == pytest.approx(0.8, abs=within)
    assert np.mean(shown == original) == pytest.approx(0.1, abs=within)
    replaced = shown[(shown != TOKENIZER.mask_id) & (shown != original)]
    assert len(replaced) / chosen.sum() == pytest.approx(0.1, abs=within)
    # Any token of the vocabulary may replace one, each as often.
    assert len(np.unique(replaced)) == 999  # all but [MASK], which counts as masked
    assert np.bincount(replaced, minlength=1000).max() < 2 * len(replaced) / 1000


def test_the_exact_number_is_that_of_bert() -> None:
    ids, real = rows(400, seed=1)
    for most in (None, 7):
        _, targets = Masker(Masking("exact", most=most), TOKENIZER).masked(ids, real, 0, np.arange(400))
        for row in range(400):  # google-research/bert, create_pretraining_data.py
            expected = min(most or 10**9, max(1, round(int(real[row].sum()) * 0.15)))
            assert (targets[row] != -100).sum() == expected
    short = np.array([[TOKENIZER.cls_id, 9, TOKENIZER.sep_id]])
    _, targets = Masker(Masking(), TOKENIZER).masked(short, short >= 0, 0, np.array([0]))
    assert targets.tolist() == [[-100, 9, -100]]  # at least one


@pytest.mark.parametrize("kind", ["exact", "bernoulli"])
def test_whole_words_are_masked_whole(kind: str) -> None:
    ids, real = rows(300, seed=2)
    masking = Masking(kind, whole_words=True)  # type: ignore[arg-type]
    chosen = Masker(masking, TOKENIZER).masked(ids, real, 0, np.arange(300))[1] != -100
    inner = TOKENIZER.continues[ids] & real & ~np.isin(np.roll(ids, 1, 1), range(5))
    assert (chosen[inner] == np.roll(chosen, 1, 1)[inner]).all()
    assert (chosen & inner).any()
    if kind == "exact":
        count, expected = chosen.sum(1), np.maximum(1, np.rint(0.15 * real.sum(1)))
        assert (count <= expected).all()
        assert np.mean(count == expected) > 0.9  # words of one piece fill up most rows


def test_a_mask_is_a_function_of_seed_epoch_and_row() -> None:
    ids, real = rows(64)
    masker, numbers = Masker(Masking(seed=5), TOKENIZER), np.arange(64)
    inputs, targets = masker.masked(ids, real, 3, numbers)
    some = np.array([40, 7, 63])  # in another batch
    for whole, part in zip((inputs, targets), masker.masked(ids[some], real[some], 3, some), strict=True):
        assert (whole[some] == part).all()
    chosen = targets != -100
    for other in (
        masker.masked(ids, real, 4, numbers),
        masker.masked(ids, real, 3, numbers + 64),
        Masker(Masking(seed=6), TOKENIZER).masked(ids, real, 3, numbers),
    ):  # independent: about 15 % of the places of one are places of the other
        assert np.mean((other[1] != -100)[chosen]) == pytest.approx(0.16, abs=0.05)


def test_evaluation_masks_15_percent_whatever_training_masks() -> None:
    training = Masking("exact", 0.4, 100, True, seed=9)
    assert Masking() == Masking("exact", EVALUATED, None, False)
    assert EVALUATED == 0.15
    ids, real = rows(500)
    masked = Masker(training, TOKENIZER).masked(ids, real, 0, np.arange(500))[1] != -100
    assert masked.sum() / real.sum() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 15}, "mlm_probability 15 is no share"),
        ({"probability": 0.0}, "mlm_probability 0.0 is no share"),
        ({"most": 0}, "max_predictions is 0: give at least 1"),
        ({"kind": "bernoulli", "most": 20}, "max_predictions 20 limits exact masks"),
    ],
)
def test_options_that_make_no_mask(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Masking(**options)  # type: ignore[arg-type]
