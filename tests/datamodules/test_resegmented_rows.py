"""Subword sampling: other tokens in each epoch, the same text, every target once, exact resume."""

from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import BPEDataModule, HeadlinesDataModule, TextDataModule
from datamodules.batches import Batch
from datamodules.cutting import RowKind
from datamodules.errors import UserError
from datamodules.resegmented_rows import ResegmentedRows
from datamodules.rows import IGNORE_INDEX, Windows
from datamodules.tokenizers import save_tokenizer, train_tokenizer

KINDS: list[RowKind] = ["packed", "padded", "windows"]
TITLES = [f"Title number {i * i % 97} of the {i % 13} readers' wonderful questions {i}" for i in range(150)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Titles and a tokenizer that can sample them."""
    folder = tmp_path_factory.mktemp("titles")
    (folder / "titles.txt").write_text("\n".join(TITLES))
    save_tokenizer(train_tokenizer("unigram", TITLES, 400), folder / "unigram.json")
    return str(folder / "titles.txt"), str(folder / "unigram.json")


@pytest.fixture
def module(files: tuple[str, str]) -> Callable[..., TextDataModule]:
    def make(cls: type[TextDataModule] = HeadlinesDataModule, rank: int = 0, world: int = 1, **options: object):
        given = {"tokenizer": files[1], "block_size": 16, "tokens_per_step": 128, "subword_sampling": 0.2}
        data = cls(files[0], **{**given, **options})  # type: ignore[call-arg,arg-type]
        kwargs = {"rank": rank, "num_replicas": world}
        data.trainer = SimpleNamespace(distributed_sampler_kwargs=kwargs, overfit_batches=0)  # type: ignore[assignment]
        data.setup("validate")
        return data

    return make


def segmentation(rows: ResegmentedRows, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """All ids of an epoch, and each document's."""
    rows.prepare(epoch)
    store = rows._current[1].store
    return store.tokens, [store.tokens[a + 1 : b] for a, b in pairwise(store.starts)]


def epochs(data: TextDataModule, number: int) -> list[list[Batch]]:
    loader = data.train_dataloader()
    return [list(loader) for _ in range(number)]


@pytest.mark.parametrize("rows", KINDS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_has_other_tokens_of_the_same_text_and_scores_each_once(
    module: Callable[..., TextDataModule], rows: RowKind, shuffle: bool
) -> None:
    data = module(rows=rows, shuffle=shuffle)
    sampled = data.make_rows("train", training=True)
    seen = []
    for epoch, batches in enumerate(epochs(data, 3)):
        tokens, documents = segmentation(sampled, epoch)
        assert [data.tokenizer.decode(ids.tolist()) for ids in documents] == TITLES[:135]
        scored = Counter(t for b in batches for t in b["targets"][b["targets"] != IGNORE_INDEX].tolist())
        assert scored == Counter(tokens[1:].tolist())
        assert len(batches) == len(data.train_dataloader())
        seen.append(tokens.tolist())
    assert len({tuple(tokens) for tokens in seen}) == 3
    assert seen[0] == segmentation(module(rows=rows).make_rows("train", training=True), 0)[0].tolist()
    assert seen[0] != segmentation(module(rows=rows, seed=2).make_rows("train", training=True), 0)[0].tolist()


@pytest.mark.parametrize("rows", KINDS)
def test_inputs_and_targets_are_neighbours_in_the_epochs_own_text(
    module: Callable[..., TextDataModule], rows: RowKind
) -> None:
    data = module(rows=rows)
    for batches in epochs(data, 2):
        for batch in batches:
            inside = batch["attention_mask"][:, 1:]
            assert torch.equal(batch["input_ids"][:, 1:][inside], batch["targets"][:, :-1][inside])


def test_a_long_text_is_sampled_too(module: Callable[..., TextDataModule]) -> None:
    data = module(BPEDataModule, rows="windows")
    text = "\n".join(TITLES)
    for epoch in range(2):
        _, (document,) = segmentation(data.make_rows("train", training=True), epoch)
        assert data.tokenizer.decode(document.tolist()) == text[: int(len(text) * 0.9)]


def test_evaluation_keeps_the_likeliest_segmentation(module: Callable[..., TextDataModule]) -> None:
    sampled, plain = module(), module(subword_sampling=0.0)
    for one, other in zip(sampled.val_dataloader(), plain.val_dataloader(), strict=True):
        assert all(torch.equal(a["targets"], b["targets"]) for a, b in zip(one, other, strict=True))
    for split in ("val", "train_eval"):
        assert sampled.scored_text(split) == plain.scored_text(split)


@pytest.mark.parametrize(("rows", "num_workers"), [*((kind, 0) for kind in KINDS), ("packed", 2)])
def test_a_resumed_run_goes_on_with_the_same_batches(
    module: Callable[..., TextDataModule], rows: RowKind, num_workers: int
) -> None:
    straight = [batch for epoch in epochs(module(rows=rows), 3) for batch in epoch]
    per_epoch = len(straight) // 3
    for done in (2, per_epoch, per_epoch + 3):
        saved = module(rows=rows).train_dataloader()
        for _ in islice((batch for _ in range(3) for batch in saved), done):
            pass
        resumed = module(rows=rows, num_workers=num_workers).train_dataloader()
        resumed.load_state_dict(saved.state_dict())  # type: ignore[attr-defined]
        rest = [batch for _ in range(-(-(3 * per_epoch - done) // per_epoch)) for batch in resumed]
        assert len(rest) == len(straight) - done
        for one, other in zip(rest, straight[done:], strict=True):
            assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("rows", KINDS)
def test_two_processes_share_the_batches_of_one(module: Callable[..., TextDataModule], rows: RowKind) -> None:
    alone = [batch for epoch in epochs(module(rows=rows), 2) for batch in epoch]
    ranks = [[b for epoch in epochs(module(rows=rows, rank=rank, world=2), 2) for b in epoch] for rank in (0, 1)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        for name, value in whole.items():
            assert torch.equal(value, torch.cat([first[name], second[name]]))


class LongEpochs:
    """Texts that have 1000 tokens in epoch 0; in later epochs 1300, 1100, 900, ... at each further draw."""

    eos_id = None

    def draw(self, _seed: int, epoch: int, _stream: int, attempt: int) -> tuple[np.ndarray, np.ndarray]:
        length = 1300 - 200 * attempt if epoch else 1000
        return np.arange(length), np.array([0, length])


def test_an_epoch_that_needs_more_rows_is_sampled_again() -> None:
    rows = ResegmentedRows(LongEpochs(), lambda tokens: Windows(tokens, 8), seed=1)  # type: ignore[arg-type]
    for epoch, length in ((0, 1000), (1, 900), (2, 900)):
        targets = rows.batch(epoch, np.arange(rows.count))["targets"]  # (count, 8)
        assert targets[targets != IGNORE_INDEX].tolist() == list(range(1, length))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "byte"}, "subword_sampling 0.2 draws .* unigram tokenizer, and the data's is of another kind"),
        ({"subword_sampling": -1.0}, "subword_sampling -1.0 is negative"),
    ],
)
def test_what_cannot_sample_is_one_sentence(
    module: Callable[..., TextDataModule], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        module(**options)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_the_trainer_resumes_in_the_middle_of_an_epoch(
    files: tuple[str, str], recorder: Callable, make_trainer: Callable, tmp_path: Path
) -> None:
    def fit(ckpt: Path | None = None, **saving: object) -> list[torch.Tensor]:
        module = recorder(block_size=16)
        data = HeadlinesDataModule(files[0], tokenizer=files[1], tokens_per_step=128, subword_sampling=0.2)
        trainer = make_trainer(max_steps=90, num_sanity_val_steps=0, **saving)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt)
        return [batch["input_ids"] for batch in module.seen["train"]]

    checkpoints = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=25, save_top_k=-1)
    straight = fit(callbacks=[checkpoints], enable_checkpointing=True)
    resumed = fit(tmp_path / "step=50.ckpt")
    assert len(resumed) == 40
    assert all(torch.equal(a, b) for a, b in zip(resumed, straight[50:], strict=True))
