"""Rows packed by best fit: as placing one piece after another would give them, without needless cuts."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import HeadlinesDataModule, UserError
from datamodules.best_fit import BestFit, best_fit_decreasing
from datamodules.packing import Packed
from datamodules.rows import IGNORE_INDEX
from datamodules.synthetic import headlines
from datamodules.tokens import TokenArrays


def store_of(lengths: list[int]) -> TokenArrays:
    """Documents of the given numbers of targets; their tokens occur once each, the EOS token is 0."""
    bounds = np.cumsum([0, *lengths])
    tokens = np.arange(bounds[-1] + 1)
    tokens[bounds] = 0
    return TokenArrays(tokens, bounds, 0)


def documents_of(rows: BestFit, epoch: int = 0) -> Iterator[tuple[list[int], list[int]]]:
    """Inputs and targets of each stretch of a row that is one document."""
    batch = rows.batch(epoch, np.arange(rows.count))
    for ids, targets, document in zip(batch["input_ids"], batch["targets"], batch["document_ids"], strict=True):
        for number in range(document.max() + 1):
            inside = document == number
            yield ids[inside].tolist(), targets[inside].tolist()


@settings(deadline=None, max_examples=200)
@given(lengths=st.lists(st.integers(1, 17), min_size=1, max_size=60))
def test_rows_are_filled_as_placing_one_piece_after_another_fills_them(lengths: list[int]) -> None:
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if 17 - sum(row) >= length]
        if fitting:
            min(fitting, key=lambda row: 17 - sum(row)).append(length)
        else:
            rows.append([length])
    groups = best_fit_decreasing(np.bincount(lengths, minlength=18))
    # Rows with equal room are alike for the next piece, so which of them takes it changes no other row's room.
    ours = Counter({})
    for group in groups:
        ours[group.room] += group.rows
        assert group.room == 17 - sum(length * number for length, number in group.pieces)
    assert ours == Counter(17 - sum(row) for row in rows)
    placed = [length for group in groups for length, number in group.pieces for _ in range(number * group.rows)]
    assert sorted(placed) == sorted(lengths)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    epoch=st.integers(0, 3),
    chunk=st.sampled_from([3, 1 << 20]),
)
def test_only_documents_longer_than_a_row_are_cut_and_only_into_full_rows(
    lengths: list[int], epoch: int, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.best_fit._CHUNK", chunk)
        rows = BestFit(store_of(lengths), 9, seed=1)
    pieces = list(documents_of(rows, epoch))
    assert Counter(len(targets) for _, targets in pieces) == Counter(
        piece for length in lengths for piece in (*[9] * (length // 9), length % 9) if piece
    )
    firsts = dict(zip(np.cumsum([1, *lengths[:-1]]).tolist(), lengths, strict=True))
    for ids, targets in pieces:
        assert ids[1:] == targets[:-1]
        if targets[0] in firsts and firsts[targets[0]] <= 9:  # a short document: whole, from EOS token to EOS token
            assert (ids[0], targets[-1], len(targets)) == (0, 0, firsts[targets[0]])
    seen = [target for _, targets in pieces for target in targets if target]
    assert len(seen) == len(set(seen))


def test_neighbours_and_cuts_change_with_the_epoch_and_repeat_from_the_seed() -> None:
    store = store_of([3] * 50 + [20] * 10)

    def rows_of(epoch: int, seed: int = 1) -> np.ndarray:
        rows = BestFit(store, 8, seed)
        return rows.batch(epoch, np.arange(rows.count))["targets"]

    assert np.array_equal(rows_of(0), rows_of(0))
    assert not np.array_equal(rows_of(0), rows_of(0, seed=2))
    neighbours = [{tuple(row) for row in rows_of(epoch)} for epoch in (0, 1)]
    assert len(neighbours[0] & neighbours[1]) < len(neighbours[0]) / 2
    long = BestFit(store_of([20]), 8, seed=1)  # two full rows, and 4 targets before, between or behind them
    assert {tuple(sorted(ids[0] for ids, _ in documents_of(long, epoch))) for epoch in range(30)} == {
        (0, 8, 16),
        (0, 8, 12),
        (0, 4, 12),
    }


def test_titles_have_hardly_more_rows_than_when_they_are_cut() -> None:
    store = store_of([1 + len(title.split()) for title in headlines(10_000)])
    cut, whole = Packed(store, 128), BestFit(store, 128)
    assert whole.count <= 1.005 * cut.count
    batch = whole.batch(0, np.arange(whole.count))
    assert (batch["targets"] != IGNORE_INDEX).sum() == len(store.tokens) - 1
    assert (batch["document_ids"].max(1) + 1).sum() == 10_000  # none in two rows


def test_pieces_that_no_row_number_names_are_padding() -> None:
    batch = BestFit(store_of([3, 2]), 4).batch(0, np.array([-1, 0, -1]))
    assert batch["input_ids"].tolist() == [[0] * 4, [0, 1, 2, 0], [0] * 4]
    assert batch["targets"].tolist() == [[-100] * 4, [1, 2, 0, -100], [-100] * 4]
    assert batch["document_ids"].tolist() == [[-1] * 4, [0, 0, 0, -1], [-1] * 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "windows"}, "packing best_fit is for packed rows, and rows are windows: set rows to packed"),
        ({"shuffle": False}, "set packing to wrapped, or shuffle to true"),
        ({"shuffle_window": "1MB"}, "from the whole split, and shuffle_window from a part: leave one of them out"),
    ],
)
def test_best_fit_is_refused_where_it_means_nothing(options: dict, message: str) -> None:
    data = HeadlinesDataModule("embedded_headlines:50", tokenizer="byte", block_size=16, packing="best_fit", **options)
    with pytest.raises(UserError, match=message):
        data.setup()


def test_a_datamodule_trains_on_every_token_of_its_titles_once(tmp_path: Path) -> None:
    data = HeadlinesDataModule("embedded_headlines:200", tokenizer="byte", block_size=64, packing="best_fit")
    data.setup()
    seen = np.concatenate([batch["targets"][batch["targets"] != IGNORE_INDEX] for batch in data.train_dataloader()])
    assert np.array_equal(np.sort(seen), np.sort(data.stores["train"].tokens[1:]))
