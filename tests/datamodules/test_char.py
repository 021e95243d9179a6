"""CharDataModule, and what all datamodules share, under a plain Trainer."""

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import seed_everything

from datamodules import CharDataModule, HeadlinesDataModule
from datamodules.base import TextDataModule
from datamodules.errors import UserError
from datamodules.rows import IGNORE_INDEX
from datamodules.tokenizers import CharTokenizer

LETTERS = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=400)) + "é"


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(LETTERS)
    return str(path)


def scored(batches: list[dict[str, torch.Tensor]]) -> list[int]:
    return [t for batch in batches for t in batch["targets"][batch["targets"] != IGNORE_INDEX].tolist()]


def test_a_plain_trainer_fits_validates_tests_and_predicts(
    text: str, recorder: Callable, make_trainer: Callable
) -> None:
    data = CharDataModule(text, val_fraction=0.25, test_fraction=0.25, tokens_per_step=32)
    module, trainer = recorder(block_size=8), make_trainer(max_epochs=2)
    trainer.fit(module, datamodule=data)
    ids = data.tokenizer.encode(LETTERS)
    assert Counter(scored(module.seen["train"])) == Counter(ids[1:200] * 2)

    module.seen["val"].clear()
    trainer.validate(module, datamodule=data, verbose=False)
    assert scored(module.seen["val"]) == ids[201:300]
    trainer.test(module, datamodule=data, verbose=False)
    assert scored(module.seen["test"]) == ids[301:]
    rows = trainer.predict(module, datamodule=data)
    assert scored(rows) == ids[201:300]
    assert {d for batch in rows for d in batch["document"].tolist()} == {0, -1}
    assert all(batch["input_ids"].shape == (4, 8) for batch in module.seen["train"] + module.seen["val"])


def test_the_embedded_corpus_needs_nothing() -> None:
    data = CharDataModule(block_size=64)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (32, 64)
    assert batch["input_ids"].dtype == batch["targets"].dtype == torch.int64
    text = data.tokenizer.decode(data.stores["train"].tokens.tolist())
    assert "def" in text
    for row, targets in zip(batch["input_ids"], batch["targets"], strict=True):
        assert data.tokenizer.decode([*row.tolist(), int(targets[-1])]) in text
        assert torch.equal(row[1:], targets[:-1])


def test_the_vocabulary_is_the_sorted_characters_of_all_splits(text: str) -> None:
    data = CharDataModule(text, block_size=8, val_fraction=0.1)
    data.setup()
    assert data.tokenizer.decode(range(data.vocab_size)) == "".join(sorted(set(LETTERS)))


def test_scored_text_counts_what_the_loaders_score(text: str) -> None:
    data = CharDataModule(text, val_fraction=0.25, block_size=8, tokens_per_step=32, train_eval_rows=5)
    data.setup("fit")
    tokenizer = data.tokenizer
    for split, loader in zip(("val", "train_eval"), data.val_dataloader(), strict=True):
        targets = scored(list(loader))
        raw = tokenizer.decode(targets)
        counted = data.scored_text(split)
        assert (counted.tokens, counted.chars, counted.bytes) == (len(targets), len(raw), len(raw.encode()))
    assert data.scored_text("val").bytes == data.scored_text("val").chars + 1
    assert data.scored_text("train_eval").tokens == 40


@pytest.mark.parametrize("split", ["val", "train_eval"])
def test_bytes_are_those_of_the_text_as_it_is_read(tmp_path: Path, split: str) -> None:
    lines = [f"line {i} é" for i in range(60)]

    def scored_bytes(name: str, content: bytes) -> tuple[int, int]:
        (tmp_path / name).write_bytes(content)
        data = CharDataModule(str(tmp_path / name), block_size=8)
        data.setup()
        return data.scored_text(split).bytes, data.scored_text(split).chars

    plain = scored_bytes("plain.txt", "\n".join(lines).encode())
    assert scored_bytes("marked.txt", "\ufeff".encode() + "\r\n".join(lines).encode()) == plain


def test_the_evaluated_part_of_train_is_spread_over_it_and_never_moves(text: str) -> None:
    data = CharDataModule(text, val_fraction=0.25, block_size=8, tokens_per_step=32, train_eval_rows=5)
    data.setup("fit")
    first = [batch["input_ids"] for batch in data.val_dataloader()[1]]
    assert all(torch.equal(a, b["input_ids"]) for a, b in zip(first, data.val_dataloader()[1], strict=True))
    ids = data.tokenizer.encode(LETTERS)
    starts = [0, 56, 120, 176, 240]  # rows 0, 7, 15, 22, 30 of 38
    assert torch.cat(first)[:5].tolist() == [ids[start : start + 8] for start in starts]


def test_no_part_of_train_is_evaluated_when_not_wanted(text: str, recorder: Callable, make_trainer: Callable) -> None:
    data, seen = CharDataModule(text, tokens_per_step=64, train_eval_rows=0), recorder(block_size=8)
    make_trainer(max_steps=1).fit(seen, datamodule=data)
    assert len(data.val_dataloader()) == 1
    assert seen.seen["val"]
    assert not seen.seen["train_eval"]


def test_accumulation_makes_the_step_and_validation_counts_steps(
    text: str, recorder: Callable, make_trainer: Callable
) -> None:
    data = CharDataModule(text, tokens_per_step=64, micro_batch_size=2)
    trainer = make_trainer(max_steps=8, val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=0)
    module = recorder(block_size=8)
    trainer.fit(module, datamodule=data)
    assert trainer.accumulate_grad_batches == 4
    assert trainer.global_step == 8
    assert len(module.seen["train"]) == 32
    assert len(module.seen["val"]) == 2 * len(data.val_dataloader()[0])
    trainer.fit_loop.epoch_loop.max_steps = 9
    trainer.fit(module, datamodule=data)  # a second fit does not multiply again
    assert (trainer.accumulate_grad_batches, trainer.val_check_interval) == (4, 16)
    trainer.fit_loop.epoch_loop.max_steps = 10
    trainer.fit(module, datamodule=CharDataModule(text, tokens_per_step=64, micro_batch_size=2))  # nor another's
    assert (trainer.global_step, trainer.val_check_interval) == (10, 16)


def test_without_shuffling_training_follows_the_text_in_every_epoch(
    text: str, recorder: Callable, make_trainer: Callable
) -> None:
    module, data = recorder(block_size=8), CharDataModule(text, tokens_per_step=32, shuffle=False)
    make_trainer(max_epochs=2).fit(module, datamodule=data)
    ids = data.tokenizer.encode(LETTERS)[:360]
    assert scored(module.seen["train"]) == ids[1:] * 2
    half = len(module.seen["train"]) // 2
    for i, batch in enumerate(module.seen["train"][:half]):
        starts = [(i * 4 + row) * 8 for row in range(4) if (i * 4 + row) * 8 < 359]
        assert batch["input_ids"][: len(starts), 0].tolist() == [ids[start] for start in starts]


def batches(text: str, stage: str = "fit", **options: object) -> list[torch.Tensor]:
    data = CharDataModule(text, block_size=8, **options)  # type: ignore[arg-type]
    data.setup(stage)
    return [batch["input_ids"] for batch in data.train_dataloader()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_runs_seed_decides_the_order_unless_the_data_has_its_own(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    by_default = batches(text)
    by_seed = {}
    for seed in (1, 2, 1337):
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # to be put back
        seed_everything(seed, verbose=False)
        by_seed[seed] = batches(text)
        assert equal(by_seed[seed], batches(text, seed=seed))
        assert equal(batches(text, seed=5), batches(text, seed=5))
    assert not equal(by_seed[1], by_seed[2])
    assert equal(by_seed[1337], by_default)
    assert equal(batches(text, seed=2), by_seed[2])


def test_the_runs_seed_leaves_splits_and_stores_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "titles.txt").write_text("\n".join(f"title {i}" for i in range(100)))

    def splits(seed: int) -> list[list[int]]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        data = HeadlinesDataModule(str(tmp_path / "titles.txt"), split="shuffle", tokenizer="byte", block_size=16)
        data.setup()
        return [data.stores[split].tokens.tolist() for split in ("train", "val")]

    assert splits(1) == splits(2)


@pytest.mark.parametrize("val_stride", [None, 8, 3, 1])
def test_every_evaluation_scores_every_token_once_at_any_val_stride(
    text: str, recorder: Callable, make_trainer: Callable, val_stride: int | None
) -> None:
    data = CharDataModule(text, val_fraction=0.25, test_fraction=0.25, tokens_per_step=32, val_stride=val_stride)
    module, trainer = recorder(block_size=8), make_trainer(max_steps=1)
    trainer.fit(module, datamodule=data)
    ids = data.tokenizer.encode(LETTERS)
    module.seen["val"].clear()
    trainer.validate(module, datamodule=data, verbose=False)
    assert scored(module.seen["val"]) == ids[201:300]
    trainer.test(module, datamodule=data, verbose=False)
    assert scored(module.seen["test"]) == ids[301:]
    assert scored(trainer.predict(module, datamodule=data)) == ids[201:300]
    assert data.scored_text("train_eval").tokens == len(scored(list(data.val_dataloader()[1])))


def test_overfitting_sees_the_same_batches_in_each_epoch(text: str, recorder: Callable, make_trainer: Callable) -> None:
    module = recorder(block_size=8)
    make_trainer(max_epochs=3, overfit_batches=2).fit(module, datamodule=CharDataModule(text, tokens_per_step=16))
    seen = [batch["input_ids"] for batch in module.seen["train"]]
    assert len(seen) == 6
    assert all(torch.equal(seen[i], seen[i % 2]) for i in range(6))


def test_a_checkpoints_tokenizer_is_used_and_its_own_store_found_again(text: str, own_cache: Path) -> None:
    trained = CharDataModule(text, block_size=8)
    trained.setup()
    again = CharDataModule(text, block_size=8)
    again.use_tokenizer(trained.tokenizer)
    again.setup()
    assert len(list((own_cache / "lit_gpt").glob("*.lock"))) == 1

    other = CharDataModule(text, block_size=8)
    wider = CharTokenizer(LETTERS + "XYZ")
    other.use_tokenizer(wider)
    other.setup()
    assert other.fingerprints["tokenizer"] == wider.fingerprint != trained.fingerprints["tokenizer"]
    assert other.fingerprints["data"] == trained.fingerprints["data"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_file_that_is_trained_on_is_no_text_to_judge_by(tmp_path: Path, split: str) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(LETTERS)

    def setup(source: Path, other: Path) -> None:
        CharDataModule(str(source), block_size=8, **{f"{split}_source": str(other)}).setup()  # type: ignore[arg-type]

    with pytest.raises(UserError, match=rf"the {split}_source has .*b\.txt, and so has the source that is trained on"):
        setup(tmp_path, tmp_path / "b.txt")
    with pytest.raises(UserError, match=rf"the {split}_source has .*a\.txt, and so has"):
        setup(tmp_path / "a.txt", tmp_path)
    setup(tmp_path / "a.txt", tmp_path / "b.txt")  # a text of its own, whatever it says
    setup(tmp_path / "a.txt", tmp_path / "a.txt")  # how well it is known by heart


def test_characters_outside_a_checkpoints_vocabulary_are_named(text: str) -> None:
    data = CharDataModule(text, block_size=8)
    data.use_tokenizer(CharTokenizer("abc"))
    with pytest.raises(UserError, match="is not among the 3"):
        data.setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"block_size": 64},
            r"the val split of .*text.txt has 41 tokens, fewer than one row's 65 \(block_size 64 \+ 1\)",
        ),
        ({"block_size": None}, "set block_size"),
        ({"block_size": 8, "stride": 9}, "a stride of 9 .* choose 1 to block_size = 8"),
        ({"block_size": 8, "mask_first": 8}, "mask_first 8 leaves no target of a window of 8"),
        ({"block_size": 8, "mask_first": -1}, "mask_first -1"),
        ({"block_size": 8, "train_eval_rows": -1}, "train_eval_rows is -1: give at least 0"),
        ({"block_size": -4}, "block_size is -4: give at least 1"),
        ({"tokens_per_step": -512}, "tokens_per_step is -512: give at least 1"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0: give at least 1"),
        ({"seed": -1}, "seed is -1: give at least 0"),
        ({"num_workers": -1}, "num_workers is -1: give at least 0"),
        ({"num_workers": 1000}, r"num_workers is 1000, and this machine has \d+ cores: give at most \d+"),
        ({"block_size": 8, "val_stride": 9}, "a val_stride of 9 .* choose 1 to block_size = 8"),
        ({"block_size": 8, "val_stride": 0}, "a val_stride of 0 .* choose 1 to block_size = 8"),
        ({"block_size": 8, "val_fraction": math.nan}, "validation part of nan .* give 0 to 1"),
        ({"block_size": 8, "val_source": ""}, "a source is empty"),
        ({"block_size": 8, "rows": "packed"}, "rows 'packed' need a tokenizer with an EOS token"),
        ({"block_size": 8, "val_fraction": 1.0}, "leave nothing to train on"),
    ],
)
def test_what_cannot_be_set_up_is_one_sentence(text: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CharDataModule(text, **options).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 16}, "block_size 16 exceeds the model's, 8: leave it out, or give 8"),
        ({"tokens_per_step": 60}, "tokens_per_step 60 is not a multiple of block_size 8: choose 56 or 64"),
        ({"tokens_per_step": 5}, "tokens_per_step 5 is not a multiple of block_size 8: choose 8.$"),
        ({"tokens_per_step": 64, "micro_batch_size": 3}, "a step of 8 rows .* micro-batches of 3"),
        ({"tokens_per_step": 64, "micro_batch_size": 16}, "a step of 8 rows .* micro-batches of 16"),
    ],
)
def test_steps_that_do_not_divide_are_one_sentence(
    text: str, recorder: Callable, make_trainer: Callable, options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(max_steps=1).fit(recorder(block_size=8), datamodule=CharDataModule(text, **options))


def test_a_contradicting_accumulation_is_refused(text: str, recorder: Callable, make_trainer: Callable) -> None:
    trainer = make_trainer(max_steps=1, accumulate_grad_batches=3)
    with pytest.raises(UserError, match="accumulate_grad_batches 3 contradicts"):
        trainer.fit(recorder(block_size=8), datamodule=CharDataModule(text, tokens_per_step=64))


def test_without_validation_text_there_is_no_validation(text: str, recorder: Callable, make_trainer: Callable) -> None:
    data = CharDataModule(text, val_fraction=0.0)
    module = recorder(block_size=8)
    make_trainer(max_steps=2).fit(module, datamodule=data)
    assert len(module.seen["train"]) == 2
    assert module.seen["val"] == []
    with pytest.raises(UserError, match="no test split"):
        data.test_dataloader()
    with pytest.raises(UserError, match="no val split"):
        data.predict_dataloader()


def test_predict_source_is_read_with_the_runs_vocabulary(
    text: str, tmp_path: Path, recorder: Callable, make_trainer: Callable
) -> None:
    for name, content in (("a.txt", "abcabcabcabc"), ("b.txt", "xyz")):
        (tmp_path / name).write_text(content)
    data = CharDataModule(text, predict_source=str(tmp_path / "[ab].txt"), tokens_per_step=32)
    batches = make_trainer().predict(recorder(block_size=8), datamodule=data)
    documents = torch.cat([batch["document"] for batch in batches]).tolist()
    assert documents == [0, 0, 1, -1]
    assert data.tokenizer.decode(scored(batches)) == "bcabcabcabc" + "yz"


def test_rank_and_world_come_from_the_strategy(text: str) -> None:
    """Two ranks' batches together are the one process's batches."""

    def batches(rank: int, world: int) -> list[torch.Tensor]:
        data = CharDataModule(text, block_size=8, tokens_per_step=64)
        kwargs = {"rank": rank, "num_replicas": world}
        data.trainer = SimpleNamespace(distributed_sampler_kwargs=kwargs, overfit_batches=0)  # type: ignore[assignment]
        data.setup("validate")
        return [batch["input_ids"] for batch in data.train_dataloader()]

    halves = [torch.cat(pair) for pair in zip(batches(0, 2), batches(1, 2), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(halves, batches(0, 1), strict=True))


def test_a_base_class_is_named() -> None:
    with pytest.raises(UserError, match="TextDataModule is a base class without recipe: give one that has it"):
        TextDataModule()  # type: ignore[abstract]
