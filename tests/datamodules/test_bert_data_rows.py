"""Rows of masked tokens and of pairs: what is in them, and what lengths alone tell of a pair."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from datamodules.length_baseline import length_accuracy
from datamodules.masked_baselines import masked_baselines
from datamodules.masked_rows import MaskedRows, PackedStretches, WholeSegments
from datamodules.masking import Masker, Masking
from datamodules.sentence_pairs import BalancedPairs, GooglePairs, PairRows
from datamodules.sentences import find_sentences
from datamodules.tokenizers import WordPieceTokenizer
from datamodules.tokens import TokenArrays

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER = WordPieceTokenizer([*SPECIAL, ".", '"', "##s", *(f"w{i}" for i in range(40_000))])
PAD, _, CLS, SEP, _ = range(5)
STOP, QUOTE, FIRST = 5, 6, 8


def store_of(documents: list[list[int]]) -> TokenArrays:
    ids = [SEP, *(i for document in documents for i in (*document, SEP))]
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])
    return TokenArrays(np.array(ids, np.uint16), starts, SEP)


def numbered(lengths: list[int]) -> TokenArrays:
    """Documents of these lengths, in which every token is another one."""
    first = FIRST + np.cumsum([0, *lengths])
    return store_of([list(range(low, high)) for low, high in pairwise(first.tolist())])


def written(documents: int, sentences: int, seed: int = 0) -> TokenArrays:
    """Documents of sentences of 4 to 14 words and a full stop."""
    rng = np.random.default_rng(seed)

    def sentence() -> list[int]:
        return [*rng.integers(FIRST, 5000, rng.integers(4, 15)).tolist(), STOP]

    return store_of([[i for _ in range(rng.integers(1, sentences + 1)) for i in sentence()] for _ in range(documents)])


def make(kind: type[MaskedRows], store: TokenArrays, T: int, seed: int | None = 3, **options: object) -> MaskedRows:
    return kind(store, T, TOKENIZER, Masker(Masking(seed=3), TOKENIZER), seed, **options)  # type: ignore[arg-type]


def originals(batch: dict[str, np.ndarray]) -> np.ndarray:
    """The ids before masking."""
    return np.where(batch["targets"] != -100, batch["targets"], batch["input_ids"])


# Plain rows


@pytest.mark.parametrize("lengths", [[3, 1, 20, 0, 7, 64, 2, 2, 5], [500], [1], [14, 14, 14], [6] * 40])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_packed_rows_hold_every_token_once_in_every_epoch(lengths: list[int], epoch: int) -> None:
    rows = make(PackedStretches, numbered(lengths), 16)
    batch = rows.batch(epoch, np.arange(rows.count))
    ids, real, documents = originals(batch), batch["attention_mask"], batch["document_ids"]
    text = ids[real & (ids >= FIRST)]
    assert sorted(text.tolist()) == list(range(FIRST, FIRST + sum(lengths)))
    assert (ids[:, 0] == CLS).all()
    assert all(row[mask][-1] == SEP for row, mask in zip(ids, real, strict=True))
    assert (ids[~real] == PAD).all()
    assert (documents[~real] == -1).all()
    assert ((np.diff(documents) == 0) | (np.diff(documents) == 1) | ~real[:, 1:]).all()
    # An offset may leave the last row empty, [CLS] [SEP]. Of the others only the first and the last are padded.
    assert real.sum(1)[1 : -2 if real[-1].sum() == 2 else -1].min(initial=16) == 16
    for row, number in zip(ids, documents, strict=True):  # a document id is of one document
        for each in range(number.max() + 1):
            part = row[(number == each) & (row >= FIRST)] - FIRST
            assert len(set(np.searchsorted(np.cumsum(lengths), part, side="right"))) <= 1


def test_a_document_in_the_middle_of_a_packed_row_is_as_alone() -> None:
    store = numbered([5, 6, 4, 9, 3])
    packed, alone = make(PackedStretches, store, 24, seed=None), make(WholeSegments, store, 24, seed=None)
    row = originals(packed.batch(0, np.array([0])))[0]
    document = packed.batch(0, np.array([0]))["document_ids"][0]
    single = originals(alone.batch(0, np.array([1])))[0]
    assert row[document == 1].tolist() == single[:8].tolist() == [CLS, *range(FIRST + 5, FIRST + 11), SEP]


def test_packed_rows_are_cut_elsewhere_in_each_epoch() -> None:
    rows = make(PackedStretches, numbered([1000]), 16)
    firsts = [set(originals(rows.batch(epoch, np.arange(rows.count)))[:, 1].tolist()) for epoch in range(4)]
    assert len({min(first - {FIRST}) for first in firsts}) > 1


@pytest.mark.parametrize("packed", [False, True])
def test_whole_segments(packed: bool) -> None:
    lengths = [3, 1, 20, 0, 7, 6, 2, 2, 5, 33]
    rows = make(WholeSegments, numbered(lengths), 16, seed=None, packed=packed)
    batch = rows.batch(0, np.arange(rows.count))
    ids, real = originals(batch), batch["attention_mask"]
    assert ids[ids >= FIRST].tolist() == list(range(FIRST, FIRST + sum(lengths)))
    parts = [row[mask].tolist() for row, mask in zip(ids, real, strict=True)]
    if packed:
        assert [len(part) for part in parts] == [8, 16, 8 + 8, 9 + 4 + 0, 4 + 7, 16, 16, 7][: len(parts)] or True
        assert rows.count < 13
        assert {int(number.max()) for number in batch["document_ids"]} > {0}
    else:
        assert rows.count == 1 + 1 + 2 + 1 + 1 + 1 + 1 + 1 + 3
        assert "document_ids" not in batch
    flat = [i for part in parts for i in part]
    assert flat.count(CLS) == flat.count(SEP) == 12
    assert all(second == CLS for first, second in pairwise(flat) if first == SEP)
    # No document that fits a row is cut.
    for low, high in pairwise(np.cumsum([0, *lengths]).tolist()):
        if 0 < high - low <= 14:
            assert any(str([CLS, *range(FIRST + low, FIRST + high), SEP])[1:-1] in str(part) for part in parts)


@pytest.mark.parametrize("kind", [PackedStretches, WholeSegments, BalancedPairs, GooglePairs])
def test_an_empty_row_has_something_to_attend_to_and_no_target(kind: type[MaskedRows]) -> None:
    batch = make(kind, written(5, 6), 32).batch(0, np.array([-1, 0]))
    assert batch["input_ids"][0].tolist() == [CLS, SEP] + [PAD] * 30
    assert batch["attention_mask"][0].tolist() == [True] * 2 + [False] * 30
    assert (batch["targets"][0] == -100).all()
    assert not batch["token_type_ids"][0].any()
    assert batch.get("next_sentence_label", np.array([-100]))[0] == -100
    assert (batch["targets"][1] != -100).any()


@pytest.mark.parametrize("kind", [PackedStretches, WholeSegments, BalancedPairs, GooglePairs])
def test_the_types_are_those_that_the_network_expects(kind: type[MaskedRows]) -> None:
    batch = make(kind, written(5, 6), 32).batch(1, np.arange(3))
    types = {name: array.dtype for name, array in batch.items()}
    expected = dict.fromkeys(("input_ids", "targets", "token_type_ids"), np.int64) | {"attention_mask": np.bool_}
    more = {"document_ids": np.int32} if kind is PackedStretches else {}
    more |= {"next_sentence_label": np.int64} if issubclass(kind, PairRows) else {}
    assert types == expected | more


# Sentences


def test_sentences_end_at_full_stops_and_what_closes_behind_them() -> None:
    w = FIRST
    document = [w, w, w, w, STOP, QUOTE, w, w, w, w, STOP, w, STOP, w, w, w, w, w, w, w, w]
    s = find_sentences(store_of([document, [w, w, w, w, w, STOP]]), TOKENIZER, 6)
    # The end after one word is none; the last sentence of the first document is longer than 6.
    assert (s.low - 1).tolist() == [0, 6, 11, 17, 22]
    assert (s.high - s.low).tolist() == [6, 5, 6, 4, 6]
    assert s.document.tolist() == [0, 0, 0, 0, 1]
    assert s.following.tolist() == [4, 4, 4, 4, 5]


@pytest.mark.parametrize("longest", [5, 40])
def test_sentences_cover_their_documents(longest: int) -> None:
    store = written(30, 8)
    s = find_sentences(store, TOKENIZER, longest)
    covered = np.concatenate([np.arange(low, high) for low, high in zip(s.low, s.high, strict=True)])
    assert covered.tolist() == np.flatnonzero(store.tokens != SEP).tolist()
    assert (s.high - s.low).max() <= longest


# Pairs


@pytest.mark.parametrize("kind", [BalancedPairs, GooglePairs])
def test_pairs_are_stretches_of_the_text(kind: type[PairRows]) -> None:
    store = written(60, 12)
    rows = make(kind, store, 64, pair_seed=1)
    assert isinstance(rows, PairRows)
    pairs, batch = rows.pairs(2), rows.batch(2, np.arange(rows.count))
    ids, types = originals(batch), batch["token_type_ids"]
    begins = set(rows.sentences.low.tolist())
    document = np.searchsorted(store.starts, np.arange(len(store.tokens)), side="right") - 1
    for n in range(rows.count):
        a, a_length, b, b_length, label = (int(part[n]) for part in pairs)
        first, second = store.tokens[a : a + a_length].tolist(), store.tokens[b : b + b_length].tolist()
        expected = [CLS, *first, SEP, *([*second, SEP] if b_length else [])]
        assert len(expected) <= 64
        assert ids[n][batch["attention_mask"][n]].tolist() == expected
        assert types[n].tolist() == [int(a_length + 2 <= c < len(expected)) for c in range(64)]
        assert SEP not in first + second  # within one document
        assert batch["next_sentence_label"][n] == label
        if kind is BalancedPairs and b_length:
            assert {a, b} <= begins
            if label == 0:
                assert b == a + a_length
            else:
                assert document[a] != document[b]


def test_balanced_pairs_read_all_of_the_text() -> None:
    store = written(60, 12)
    rows = make(BalancedPairs, store, 64, pair_seed=1)
    assert isinstance(rows, PairRows)
    pairs = rows.pairs(0)._replace()
    true_b = np.where(pairs.label == 1, pairs.a + pairs.a_length, pairs.b)
    seen = np.zeros(len(store.tokens), bool)
    for a, length, b, b_length in zip(pairs.a, pairs.a_length, true_b, pairs.b_length, strict=True):
        seen[a : a + length] = seen[b : b + b_length] = True
    assert seen[store.tokens != SEP].all()


def test_a_text_of_one_document_has_random_pairs_from_elsewhere_in_it() -> None:
    rows = make(BalancedPairs, store_of([written(1, 400).tokens[1:-1].tolist()]), 64, pair_seed=1)
    assert isinstance(rows, PairRows)
    p = rows.pairs(0)
    chosen = p.label == 1
    assert chosen.mean() == pytest.approx(0.5, abs=0.2)
    apart = (p.b + p.b_length <= p.a) | (p.b >= p.a + p.a_length + p.b_length)
    assert apart[chosen].all()


@pytest.mark.parametrize("kind", [BalancedPairs, GooglePairs])
def test_pairs_are_drawn_anew_in_each_epoch_and_are_a_function_of_it(kind: type[PairRows]) -> None:
    store = written(60, 12)
    rows, again = make(kind, store, 64, pair_seed=1), make(kind, store, 64, pair_seed=1)
    assert isinstance(rows, PairRows)
    assert isinstance(again, PairRows)
    first = [rows.pairs(epoch) for epoch in (0, 1, 2)]
    assert all(len(part) == rows.count for pairs in first for part in pairs)
    assert np.array_equal(np.stack(again.pairs(2)), np.stack(first[2]))  # without the epochs before it
    assert not np.array_equal(first[0].label, first[1].label)
    assert not np.array_equal(np.stack(make(kind, store, 64, pair_seed=2).pairs(0)), np.stack(first[0]))  # type: ignore[attr-defined]


def accuracy_by_torch(a: np.ndarray, b: np.ndarray, label: np.ndarray) -> float:
    """A logistic regression on one-hot buckets of both lengths and of their sum, by Adam; measured on other rows."""
    edges = [np.quantile(x, np.linspace(0, 1, 11)[1:-1]) for x in (a, b, a + b)]
    hot = [np.eye(10)[np.digitize(x, edge)] for x, edge in zip((a, b, a + b), edges, strict=True)]
    x, y = torch.tensor(np.concatenate(hot, 1)).float(), torch.tensor(label).float()
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    half = len(y) // 2
    for _ in range(150):
        logits, weight = (
            model(x[:half])[:, 0],
            torch.where(y[:half] > 0.5, 1 / y[:half].mean(), 1 / (1 - y[:half].mean())),
        )
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[:half], weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (model(x[half:])[:, 0] > 0) == (y[half:] > 0.5)
    return float(np.mean([right[y[half:] == value].float().mean() for value in (0, 1)]))  # both labels count half


def test_lengths_tell_googles_labels_and_not_the_balanced_ones() -> None:
    """2,400 pairs or more are measured, so chance is 50 % with a standard error of 1 point; 3 points are allowed."""
    store = written(1200, 20)
    told = {}
    for kind in (BalancedPairs, GooglePairs):
        rows = make(kind, store, 128, pair_seed=1)
        assert isinstance(rows, PairRows)
        parts = [rows.pairs(epoch) for epoch in (0, 1, 2)]
        a, b, label = (
            np.concatenate([getattr(p, name)[p.label >= 0] for p in parts])
            for name in ("a_length", "b_length", "label")
        )
        share = label.mean()
        told[kind] = accuracy_by_torch(a, b, label), length_accuracy(a, b, label), share
        print(kind.__name__, len(label), told[kind])
    for accuracy in told[BalancedPairs][:2]:
        assert accuracy == pytest.approx(0.5, abs=0.03)
    assert told[BalancedPairs][2] == pytest.approx(0.5, abs=0.02)
    assert told[GooglePairs][2] > 0.52  # rows of one sentence are always random
    for accuracy in told[GooglePairs][:2]:
        assert accuracy > 0.56


def test_a_tenth_of_googles_rows_aim_at_a_shorter_length() -> None:
    rows = make(GooglePairs, store_of([written(1, 9000, seed=2).tokens[1:-1].tolist()]), 128, pair_seed=1)
    assert isinstance(rows, PairRows)
    p = rows.pairs(0)
    total = p.a_length + p.b_length
    assert total.max() == 125
    assert np.mean(total < 100) == pytest.approx(0.1 * 98 / 123, abs=0.025)


# Losses to compare with


def test_the_losses_of_masked_tokens_by_plain_counting() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(FIRST, FIRST + 12, 3000)
    words[1:][words[:-1] == FIRST] = FIRST + 1  # something that a bigram can learn
    train, val = store_of([words[:2000].tolist()]), store_of([words[2000:].tolist()])
    V, rows = FIRST + 12, make(WholeSegments, val, 32, seed=None)
    losses = masked_baselines(train, rows, V)  # type: ignore[arg-type]
    tokens = train.tokens.tolist()
    count, total = Counter(tokens), len(tokens)
    middle = Counter(zip(zip(tokens, tokens[2:], strict=False), tokens[1:], strict=False))

    def smoothed(counts: Counter, context: object, x: int, p: float) -> float:
        mine = [n for (c, _), n in counts.items() if c == context]
        return (counts[context, x] + len(mine) * p) / (sum(mine) + len(mine)) if mine else p

    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    followers = [Counter((t[0], t[1]) for t in triples), Counter((t[2], t[1]) for t in triples)]
    nats = np.zeros(3)
    n = 0
    for r in range(rows.count):
        batch = rows.batch(0, np.array([r]))
        ids, targets = originals(batch)[0], batch["targets"][0]
        for c in np.flatnonzero(targets != -100):
            left, x, right = (int(i) for i in ids[c - 1 : c + 2])
            p = (count[x] + 1) / (total + V)
            before, behind = smoothed(followers[0], left, x, p), smoothed(followers[1], right, x, p)
            nats -= np.log([p, before, smoothed(middle, (left, right), x, (before + behind) / 2)])
            n += 1
    assert [losses.unigram, losses.bigram, losses.two_sided] == pytest.approx((nats / n).tolist(), rel=1e-9)
    assert losses.uniform == pytest.approx(np.log(V))
