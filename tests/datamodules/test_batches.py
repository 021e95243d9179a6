"""Rows of three kinds: what is scored, how often, with which inputs, and in whose batch."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batches import Batch, MicroBatches
from datamodules.best_fit import BestFit
from datamodules.cutting import Cutting
from datamodules.integrity import write_meta, written_by
from datamodules.packing import Packed, WholePacked
from datamodules.permutation import permute, random_words
from datamodules.rows import IGNORE_INDEX, Padded, Rows, StreamRows, Windows
from datamodules.step_size import RankShare
from datamodules.synthetic import headlines
from datamodules.tokens import TokenStore, TokenWriter
from lit_gpt.model import GPT, GPTConfig

E = 0  # the EOS token
KINDS: dict[str, type[StreamRows]] = {"windows": Windows, "padded": Padded, "packed": Packed, "best_fit": BestFit}


def store_of(folder: Path, lengths: list[int], eos_id: int | None = E) -> TokenStore:
    """Documents of the given lengths; their tokens are 1, 2, 3, ... and occur once each."""
    folder.mkdir(exist_ok=True)
    writer = TokenWriter(folder, "train", np.dtype(np.uint32), eos_id)
    bounds = np.cumsum([0, *lengths])
    for low, high in pairwise(bounds):
        writer.add(np.arange(low, high) + 1, int(high - low), int(high - low), True)
    write_meta(folder, written_by({"train": writer}), dtype="uint32", eos_id=eos_id)
    return TokenStore(folder, "train")


def batches_of(rows: Rows, rows_per_batch: int, micro: int, world: int, epoch: int = 0) -> list[list[Batch]]:
    """For each global batch, the micro-batches of all processes in the order of their rows."""
    ranks = [MicroBatches(rows, RankShare(rows.count, rows_per_batch, micro, r, world)) for r in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    steps = rows_per_batch // (micro * world)
    flat = [rank[epoch, item] for item in range(len(ranks[0])) for rank in ranks]
    return [flat[i : i + steps * world] for i in range(0, len(flat), steps * world)]


def scored(batches: list[list[Batch]]) -> tuple[Counter[int], list[tuple[int, int]]]:
    """How often each token is a target, and all (input, target) pairs."""
    pairs = []
    for batch in (b for step in batches for b in step):
        kept = batch["targets"] != IGNORE_INDEX
        assert not (kept & ~batch["attention_mask"]).any()
        pairs += list(zip(batch["input_ids"][kept].tolist(), batch["targets"][kept].tolist(), strict=True))
    return Counter(target for _, target in pairs), pairs


@settings(deadline=None)
@given(n=st.integers(1, 9000), seed=st.integers(0, 2**32), epoch=st.integers(0, 9))
def test_permute_is_a_bijection_of_any_size(n: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(n), n, random_words(seed, epoch))
    assert np.array_equal(np.sort(image), np.arange(n))


def test_permute_takes_no_memory_for_a_huge_range_and_mixes_it() -> None:
    n = 10**12 + 39
    image = permute(np.arange(20_000), n, random_words(1))
    assert len(np.unique(image)) == 20_000
    assert image.min() >= 0
    assert image.max() < n
    assert abs(image.mean() / n - 0.5) < 0.02
    assert abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 0.03


def test_small_permutations_are_about_equally_likely() -> None:
    seen = Counter(tuple(permute(np.arange(3), 3, random_words(seed))) for seed in range(1200))
    assert len(seen) == 6
    assert min(seen.values()) > 140


@settings(deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=25),
    block_size=st.integers(1, 17),
    kind=st.sampled_from(sorted(KINDS)),
    evaluation=st.booleans(),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
    micro=st.integers(1, 4),
    world=st.sampled_from([1, 2, 4]),
    accumulation=st.integers(1, 3),
)
def test_every_target_is_scored_exactly_once_with_its_own_input(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    block_size: int,
    kind: str,
    evaluation: bool,
    seed: int,
    epoch: int,
    micro: int,
    world: int,
    accumulation: int,
) -> None:
    store = store_of(tmp_path_factory.mktemp("store"), lengths)
    rows = KINDS[kind](store, block_size, seed=None if evaluation else seed)
    rows_per_batch = micro * world * accumulation
    batches = batches_of(rows, rows_per_batch, micro, world, epoch)

    counts, pairs = scored(batches)
    n = sum(lengths)
    assert counts == Counter({E: len(lengths), **dict.fromkeys(range(1, n + 1), 1)})
    firsts = {1 + sum(lengths[:i]) for i in range(len(lengths))}
    for source, target in pairs:
        assert source == (E if target in firsts else target - 1) or target == E

    # One process sees the same global batches, row for row, as many in several micro-batches.
    alone = batches_of(rows, rows_per_batch, rows_per_batch, 1, epoch)
    assert len(alone) == len(batches)
    for whole, parts in zip(alone, batches, strict=True):
        for name, value in whole[0].items():
            assert torch.equal(value, torch.cat([part[name] for part in parts]))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 300), block_size=st.integers(1, 17), rows_per_batch=st.integers(1, 9))
def test_without_a_seed_every_epoch_is_the_text_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, n: int, block_size: int, rows_per_batch: int
) -> None:
    rows = Windows(store_of(tmp_path_factory.mktemp("store"), [n], None), block_size)
    first, later = (batches_of(rows, rows_per_batch, rows_per_batch, 1, epoch) for epoch in (0, 7))
    for i, ((batch,), (same,)) in enumerate(zip(first, later, strict=True)):
        assert all(torch.equal(batch[name], same[name]) for name in batch)
        for b in range(rows_per_batch):
            start = (i * rows_per_batch + b) * block_size  # token number k of the store is k + 1
            length = min(max(n - 1 - start, 0), block_size)
            assert batch["input_ids"][b, :length].tolist() == list(range(start + 1, start + 1 + length))
            assert batch["attention_mask"][b].tolist() == [True] * length + [False] * (block_size - length)
    assert scored(first)[0] == Counter(range(2, n + 1))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 60), block_size=st.integers(1, 17), stride=st.integers(1, 17), seed=st.integers(0, 9))
def test_strided_windows_start_at_every_multiple_and_reach_the_end(
    tmp_path_factory: pytest.TempPathFactory, n: int, block_size: int, stride: int, seed: int
) -> None:
    stride = min(stride, block_size)
    rows = Windows(store_of(tmp_path_factory.mktemp("store"), [n], None), block_size, stride, seed)
    assert rows.count == max(-(-(n - 1 - block_size) // stride), 0) + 1
    batch = MicroBatches(rows, RankShare(rows.count, rows.count, rows.count))[3, 0]
    firsts = sorted(batch["input_ids"][:, 0].tolist())
    assert firsts == [1 + i * stride for i in range(rows.count)]
    for ids, targets, mask in zip(batch["input_ids"], batch["targets"], batch["attention_mask"], strict=True):
        length = min(block_size, n - int(ids[0]))
        assert mask.tolist() == [True] * length + [False] * (block_size - length)
        assert targets[mask].tolist() == list(range(int(ids[0]) + 1, int(ids[0]) + 1 + length))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_epochs_differ_and_repeat_from_their_seed(tmp_path: Path, kind: str) -> None:
    store = store_of(tmp_path, [7, 3, 12, 5, 9, 1, 4] * 6)

    def epoch(number: int, seed: int = 5) -> torch.Tensor:
        batches = batches_of(KINDS[kind](store, 8, seed=seed), 4, 4, 1, number)
        return torch.cat([batch[0]["input_ids"] for batch in batches])

    assert torch.equal(epoch(2), epoch(2))
    assert epoch(0).shape == epoch(1).shape
    assert not torch.equal(epoch(0), epoch(1))
    assert not torch.equal(epoch(0), epoch(0, seed=6))


def test_packed_documents_have_other_neighbours_in_each_epoch(tmp_path: Path) -> None:
    rows = Packed(store_of(tmp_path, [3] * 50), 8, seed=1)
    assert rows.plan(0)[0].tolist() != rows.plan(1)[0].tolist()


@pytest.mark.parametrize("kind", ["windows", "packed"])
def test_offsets_move_the_cuts_between_epochs(tmp_path: Path, kind: str) -> None:
    rows = KINDS[kind](store_of(tmp_path, [200]), 16, seed=1)
    assert len({rows.offset(epoch) for epoch in range(40)}) > 8
    assert {rows.offset(epoch) for epoch in range(2000)} == set(range(1, 17))


def test_mask_first_drops_targets_of_windows_but_not_their_inputs(tmp_path: Path) -> None:
    rows = Windows(store_of(tmp_path, [8], None), 4, stride=1, mask_first=3)
    batch = rows.batch(0, np.arange(rows.count))
    assert (batch["targets"][:, :3] == IGNORE_INDEX).all()
    assert batch["targets"][:, 3].tolist() == [5, 6, 7, 8]
    assert batch["attention_mask"].all()


@pytest.mark.parametrize("kind", ["padded", "packed", "best_fit"])
def test_mask_first_drops_targets_of_documents_and_not_where_a_row_continues_one(tmp_path: Path, kind: str) -> None:
    rows = KINDS[kind](store_of(tmp_path, [5, 1, 9]), 4, mask_first=2)
    counts, _ = scored(batches_of(rows, 2, 2, 1))
    assert counts == Counter(
        {3: 1, 4: 1, 5: 1, **dict.fromkeys(range(9, 16), 1), E: 2}
    )  # the short document's is dropped


def test_packed_rows_name_documents_and_share_the_mark_between_two(tmp_path: Path) -> None:
    rows = Packed(store_of(tmp_path, [2, 1, 3]), 5)
    batch = rows.batch(0, np.array([0, 1, -1]))
    assert batch["input_ids"].tolist() == [[E, 1, 2, E, 3], [E, 4, 5, 6, E], [E] * 5]
    assert batch["targets"].tolist() == [[1, 2, E, 3, E], [4, 5, 6, E, -100], [-100] * 5]
    assert batch["document_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, -1], [-1] * 5]
    assert batch["document_ids"].dtype == np.int32


def evaluated(kind: str, store: TokenStore, block_size: int, val_stride: int | None = None) -> Rows:
    return Cutting(kind, block_size, seed=1, val_stride=val_stride).evaluation_rows(store)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=25),
    block_size=st.integers(1, 17),
    val_stride=st.none() | st.integers(1, 17),
    kind=st.sampled_from(["windows", "padded", "packed"]),
)
def test_evaluation_scores_every_target_once_with_the_context_that_val_stride_promises(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], block_size: int, val_stride: int | None, kind: str
) -> None:
    store = store_of(tmp_path_factory.mktemp("store"), lengths)
    stride = block_size if val_stride is None else min(val_stride, block_size)
    rows = evaluated(kind, store, block_size, val_stride and stride)
    batch = rows.batch(0, np.arange(-1, rows.count))
    assert (batch["targets"][0] == IGNORE_INDEX).all()
    place = 0  # of the next target: the store's order is that of the rows
    for row in range(1, rows.count + 1):
        mask, targets = batch["attention_mask"][row], batch["targets"][row]
        documents = batch.get("document_ids", np.zeros_like(batch["input_ids"]))[row]
        assert mask.tolist() == sorted(mask, reverse=True)
        for column in np.flatnonzero(targets != IGNORE_INDEX):
            place += 1
            assert targets[column] == store.tokens[place]
            begin = 0 if kind == "windows" else int(store.starts[store.starts < place].max())
            seen = int((documents[: column + 1] == documents[column]).sum())  # tokens that it is predicted from
            assert batch["input_ids"][row, column + 1 - seen : column + 1].tolist() == (
                store.tokens[place - seen : place].tolist()
            )
            assert seen >= min(place - begin, block_size - stride + 1)
            if place - begin <= block_size:
                assert seen == place - begin
    assert place == len(store) - 1


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 23), min_size=1, max_size=40), block_size=st.integers(1, 17))
def test_whole_documents_are_packed_as_one_by_one_they_would_be(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], block_size: int
) -> None:
    filled: list[int] = []
    for targets in (length + 1 for length in lengths):  # the EOS token too
        if filled and filled[-1] + targets <= block_size:
            filled[-1] += targets
        else:
            filled += [min(block_size, targets - done) for done in range(0, targets, block_size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.packing._CHUNK", 7)
        rows = evaluated("packed", store_of(tmp_path_factory.mktemp("store"), lengths), block_size)
    assert rows.batch(0, np.arange(rows.count))["attention_mask"].sum(1).tolist() == filled


@pytest.mark.parametrize("block_size", [128, 256])
def test_whole_titles_take_at_most_a_tenth_more_rows(tmp_path: Path, block_size: int) -> None:
    lengths = [len(title.split()) for title in headlines(10_000)]
    store = store_of(tmp_path, lengths)
    cut, whole = Packed(store, block_size), WholePacked(store, block_size)
    assert cut.count <= whole.count <= 1.1 * cut.count
    ids = whole.batch(0, np.arange(whole.count))["document_ids"]
    assert (ids.max(1) + 1).sum() == 10_000  # none in two rows


def test_a_packed_document_gives_the_logits_of_the_same_one_alone(tmp_path: Path) -> None:
    store = store_of(tmp_path, [4, 6, 3])
    torch.manual_seed(0)
    net = GPT(GPTConfig(block_size=16, vocab_size=20, n_layer=2, n_head=2, n_embd=16)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    packed = {k: torch.from_numpy(v) for k, v in Packed(store, 16).batch(0, np.arange(1)).items()}
    alone = {k: torch.from_numpy(v) for k, v in Padded(store, 16).batch(0, np.arange(3)).items()}
    together = net(packed["input_ids"], document_ids=packed["document_ids"])[0]
    apart = net(alone["input_ids"])
    for number in range(3):
        inside = packed["document_ids"][0] == number
        torch.testing.assert_close(together[inside], apart[number][alone["attention_mask"][number]])
