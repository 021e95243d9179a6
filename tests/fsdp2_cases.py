"""Trains tiny networks by a strategy, and notes losses and weights: what tests/test_fsdp2.py compares."""

import os
import resource
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from datamodules import CharDataModule, HeadlinesDataModule
from lit_gpt import GPTConfig, LitExtendedGPT, LitGPT, OptimizerConfig
from lit_gpt.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoints
from lit_gpt.callbacks.resume import ExactResume
from lit_gpt.distributed import local
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.protocols import Network
from tests.processes import on_processes

NETWORK = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "pad_vocab_to": 7}


class Notes(Callback):
    """Loss and gradient norm of each step, and val/loss of each validation, in the precision of the run."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.norms: dict[int, float] = {}
        self.val: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.losses[trainer.global_step] = float(pl_module.step_loss)
            self.norms[trainer.global_step] = float(pl_module.grad_norm or 0)  # none where values are clipped

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.val[trainer.global_step] = float(trainer.callback_metrics["val/loss"])


@dataclass
class RecurrentConfig:
    block_size: int = 16
    vocab_size: int | None = None


class Recurrent(Network):
    """A network of a user's own, with initial weights that only a whole network can have."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size or 0, 16)
        self.layers = nn.ModuleList(nn.GRU(16, 16, batch_first=True) for _ in range(2))
        self.out = nn.Linear(16, config.vocab_size or 0)
        nn.init.orthogonal_(self.out.weight)

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = x + layer(x)[0]
        return x

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        return nn.functional.linear(hidden, *(weights or self.head_weights()))

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        return list(self.out.parameters())


class LitRecurrent(LitLanguageModel):
    config_class = RecurrentConfig

    def build_network(self) -> Network:
        return Recurrent(self.config)


class Spoil(Callback):
    """Makes a weight in the last rows NaN, at the end of a step: in the last process alone."""

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 3 and trainer.global_rank == trainer.world_size - 1:
            local(pl_module.net.wte.weight)[-1, -1] = torch.nan


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job: the losses and norms by step, and where its checkpoint is."""
    torch.manual_seed(1)  # not Lightning's function, which sets a variable of the environment for later tests
    notes, extended = Notes(), job.get("extended", {})
    config, module = (ExtendedGPTConfig, LitExtendedGPT) if extended else (GPTConfig, LitGPT)
    optimizer = OptimizerConfig(**{"lr": 1e-2, "schedule": "constant", **job.get("optimizer", {})})
    network = {**NETWORK, **job.get("network", {})}
    model: Any = module(config(**network), optimizer, **extended, **job.get("module", {}))
    if job.get("own"):
        model = LitRecurrent(RecurrentConfig(), optimizer)
    data = {"num_workers": 0, "tokens_per_step": 8 * 16, "seed": 1, **job.get("data", {})}
    text = HeadlinesDataModule if "rows" in data else CharDataModule
    callbacks: list[Callback] = [notes, RunCheckpoints(every_n_steps=100), ExactResume()]
    more = [_callback(spec) for spec in job.get("callbacks", [])]
    # Lightning's command line gives a CPU no 16-mixed; its plugin does
    half = [MixedPrecision("16-mixed", "cpu")] if job.get("half") else []
    trainer = Trainer(
        **{
            **{"accelerator": "cpu", "max_epochs": -1, "max_steps": 20, "val_check_interval": 10},
            **{"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0},
            **{"use_distributed_sampler": False, "check_val_every_n_epoch": None, "log_every_n_steps": 1},
            **{"default_root_dir": job["folder"], "plugins": [AtomicCheckpointIO(), *half], "precision": "64-true"},
            **{"devices": job["devices"], "strategy": job["strategy"], "callbacks": [*callbacks, *more]},
            **job.get("trainer", {}),
        }
    )
    text_data = text(**data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=text_data, ckpt_path=job.get("resume"))
        if more := job.get("and_then"):  # a test, and a longer fit
            trainer.test(model, datamodule=text_data, verbose=False)
            trainer.fit_loop.epoch_loop.max_steps = more
            trainer.fit(model, datamodule=text_data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes, on Linux
    return {"losses": notes.losses, "norms": notes.norms, "val": notes.val, "peak": peak}


def _callback(spec: dict[str, Any]) -> Callback:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    from lit_gpt.averaging import TailAverage
    from lit_gpt.callbacks.samples import SampleText
    from lit_gpt.callbacks.throughput import Throughput

    kinds: dict[str, Any] = {"spoil": Spoil, "ema": EMAWeightAveraging, "tail": TailAverage}
    kinds |= {"samples": SampleText, "throughput": Throughput}
    return kinds[spec["kind"]](**{name: value for name, value in spec.items() if name != "kind"})


def in_processes(jobs: list[dict[str, Any]], folder: Path, count: int = 2) -> list[dict[str, Any]]:
    """Run jobs one after the other, each in all of some processes. Returns what `train` does on rank 0."""
    folder.mkdir(exist_ok=True)
    results: Any = on_processes(count, lambda rank: _as_rank(jobs, rank, count), folder)
    return results[0]  # type: ignore[no-any-return]


def _as_rank(jobs: list[dict[str, Any]], rank: int, count: int) -> list[dict[str, Any]]:
    """Do the jobs in a process that Lightning takes for one of torchrun's."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    place |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "tests"}
    os.environ.update({name: str(value) for name, value in place.items()})
    return [train(job) for job in jobs]
