"""What Lightning leaves out of a checkpoint and an exact resume needs: random numbers and the unit of its counters."""

import random
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.errors import UserError
from lit_gpt.loop_state import inside_its_epoch

Rng = dict[str, Any]


class ExactResume(Callback):
    """Keeps the random numbers of every process, and lets a run go on with another number of processes.

    Dropout masks continue where they were when the number of processes is the same. Lightning counts micro-batches;
    when accumulation changes with the number of processes, its counters are restated so that the optimizer steps
    agree.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._goes_on_from: tuple[str, int, int | None] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Random states by rank, and the accumulation in force. Runs on all ranks, since it gathers."""
        return {"random": _gather(random_state()), "accumulation": self._accumulation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: making the first iterator may draw numbers."""
        self._restored = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the accumulation that the datamodule derived."""
        self._accumulation = trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restate Lightning's counters of micro-batches when the accumulation differs."""
        path = str(trainer.ckpt_path)
        self._goes_on_from = (path, checkpoint["global_step"], _contents(path))
        stored = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn == "fit" and stored and stored["accumulation"] != trainer.accumulate_grad_batches:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for counters in (progress["current"], progress["total"]):
                _restate(counters, stored["accumulation"], trainer.accumulate_grad_batches)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restate the counters of a run that has ended."""
        inside_its_epoch(checkpoint, trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse processes that go on from different states, as two machines without a shared disk may.

        Raises:
            UserError: on all of them.
        """
        places = _gather(self._goes_on_from)
        if len({place and place[1:] for place in places}) > 1:
            raise UserError(
                f"the processes do not go on from the same checkpoint ({_listed(places)}): put one file where all "
                "machines see it and give it as --ckpt_path, or start a new run on all of them."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the stored random numbers, or give every process its own (equal dropout masks on all would be
        wrong).
        """
        _begin_the_next_epoch(trainer)
        states = self._restored["random"] if self._restored else []
        if len(states) == trainer.world_size:
            set_random_state(states[trainer.global_rank])
        elif trainer.world_size > 1:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        self._restored = None


def _contents(path: str) -> int | None:
    """A number that changes with what a checkpoint holds, from the checksums in its index."""
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as file:
        return zlib.crc32(repr([(part.filename, part.CRC) for part in file.infolist()]).encode())


def _listed(places: list[Any]) -> str:
    told = ["a new run" if place is None else f"step {place[1]} of {place[0]}" for place in places]
    return ", ".join(f"process {rank}: {what}" for rank, what in enumerate(told))


def _begin_the_next_epoch(trainer: Trainer) -> None:
    """Where the file was saved after an epoch's last batch, Lightning counts that epoch as done and yet takes itself to
    be inside one: it would not count the next as begun, and a file of that one would read its batches again.
    """
    loop = trainer.fit_loop
    done: Any = loop.epoch_progress.current
    if loop.restarted_mid_epoch and done.processed == done.ready:
        loop.reset_restart_stage()


def _restate(counters: dict[str, int], old: int, new: int) -> None:
    """Micro-batches of whole optimizer steps, from ``old`` a step to ``new`` a step.

    A file saved inside Lightning's batch hook counts that batch as processed and not yet completed; that gap is kept.
    """
    whole = -(-counters["ready"] // old) * new
    counters.update({k: whole - (counters["ready"] - v) for k, v in counters.items()})


def random_state() -> Rng:
    """Where this process's generators are."""
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
    """Take up what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    cuda: Tensor | None = state.get("cuda")
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


def _gather(state: Any) -> list[Any]:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
