"""Several arrays read as one give what their concatenation gives."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.sharded import ShardedArray, joined


@pytest.fixture
def parts() -> list[np.ndarray]:
    return [np.arange(low, high, dtype=np.uint16) for low, high in ((0, 5), (5, 5), (5, 6), (6, 20))]


def test_every_slice_is_that_of_the_whole(parts: list[np.ndarray]) -> None:
    whole, sharded = np.concatenate(parts), ShardedArray(parts)
    assert len(sharded) == len(whole)
    assert sharded.dtype == whole.dtype
    assert sharded.shape == whole.shape
    edges = [None, *range(-21, 22)]
    for low in edges:
        for high in edges:
            assert np.array_equal(sharded[low:high], whole[low:high])
    assert np.array_equal(sharded[::3], whole[::3])
    assert np.array_equal(sharded[::-1], whole[::-1])
    assert np.array_equal(np.asarray(sharded), whole)
    assert sharded[:].dtype == whole.dtype


@pytest.mark.parametrize("shape", [(), (0,), (7,), (4, 9), (2, 3, 4)])
def test_gathers_of_any_shape_are_those_of_the_whole(parts: list[np.ndarray], shape: tuple[int, ...]) -> None:
    whole, sharded = np.concatenate(parts), ShardedArray(parts)
    positions = np.random.default_rng(0).integers(-20, 20, shape)
    assert np.array_equal(sharded[positions], whole[positions])
    assert np.shape(sharded[positions]) == shape


def test_one_element_and_positions_outside(parts: list[np.ndarray]) -> None:
    sharded = ShardedArray(parts)
    assert [int(sharded[i]) for i in (0, 5, 19, -1)] == [0, 5, 19, 19]
    for outside in (20, -21, np.array([3, 20])):
        with pytest.raises(IndexError, match="outside"):
            sharded[outside]


def test_a_slice_inside_one_part_copies_nothing(parts: list[np.ndarray]) -> None:
    assert np.shares_memory(ShardedArray(parts)[8:15], parts[3])


def test_one_part_is_returned_as_it_is(parts: list[np.ndarray], tmp_path: Path) -> None:
    assert joined(parts[:1]) is parts[0]
    assert isinstance(joined(parts), ShardedArray)
