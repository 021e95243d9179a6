"""LitGPT and LitBERT under a plain Trainer: the loss of a step, metrics, evaluation mode, resume, checkpoints."""

import ctypes
import math
import os
import platform
import resource
import signal
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, IterableDataset

from datamodules import BertDataModule, CharDataModule
from datamodules.errors import UserError
from lit_gpt import BertConfig, ExtendedGPTConfig, LitBERT, LitExtendedGPT, LitGPT
from lit_gpt.allocator import M_MMAP_THRESHOLD
from lit_gpt.callbacks.checkpoints import Interrupted, RunCheckpoints
from lit_gpt.callbacks.resume import ExactResume
from lit_gpt.config import GPTConfig
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.optim import OptimizerConfig

SMALL = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    defaults = {"devices": 1, "num_sanity_val_steps": 0, "max_epochs": -1, "default_root_dir": folder}
    return Trainer(**{**quiet, **defaults, "enable_checkpointing": False, **options})


def module(seed: int = 0, **options: Any) -> LitGPT:
    return module_of("gpt", seed, **options)  # type: ignore[return-value]


def module_of(network: str, seed: int = 0, **options: Any) -> LitLanguageModel:
    torch.manual_seed(seed)
    optimizer = OptimizerConfig(**{"kind": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, **options})
    if network == "bert":
        return LitBERT(BertConfig(**SMALL, vocab_size=20, dropout=0.0), optimizer)
    return LitGPT(GPTConfig(**SMALL, vocab_size=20, init="normal"), optimizer)


OF_EACH_KIND = pytest.mark.parametrize("kind", ["gpt", "bert"])


def rows(*scored: int) -> list[dict[str, torch.Tensor]]:
    """A batch of one row each with so many scored targets."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for count in scored:
        ids = torch.randint(20, (1, 17), generator=generator)
        targets = ids[:, 1:].clone()
        targets[:, count:] = -100
        batches.append({"input_ids": ids[:, :-1], "targets": targets, "attention_mask": torch.ones(1, 16).bool()})
    return batches


def rows_of(kind: str, *scored: int) -> list[dict[str, torch.Tensor]]:
    """The same for either kind of module: a BERT's scored targets are the inputs themselves, masked, and some rows have
    a label of a pair.
    """
    batches = rows(*scored)
    for number, batch in enumerate(batches if kind == "bert" else ()):
        masked = batch["targets"] != -100
        batch["targets"] = batch["input_ids"].where(masked, -100)
        batch["input_ids"] = batch["input_ids"].masked_fill(masked, 19)
        batch["token_type_ids"] = (torch.arange(16)[None] > 7).long()
        batch["next_sentence_label"] = torch.tensor([(0, 1, -100, 1)[number % 4]])
        batch["step_targets"] = torch.tensor([sum(scored)])
        batch["step_pairs"] = torch.tensor([sum(i % 4 != 2 for i in range(len(scored)))])
    return batches


def joined(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([b[name] for b in batches]) for name in batches[0]}


def weights_after_a_step(
    batches: list[dict[str, torch.Tensor]], folder: Path, kind: str = "gpt", **options: Any
) -> list[torch.Tensor]:
    model = module_of(kind)
    trainer(folder, max_steps=1, **options).fit(model, DataLoader(batches, batch_size=None))
    return [p.detach() for p in model.parameters()]


@OF_EACH_KIND
def test_the_loss_of_a_step_weighs_tokens_not_micro_batches(kind: str, tmp_path: Path) -> None:
    uneven = rows_of(kind, 16, 3, 9, 1)
    together = weights_after_a_step([joined(uneven)], tmp_path, kind)
    accumulated = weights_after_a_step(uneven, tmp_path, kind, accumulate_grad_batches=4)
    # the epoch ends before the window does
    short = weights_after_a_step(uneven, tmp_path, kind, accumulate_grad_batches=7)
    for a, b, c in zip(together, accumulated, short, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


@OF_EACH_KIND
def test_training_on_a_packed_row_is_training_on_its_documents_alone(kind: str) -> None:
    model = module_of(kind)
    model.config.next_sentence = False  # a packed row is no pair
    model.configure_model()
    for parameter in model.train().net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    per_row = ("next_sentence_label", "step_targets", "step_pairs")
    row = {name: value for name, value in rows_of(kind, 16)[0].items() if name not in per_row}
    documents = {"document_ids": torch.tensor([[0] * 7 + [1] * 9], dtype=torch.int32)}
    alone = [{name: value[:, cut] for name, value in row.items()} for cut in (slice(7), slice(7, None))]
    torch.testing.assert_close(model.objective(row | documents)[0], sum(model.objective(one)[0] for one in alone))


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_gradients_are_clipped_and_the_norm_is_that_before(tmp_path: Path, kind: str) -> None:
    start = module()
    start.configure_model()
    model = module(lr=1.0, schedule="constant")
    clipping = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": kind}
    trainer(tmp_path, max_steps=1, **clipping).fit(model, DataLoader(rows(16), batch_size=None))
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    moved = torch.cat([(p - old).detach().flatten() for p, old in pairs])
    assert (moved.norm() if kind == "norm" else moved.abs().max()) == pytest.approx(1e-3, rel=1e-2)
    assert kind == "value" or model.grad_norm > 0.01


@pytest.mark.parametrize("limit", [-1.0, 0.0])
@pytest.mark.parametrize("kind", ["norm", "value"])
def test_a_limit_of_nothing_clips_nothing(kind: str, limit: float, tmp_path: Path) -> None:
    clipping = {"gradient_clip_val": limit, "gradient_clip_algorithm": kind}
    clipped, plain = (weights_after_a_step(rows(16), tmp_path, **options) for options in (clipping, {}))
    torch.testing.assert_close(clipped, plain, rtol=0, atol=0)


@OF_EACH_KIND
def test_pads_do_not_change_a_step(kind: str, tmp_path: Path) -> None:
    one = rows_of(kind, 16)
    empty = {name: torch.zeros_like(value) for name, value in one[0].items()}
    for name in empty.keys() & {"targets", "next_sentence_label"}:
        empty[name] -= 100
    alone, beside = (weights_after_a_step([batch], tmp_path, kind) for batch in (one[0], joined([*one, empty])))
    for a, b in zip(alone, beside, strict=True):
        torch.testing.assert_close(a, b)


def test_initial_loss_is_near_the_logarithm_of_the_vocabulary() -> None:
    model = module()
    model.configure_model()
    batch = joined(rows(16, 16, 16, 16))
    assert model.batch_cross_entropy(batch, model.net).item() / 64 == pytest.approx(math.log(20), abs=0.1)


def test_evaluation_is_in_eval_mode_and_training_is_not(tmp_path: Path, text: Path) -> None:
    model = LitGPT(GPTConfig(**SMALL, dropout=0.5, init="normal"))
    data = CharDataModule(str(text), tokens_per_step=128)
    runner = trainer(tmp_path, max_steps=4, val_check_interval=4, check_val_every_n_epoch=None)
    runner.fit(model, datamodule=data)
    logged = float(runner.callback_metrics["val/loss"])
    assert model.training
    by_hand = mean_loss(model.eval(), data)
    assert logged == pytest.approx(by_hand, abs=1e-5)
    assert abs(mean_loss(model.train(), data) - by_hand) > 1e-3


@torch.no_grad()
def mean_loss(model: LitGPT, data: CharDataModule) -> float:
    nats = tokens = 0.0
    for batch in data.val_dataloader()[0]:
        nats += float(model.batch_cross_entropy(batch, model.net))
        tokens += float((batch["targets"] != -100).sum())
    return nats / tokens


def test_train_and_val_are_measured_by_the_same_code(tmp_path: Path, text: Path) -> None:
    data = CharDataModule(str(text), val_source=str(text), tokens_per_step=128, train_eval_rows=10**6)
    runner = trainer(tmp_path, max_steps=2, val_check_interval=2, check_val_every_n_epoch=None)
    runner.fit(LitGPT(GPTConfig(**SMALL)), datamodule=data)
    metrics = runner.callback_metrics
    for name in ("loss", "top1", "top5", "bpb", "nats_per_char"):
        assert float(metrics[f"val/{name}"]) == pytest.approx(float(metrics[f"train_eval/{name}"]), rel=1e-5)


def test_what_validate_and_test_find_is_returned(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = LitGPT(GPTConfig(**SMALL)), CharDataModule(str(text), test_fraction=0.1, tokens_per_step=128)
    runner = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    runner.fit(model, datamodule=data)
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(CSVLogger, "log_metrics", lambda _, metrics, step: logged.append(metrics))
    for logger, times in ((CSVLogger(tmp_path), 1), (False, 0)):
        runner = trainer(tmp_path, logger=logger)
        for evaluate, split in ((runner.validate, "val"), (runner.test, "test")):
            found = evaluate(model, datamodule=data, verbose=False)[0]
            assert {f"{split}/{name}" for name in ("loss", "perplexity", "top1", "bpb")} <= found.keys()
            assert found[f"{split}/loss"] == float(runner.callback_metrics[f"{split}/loss"])
            assert len([row for row in logged if f"{split}/loss" in row]) == times
        logged.clear()


def test_a_checkpoint_is_enough(tmp_path: Path, text: Path) -> None:
    model = LitGPT(GPTConfig(**SMALL))
    runner = trainer(tmp_path, max_steps=2)
    runner.fit(model, datamodule=CharDataModule(str(text), tokens_per_step=128))
    path = tmp_path / "a.ckpt"
    runner.save_checkpoint(path)
    text.unlink()
    again = LitGPT.load_from_checkpoint(path, weights_only=True)
    assert again.config == model.config
    ids = torch.arange(10)[None]
    torch.testing.assert_close(again.net.eval()(ids), model.net.eval()(ids), rtol=0, atol=0)
    stored = torch.load(path, weights_only=True)
    assert stored["lit_gpt"]["format"] == 2
    assert not [key for key in stored["state_dict"] if "_orig_mod" in key]


def test_a_loaded_or_trained_network_refuses_data_of_other_tokens(tmp_path: Path, text: Path) -> None:
    def data(find: str, replacement: str) -> CharDataModule:
        path = tmp_path / f"{find}{replacement}.txt"
        path.write_text(text.read_text().replace(find, replacement))
        return CharDataModule(str(path), tokens_per_step=128, micro_batch_size=8)

    model, runner = LitGPT(GPTConfig(**SMALL)), trainer(tmp_path, max_steps=1)
    runner.fit(model, datamodule=data("the", "the"))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LitGPT.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    trainer(tmp_path).validate(loaded, datamodule=data("the", "eth"), verbose=False)
    for known in (model, loaded):
        with pytest.raises(UserError, match="the data's tokenizer differs from the one that the network"):
            trainer(tmp_path).validate(known, datamodule=data("h", "q"))
    with pytest.raises(UserError, match="the data's tokenizer differs from the one that the network"):
        trainer(tmp_path, max_steps=2).fit(loaded, datamodule=data("the", "t"))


def test_a_network_refuses_data_of_a_larger_vocabulary(tmp_path: Path, text: Path) -> None:
    model = module()
    model.configure_model()
    text.write_text(text.read_text() + string.ascii_letters)
    with pytest.raises(UserError, match=r"the data has \d+ tokens and the network knows 20: give the data"):
        trainer(tmp_path).validate(model, datamodule=CharDataModule(str(text), tokens_per_step=128))


KINDS: list[tuple[str, int, dict[str, float]]] = [
    ("adamw", 1, {}),
    ("muon", 2, {}),
    ("muon", 2, {"r_drop": 1.0}),
    ("muon", 2, {"r_drop": 1.0, "r_drop_start": 0.5}),
    ("bert", 2, {}),
]
#: Of every kind of length with every step one case; of KINDS each once.
QUICK = [(0, False, 5), (1, True, 5), (2, False, 8), (3, True, 8), (4, False, 5)]
CASES = [
    pytest.param(*KINDS[i], epochs, saved, marks=[] if (i, epochs, saved) in QUICK else pytest.mark.slow)
    for i, epochs, saved in product(range(len(KINDS)), (False, True), (5, 8))
]


@pytest.mark.parametrize(("kind", "accumulation", "options", "epochs", "saved"), CASES)
def test_a_resumed_run_equals_a_straight_one(
    tmp_path: Path, text: Path, kind: str, accumulation: int, options: dict[str, float], epochs: bool, saved: int
) -> None:
    length = {"max_epochs": 2, "limit_train_batches": 6 * accumulation} if epochs else {"max_steps": 12}

    def run(steps: int, resume: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(7)
        optimizer = OptimizerConfig(kind="adamw" if kind == "bert" else kind, lr=0.01, warmup=3)
        size = {"tokens_per_step": 128, "micro_batch_size": 8 // accumulation}
        if kind == "bert":
            model: Any = LitBERT(BertConfig(**SMALL, dropout=0.2), optimizer)
            data: Any = BertDataModule(str(text), vocab_size=100, **size)
        else:
            model = LitExtendedGPT(ExtendedGPTConfig(**SMALL, dropout=0.2), optimizer, **options)
            data = CharDataModule(str(text), **size)
        # The schedule must see 12 steps in every part, so parts end by a stop, not by max_steps.
        watchers = {"callbacks": [ExactResume(), Stop(steps)], "enable_checkpointing": True}
        runner = trainer(tmp_path, val_check_interval=4, check_val_every_n_epoch=None, **length, **watchers)
        runner.fit(model, datamodule=data, ckpt_path=resume)
        return model.state_dict()

    straight = run(12)
    run(saved)
    torch.manual_seed(99)
    resumed = run(12, tmp_path / "part.ckpt")
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


class AskToStop(Callback):
    """Wants to stop after the first of two micro-batches, as a clock may."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == 8:
            trainer.should_stop = True


def test_a_run_that_time_stops_between_micro_batches_goes_on_exactly(tmp_path: Path, text: Path) -> None:
    def run(*callbacks: Callback, resume: Path | None = None) -> LitGPT:
        torch.manual_seed(7)
        model = LitGPT(GPTConfig(**SMALL), OptimizerConfig(lr=0.01))
        data = CharDataModule(str(text), val_fraction=0.0, tokens_per_step=128, micro_batch_size=4)
        watchers = [ExactResume(), RunCheckpoints(monitor=None), *callbacks]
        runner = trainer(tmp_path, max_steps=12, enable_checkpointing=True, callbacks=watchers)
        runner.fit(model, datamodule=data, ckpt_path=resume)
        return model

    straight = run().state_dict()
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.unlink()
    run(AskToStop())
    assert torch.load(last, weights_only=True)["global_step"] == 5
    torch.testing.assert_close(run(resume=last).state_dict(), straight, rtol=0, atol=0)


def test_a_run_whose_batches_nobody_can_count_needs_its_steps(tmp_path: Path) -> None:
    endless = DataLoader(Endless(), batch_size=None)
    with pytest.raises(UserError, match="the cosine schedule needs an end"):
        trainer(tmp_path, max_epochs=1).fit(LitGPT(GPTConfig(**SMALL, vocab_size=20)), endless)


def test_a_constant_schedule_warms_up_over_a_share_of_the_run(tmp_path: Path) -> None:
    rates: list[float] = []
    seen = LambdaCallback(
        on_train_batch_start=lambda trainer, *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    )
    model = module(schedule="constant", warmup=0.5, lr=1.0)
    trainer(tmp_path, max_steps=8, callbacks=[seen]).fit(model, DataLoader(rows(*[16] * 8), batch_size=None))
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy])
def test_a_strategy_that_cuts_weights_is_refused_before_data_is_prepared(kind: type) -> None:
    model = module()
    model._trainer = SimpleNamespace(strategy=kind(), callbacks=[])  # type: ignore[assignment]
    with pytest.raises(UserError, match=rf"{kind.__name__} shards weights .*: use --trainer\.strategy fsdp2, or ddp, "):
        model.configure_callbacks()


@pytest.mark.parametrize("strategy", ["ddp_notebook", "ddp_fork"])
def test_forked_processes_give_the_notebook_the_network_that_they_trained(
    strategy: str, text: Path, tmp_path: Path
) -> None:
    trained = []
    for options in ({"devices": 2, "strategy": strategy}, {"devices": 1}):
        torch.manual_seed(0)
        model = LitGPT(GPTConfig(**SMALL))  # its vocabulary is not known before the data is
        data = CharDataModule(str(text), tokens_per_step=128, seed=0)
        # In float64, because the 16 bits of Muon's steps in float32 make a rounding error of 1e-8 one of 1e-4.
        options |= {"precision": "64-true", "use_distributed_sampler": False}
        trainer(tmp_path, max_steps=3, **options).fit(model, data)
        trained.append(model)
    weights = [{name: p.float() for name, p in model.net.named_parameters()} for model in trained]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-7)
    assert trained[0].hparams == trained[1].hparams
    assert "config" not in trained[0].state_dict()


class Endless(IterableDataset[dict[str, torch.Tensor]]):
    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from rows(16)


def test_a_second_fit_has_forgotten_the_signal_of_the_first(tmp_path: Path) -> None:
    def signalled(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    saves, batches = RunCheckpoints(monitor=None), DataLoader(rows(*[16] * 4), batch_size=None)
    for callbacks, steps in (([saves, LambdaCallback(on_train_batch_start=signalled)], 2), ([saves], 4)):
        runner = trainer(tmp_path, max_steps=4, callbacks=callbacks, enable_checkpointing=True)
        with pytest.raises(Interrupted) if steps == 2 else nullcontext():
            runner.fit(LitGPT(GPTConfig(**SMALL, vocab_size=20)), batches)
        assert runner.global_step == steps


class Passes(Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.seen.append(pl_module.passes)


class Stop(RunCheckpoints):
    """Saves at the boundary of one step and leaves there."""

    def __init__(self, step: int) -> None:
        super().__init__(monitor=None)
        self.step = step

    def _at_boundary(self, trainer: Trainer, validated: bool = False) -> None:
        if trainer.global_step == self.step and self.step < 12:
            trainer.save_checkpoint(self.folder.parent / "part.ckpt")
            trainer.should_stop = True


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    model = module(lr=1e30)
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step [2-9]"):
        trainer(tmp_path, max_steps=20).fit(model, DataLoader(rows(*[16] * 20), batch_size=None))


@pytest.mark.parametrize(
    ("precision", "hardware", "told"),
    [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)],
)
def test_emulated_bfloat16_is_told(
    precision: str,
    hardware: bool,
    told: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lit_gpt.language_model.has_bfloat16", lambda _: hardware)
    trainer(tmp_path, max_steps=1, precision=precision).fit(module(), DataLoader(rows(16), batch_size=None))
    assert ("no bfloat16 instructions" in capsys.readouterr().out) is told


def test_an_endless_run_needs_a_constant_rate(tmp_path: Path, text: Path) -> None:
    with pytest.raises(UserError, match="the cosine schedule needs an end"):
        trainer(tmp_path).fit(LitGPT(GPTConfig(**SMALL)), datamodule=CharDataModule(str(text), tokens_per_step=128))


def test_a_vocabulary_smaller_than_the_data_is_refused(tmp_path: Path, text: Path) -> None:
    model = LitGPT(GPTConfig(**SMALL, vocab_size=3))
    with pytest.raises(UserError, match="vocab_size 3 is smaller than the data's"):
        trainer(tmp_path, max_steps=1).fit(model, datamodule=CharDataModule(str(text), tokens_per_step=128))


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd", "torch.optim.AdamW"])
def test_a_step_without_scored_targets_changes_and_logs_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, float]] = []
    monkeypatch.setattr(LitGPT, "log_now", lambda _, values, step: logged.append((step, float(values["train/loss"]))))

    def after(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        model = module(kind=kind, momentum=0.9, weight_decay=0.5, schedule="constant")
        steps, options = len(batches) // 2, {"log_every_n_steps": 1, "gradient_clip_val": 1.0}
        runner = trainer(tmp_path, max_steps=steps, accumulate_grad_batches=2, **options)
        runner.fit(model, DataLoader(batches, batch_size=None))
        return model.state_dict()

    full, empty = rows(16, 9), rows(0, 0)
    assert all(torch.equal(value, after(empty)[name]) for name, value in initial().items())
    assert not logged
    without, with_empty = after([*full, *full]), after([*empty, *full, *empty, *full, *empty])
    assert [step for step, _ in logged] == [1, 2, 2, 4]
    assert [loss for _, loss in logged[:2]] == [loss for _, loss in logged[2:]]
    for name, value in without.items():
        assert torch.equal(value, with_empty[name]), name


def initial() -> dict[str, torch.Tensor]:
    model = module()
    model.configure_model()
    return model.state_dict()


def faults_of_64_mib() -> int:
    """The fewest page faults of writing a tensor of 64 MiB, 16,384 pages, in four times.

    New memory costs one fault a page, or one for several pages, as the kernel likes. In one of the four something
    small may have taken the place behind the memory that the last one freed.
    """
    counts = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)


def keep_memory(folder: Path) -> None:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**25)  # where glibc's own adaptation ends
    before = faults_of_64_mib()
    trainer(folder, max_steps=1).fit(module(), DataLoader(rows(16), batch_size=None))
    assert faults_of_64_mib() < before / 16


@pytest.mark.slow  # a process of its own: what other tests have freed decides how many faults there are
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_trainer_keeps_the_memory_that_a_step_frees(tmp_path: Path) -> None:
    call = f"from tests.lit_gpt.test_language_model import *; keep_memory(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", call], check=True)
