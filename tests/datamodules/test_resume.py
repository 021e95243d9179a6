"""Resuming: the next batch is the one that would have come, whatever the kind, the workers and the processes."""

import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import CharDataModule, HeadlinesDataModule
from datamodules.batches import Batch, MicroBatches, TrainLoader
from datamodules.best_fit import BestFit
from datamodules.packing import Packed
from datamodules.rows import Padded, Rows, Windows
from datamodules.step_size import RankShare
from datamodules.tokens import TokenStore

ROOT = Path(__file__).parents[2]
KINDS: dict[str, Callable[[TokenStore], Rows]] = {
    "windows": lambda store: Windows(store, 8, seed=3),
    "ordered": lambda store: Windows(store, 8),
    "strided": lambda store: Windows(store, 8, stride=3, seed=3),
    "padded": lambda store: Padded(store, 8, seed=3),
    "packed": lambda store: Packed(store, 8, seed=3),
    "best_fit": lambda store: BestFit(store, 8, seed=3),
}


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join("word " * (1 + i * i % 5) + str(i) for i in range(60)))
    data = HeadlinesDataModule(str(path), tokenizer="byte", block_size=8, val_fraction=0.0)
    data.setup()
    return TokenStore(data._folder, "train")


def loader(rows: Rows, micro: int, world: int = 1, rank: int = 0, workers: int = 0) -> TrainLoader:
    return TrainLoader(MicroBatches(rows, RankShare(rows.count, 8, micro, rank, world)), workers)


def endless(train: TrainLoader):
    while True:
        yield from train


def equal(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_state_goes_on_where_it_was_saved_on_any_number_of_processes(store: TokenStore, kind: str) -> None:
    rows = KINDS[kind](store)
    steps = len(loader(rows, 8))
    straight = list(islice(endless(loader(rows, 8)), 2 * steps + 3))
    for saved_micro, saved_world in ((8, 1), (2, 1), (2, 2), (1, 4)):
        accumulation = 8 // (saved_micro * saved_world)
        for done in (1, steps - 1, steps, steps + 2):
            saved = loader(rows, saved_micro, saved_world)
            list(islice(endless(saved), done * accumulation))
            for micro, world in ((8, 1), (4, 1), (4, 2), (2, 4)):
                ranks = [loader(rows, micro, world, rank) for rank in range(world)]
                for rank in ranks:
                    rank.load_state_dict(saved.state_dict())
                iterators = [endless(rank) for rank in ranks]
                for expected in straight[done : done + 3]:
                    parts = [next(i) for _ in range(8 // (micro * world)) for i in iterators]
                    joined = {name: torch.cat([part[name] for part in parts]) for name in expected}
                    assert equal(joined, expected)


def test_states_are_plain_integers(store: TokenStore) -> None:
    train = loader(KINDS["packed"](store), 4)
    list(islice(endless(train), 5))
    assert train.state_dict() == {"epoch": 0, "global_batches": 2}
    assert all(type(value) is int for value in train.state_dict().values())


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2)])
def test_workers_change_nothing_and_batches_they_prepared_are_not_counted(
    store: TokenStore, before: int, after: int
) -> None:
    rows = KINDS["packed"](store)
    straight = list(islice(endless(loader(rows, 8)), 7))
    saved = loader(rows, 8, workers=before)
    head = list(islice(endless(saved), 3))
    resumed = loader(rows, 8, workers=after)
    resumed.load_state_dict(saved.state_dict())
    tail = list(islice(endless(resumed), 4))
    assert all(equal(a, b) for a, b in zip(straight, head + tail, strict=True))


def test_loaders_leave_the_global_random_state_alone(store: TokenStore) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(islice(endless(loader(KINDS["windows"](store), 8)), 5))
    assert torch.equal(torch.get_rng_state(), state)


def fit(text: Path, module: torch.nn.Module, saving: Path | None = None, ckpt: Path | None = None, **options: object):
    data = CharDataModule(str(text), tokens_per_step=64, micro_batch_size=4)
    callbacks = [ModelCheckpoint(saving, "{step}", every_n_train_steps=1, save_top_k=-1)] if saving else []
    Trainer(
        logger=False, enable_checkpointing=bool(saving), callbacks=callbacks, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0, **options,
    ).fit(module, datamodule=data, ckpt_path=ckpt)  # fmt: skip
    return [batch["input_ids"] for batch in module.seen["train"]]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2},
        {"max_steps": 9, "limit_train_batches": 6},
        {"max_steps": 9, "val_check_interval": 2, "check_val_every_n_epoch": None},
    ],
    ids=["epochs", "cut epochs", "validation"],
)
def test_the_trainer_resumes_any_checkpoint_with_the_same_batches(
    tmp_path: Path, recorder: Callable, options: dict
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i * i % 26) for i in range(380)))
    straight = fit(text, recorder(block_size=8), tmp_path / "saved", **options)
    saved = sorted((tmp_path / "saved").glob("*.ckpt"))
    assert len(saved) > 8
    for path in saved:
        step = torch.load(path, weights_only=True)["global_step"]
        resumed = fit(text, recorder(block_size=8), ckpt=path, **options)
        assert len(resumed) == len(straight) - 2 * step
        assert all(torch.equal(a, b) for a, b in zip(resumed, straight[2 * step :], strict=True))


TWO_PROCESSES = """
import sys
sys.path[:0] = [{root!r}, {here!r}]
import torch
from conftest import Recorder
from lightning.pytorch import Trainer
from datamodules import CharDataModule

class Saver(Recorder):
    def on_fit_end(self):
        torch.save(self.seen, {out!r} + str(self.global_rank))

data = CharDataModule({text!r}, tokens_per_step=64, micro_batch_size=2, cache_dir={cache!r})
trainer = Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_fork", logger=False,  # imports torch once
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Saver(block_size=8), datamodule=data)
"""


@pytest.mark.slow
def test_two_processes_of_a_plain_trainer_share_the_batches_of_one(tmp_path: Path, recorder: Callable) -> None:
    """The plain Trainer would put its own sampler into a DataLoader; it must not touch ours."""
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i * i % 26) for i in range(380)))
    names = {"root": str(ROOT), "here": str(Path(__file__).parent), "text": str(text)}
    program = tmp_path / "program.py"
    program.write_text(TWO_PROCESSES.format(**names, cache=str(tmp_path / "cache"), out=str(tmp_path / "rank")))
    subprocess.run([sys.executable, str(program)], check=True, capture_output=True)
    ranks = [torch.load(tmp_path / f"rank{rank}") for rank in (0, 1)]

    alone = fit(text, recorder(block_size=8), max_epochs=2)
    alone_steps = [torch.cat(alone[i : i + 2]) for i in range(0, len(alone), 2)]
    parts = [[batch["input_ids"] for batch in rank["train"]] for rank in ranks]
    steps = [
        torch.cat([parts[0][i], parts[1][i], parts[0][i + 1], parts[1][i + 1]]) for i in range(0, len(parts[0]), 2)
    ]
    assert len(steps) == len(alone_steps)
    assert all(torch.equal(a, b) for a, b in zip(steps, alone_steps, strict=True))
    targets = [t for rank in ranks for batch in rank["val"] for t in batch["targets"][batch["targets"] >= 0].tolist()]
    # A sanity check of whole validation, and one pass in each of two epochs: every target of the 38 characters.
    assert len(targets) == 3 * 37
