"""Trains tiny networks by a strategy, and notes losses and weights: what tests/test_fsdp2.py compares."""

import os
import resource
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision

from datamodules import CharDataModule, HeadlinesDataModule
from lit_gpt import GPTConfig, LitExtendedGPT, LitGPT, OptimizerConfig
from lit_gpt.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoints
from lit_gpt.callbacks.resume import ExactResume
from lit_gpt.methods.config import ExtendedGPTConfig
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


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job: the losses and norms by step, and where its checkpoint is."""
    seed_everything(job.get("seed", 1), verbose=False)
    notes, extended = Notes(), job.get("extended", {})
    config, module = (ExtendedGPTConfig, LitExtendedGPT) if extended else (GPTConfig, LitGPT)
    optimizer = OptimizerConfig(**{"lr": 1e-2, "schedule": "constant", **job.get("optimizer", {})})
    network = {**NETWORK, **job.get("network", {})}
    options = {name: value for name, value in extended.items() if name != "config"}
    model = module(config(**network), optimizer, **options, **job.get("module", {}))
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=text(**data), ckpt_path=job.get("resume"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes, on Linux
    return {"losses": notes.losses, "norms": notes.norms, "val": notes.val, "peak": peak}


def _callback(spec: dict[str, Any]) -> Callback:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    from lit_gpt.callbacks.samples import SampleText
    from lit_gpt.callbacks.throughput import Throughput

    kinds = {"ema": EMAWeightAveraging, "samples": SampleText, "throughput": Throughput}
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
