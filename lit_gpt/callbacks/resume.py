"""Adds to a checkpoint what an exact resume needs and Lightning leaves out: random states and the accumulation."""

import random
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.agreement import Fact, check_agreement
from lit_gpt.integrity import step_of
from lit_gpt.loop_state import undo_epoch_end

Rng = dict[str, Any]
_FIX = (
    "let the machine with the right checkpoint have process 0, which sends it to the others, and move the other "
    "checkpoint away"
)
CHECKPOINT_FIXES = {"step to resume from": _FIX, "checkpoint to resume from": _FIX}


class ExactResume(Callback):
    """Saves the random state of every process, and lets a run resume with another number of processes.

    With the same number of processes, dropout draws the same masks as in a run without interruption. With another, the
    accumulation changes. Lightning counts micro-batches, so its counters are converted to give the same optimizer
    steps.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._resumed_from: dict[str, Fact] = {}

    def state_dict(self) -> dict[str, Any]:
        """The random states of all ranks, and the accumulation. All ranks must call it, because it gathers."""
        return {"random": _gather(random_state()), "accumulation": self._accumulation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts, because the first iterator may draw random numbers before that."""
        self._restored = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the accumulation that the datamodule derived."""
        self._accumulation = trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Convert Lightning's counters of micro-batches if the accumulation differs."""
        self._resumed_from = facts_of_checkpoint(Path(str(trainer.ckpt_path)), checkpoint["global_step"])
        stored = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn == "fit" and stored and stored["accumulation"] != trainer.accumulate_grad_batches:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for counters in (progress["current"], progress["total"]):
                _convert_counters(counters, stored["accumulation"], trainer.accumulate_grad_batches)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct the counters of a run whose training has stopped (see `undo_epoch_end`)."""
        undo_epoch_end(checkpoint, trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse processes that resume from different checkpoints, as two machines without a common disk may.

        Raises:
            DisagreementError: In every process.
        """
        check_agreement(self._resumed_from or facts_of_checkpoint(None), CHECKPOINT_FIXES)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random states, or seed each process differently: they must not have equal dropout masks."""
        _begin_the_next_epoch(trainer)
        states = self._restored["random"] if self._restored else []
        if len(states) == trainer.world_size:
            set_random_state(states[trainer.global_rank])
        elif trainer.world_size > 1:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        self._restored = None


def facts_of_checkpoint(path: Path | None, step: int | None = None) -> dict[str, Fact]:
    """What must be equal in all processes of a run that resumes, for `check_agreement`.

    Args:
        path: The checkpoint that this process resumes. None: it begins a new run.
        step: The number of the checkpoint's steps, if it is known.
    """
    if path is None:
        return dict.fromkeys(CHECKPOINT_FIXES, Fact("", "none (a new run)"))
    step = step_of(path) if step is None else step
    content = _checksum(path)
    return {
        "step to resume from": Fact(str(step), f"{step}, of {path},"),
        "checkpoint to resume from": Fact(content, f"{path} (step {step}, checksum {content})"),
    }


def _checksum(path: Path) -> str:
    """A checksum of a checkpoint's content, from the checksums in its index. Empty: the file has none."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as file:
        return f"{zlib.crc32(repr([(part.filename, part.CRC) for part in file.infolist()]).encode()):08x}"


def _begin_the_next_epoch(trainer: Trainer) -> None:
    """Make Lightning begin the next epoch, if the checkpoint was saved after the last batch of one.

    Lightning then counts that epoch as done, but behaves as in the middle of one: it would not count the next epoch as
    begun, and a resume from a checkpoint of the next epoch would repeat its batches.
    """
    loop = trainer.fit_loop
    done: Any = loop.epoch_progress.current
    if loop.restarted_mid_epoch and done.processed == done.ready:
        loop.reset_restart_stage()


def _convert_counters(counters: dict[str, int], old: int, new: int) -> None:
    """Convert counters of micro-batches from ``old`` per optimizer step to ``new``.

    A file that was saved inside Lightning's batch hook counts that batch as processed but not completed. That
    difference stays.
    """
    ready = -(-counters["ready"] // old) * new
    counters.update({k: ready - (counters["ready"] - v) for k, v in counters.items()})


def random_state() -> Rng:
    """The states of this process's random number generators."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Rng) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    cuda: Tensor | None = state.get("cuda")
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Afterwards the random number generators are as they were."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def _gather(state: Any) -> list[Any]:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
