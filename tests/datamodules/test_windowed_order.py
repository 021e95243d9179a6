"""Rows that are shuffled inside windows: every row once, few windows at a time, a pure function of seed and epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import HeadlinesDataModule
from datamodules.batches import MicroBatches
from datamodules.errors import UserError
from datamodules.permutation import permute, random_words
from datamodules.windowed_order import WindowedOrder, equal_windows


@pytest.mark.parametrize("bounds", [[0, 10], [0, 3, 3, 9, 10, 10], [0, 0, 7], equal_windows(5000, 3).tolist()])
def test_every_item_is_there_once_and_windows_follow_one_another(bounds: list[int]) -> None:
    order, count = WindowedOrder(np.array(bounds), (4, 5)), bounds[-1]
    for epoch in range(3):
        items = order.items(np.arange(count), 7, epoch)
        assert sorted(items.tolist()) == list(range(count))
        window = np.searchsorted(bounds, items, side="right")
        assert np.count_nonzero(np.diff(window)) == len(set(window.tolist())) - 1
        for part in np.array_split(np.arange(count), 4):  # any part of it alone, by another object
            assert np.array_equal(WindowedOrder(np.array(bounds), (4, 5)).items(part, 7, epoch), items[part])


def test_orders_differ_with_epoch_and_seed_and_windows_come_in_a_random_order() -> None:
    order, positions = WindowedOrder(equal_windows(400, 8), (4, 5)), np.arange(400)
    orders = {tuple(order.items(positions, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert len({tuple(np.unique(np.array(o) // 50, return_index=True)[1].argsort().tolist()) for o in orders}) == 9


def opened(path: Path, **options: Any) -> HeadlinesDataModule:
    data = HeadlinesDataModule(str(path), tokenizer="byte", block_size=16, tokens_per_step=128, **options)
    data.setup("fit")
    return data


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join("word " * (1 + i * i % 7) + str(i) for i in range(600)))
    return path


def epoch_of(dataset: MicroBatches, epoch: int) -> list[np.ndarray]:
    return [dataset[epoch, item]["input_ids"].numpy() for item in range(len(dataset))]


@pytest.mark.parametrize("rows", ["windows", "padded", "packed"])
def test_an_epoch_has_the_same_rows_from_a_few_places_at_a_time(text: Path, rows: str) -> None:
    data = opened(text, rows=rows, shuffle_window="2KB", mask_first=0)
    made, whole = data.make_rows("train", training=True), len(data.stores["train"])
    assert made.windows == -(-whole * 2 // 2000) > 10
    order = made.shuffled(1, np.arange(made.count))
    assert sorted(order.tolist()) == list(range(made.count))
    if rows == "windows":
        low = made.slices(1, order)[0]  # type: ignore[attr-defined]
    elif rows == "padded":
        low = data.stores["train"].starts[np.searchsorted(made.first_row, order, side="right") - 1]  # type: ignore[attr-defined]
    else:
        in_store, in_stream = made.plan(1)  # type: ignore[attr-defined]
        low = in_store[np.searchsorted(in_stream, made.slices(1, order)[0], side="right") - 1]  # type: ignore[attr-defined]
    window = whole / made.windows
    places = [len(set((low[i : i + 8] // window).astype(int).tolist())) for i in range(0, len(low), 8)]
    assert np.mean(places) < (2.5 if rows != "packed" else 4)
    assert len(set((low // window).astype(int).tolist())) >= made.windows - 1


def test_targets_of_an_epoch_are_those_of_the_whole_text(text: Path) -> None:
    data = opened(text, rows="packed", shuffle_window="2KB")
    loader = data.train_dataloader()
    for epoch in range(2):
        found = [loader.dataset[epoch, item]["targets"].numpy() for item in range(len(loader))]
        scored = np.concatenate([targets[targets >= 0] for targets in found])
        assert np.array_equal(np.sort(scored), np.sort(data.stores["train"].tokens[1:]))


def test_without_the_option_the_order_is_the_same_as_ever(text: Path) -> None:
    made = opened(text, rows="windows").make_rows("train", training=True)
    assert made.seed is not None
    for epoch in range(2):
        expected = permute(np.arange(made.count), made.count, random_words(made.seed, epoch, 0))
        assert np.array_equal(made.shuffled(epoch, np.arange(made.count)), expected)


def test_a_window_larger_than_the_text_is_one_window(text: Path) -> None:
    data = opened(text, rows="packed", shuffle_window="1GB")
    assert data.make_rows("train", training=True).windows == 1
    same = opened(text, rows="packed")
    for one, other in zip(data.train_dataloader(), same.train_dataloader(), strict=True):
        assert np.array_equal(one["input_ids"], other["input_ids"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_window": 10}, "shuffle_window is 10 bytes, less than one row's 32: give the size of some shards"),
        ({"shuffle_window": "4GB", "shuffle": False}, "shuffle is false: leave one of them out"),
        ({"shuffle_window": "some"}, "the data's shuffle_window is some: give a number of bytes, or one with a unit"),
        ({"max_cache_size": "0GB"}, "the data's max_cache_size is 0GB: give a number of bytes"),
        ({"max_shard_size": -5}, "the data's max_shard_size is -5: give a number of bytes"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(text: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(text, **options)
