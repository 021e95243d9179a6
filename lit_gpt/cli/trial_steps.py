"""Finds the largest micro-batch that fits into the memory, by steps of a copy that the run never sees."""

import copy
import gc
import sys
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from datamodules.errors import UserError
from lit_gpt.averaging import averages_of
from lit_gpt.bounds import is_out_of_memory
from lit_gpt.callbacks.resume import random_state_kept
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.optim import build_optimizer
from lit_gpt.protocols import Batch, with_defaults

#: Share of a GPU's memory that a trial leaves free, for what a run has besides its steps, and for gaps.
MARGIN = 0.05


def sizes(rows: int, processes: int) -> list[int]:
    """The micro-batches that a step of ``rows`` can consist of, in rows of one process, the largest first."""
    share, rest = divmod(rows, processes)
    return [] if rest else [micro for micro in range(share, 0, -1) if share % micro == 0]


def largest(module: LitLanguageModel, data: Any, trainer: Trainer) -> int:
    """The most rows of a process that a forward and backward pass of a run can have.

    Weights, optimizer, loader and random states of the run are as before: the steps are of copies.

    Args:
        module: The module, before its network is built.
        data: A `TextDataModule`, before its ``setup``.
        trainer: Decides device, precision and the number of processes.

    Raises:
        UserError: Not even one row fits, or the processes cannot share the rows of a step.
    """
    rows = copy.deepcopy(data)
    rows.block_size = rows.block_size or module.config.block_size
    with random_state_kept():
        rows.prepare_data()
        rows.setup()
        step = rows.step_of(rows.block_size, trainer.world_size).rows
        possible = sizes(step, trainer.world_size)
        low, high = 0, len(possible)  # the first that fits is in possible[low : high + 1]
        middle = 0  # often everything fits
        while low < high:
            if _fits(module, rows, trainer, possible[middle]):
                high = middle
            else:
                low = middle + 1
            middle = (low + high) // 2
    if low == len(possible):
        raise UserError(
            "not even one row fits into the memory: lower --model.config.block_size or the size of the network, or set "
            "--model.activation_checkpointing true."
        )
    return possible[low]


def _fits(module: LitLanguageModel, data: Any, trainer: Trainer, micro: int) -> bool:
    """Whether steps with micro-batches of this many rows fit."""
    try:
        steps(module, data, trainer, micro)
        fitted = True
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fitted = False
    if "torch._dynamo" in sys.modules:  # importing it takes a second
        # torch.compile makes code for any number of rows once it has seen two numbers. The run would take that code,
        # which is slower than code for its own number and may round otherwise.
        torch.compiler.reset()
    # Only now are the tensors gone that the error's frames held.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # of which the run logs its own
    return fitted


def steps(module: LitLanguageModel, data: Any, trainer: Trainer, micro: int) -> None:
    """Two optimizer steps and an evaluation of copies, with as much memory in use as in a run."""
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    trial, rows = copy.deepcopy(module), copy.deepcopy(data)
    trial.complete_config(with_defaults(data))
    rows.use_micro_batch_size(micro)
    batch: Batch = {name: value.to(device) for name, value in next(iter(rows.train_dataloader())).items()}
    with device:
        trial.configure_model()
    precision.convert_module(trial).to(device)
    trial.net.prepare(with_defaults(rows))
    trial.prepare_trial()
    _held = [*_margin(device), *_buckets(trial, trainer.world_size), *_averages(trial, trainer)]
    optimizer = build_optimizer(trial.net, trial.optimizer_config)
    for _ in range(2):  # the second has the optimizer's state from the start
        for _ in range(2):  # the second has gradients from the start
            with precision.forward_context():
                loss, _ = trial.objective(batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    trial.eval()
    with torch.no_grad(), precision.forward_context():
        trial.token_scores(batch)


def _margin(device: torch.device) -> list[Tensor]:
    if device.type != "cuda":
        return []
    total = torch.cuda.get_device_properties(device).total_memory
    return [torch.empty(int(MARGIN * total), dtype=torch.uint8, device=device)]


def _averages(trial: LitLanguageModel, trainer: Trainer) -> list[LitLanguageModel]:
    """What the Trainer's averages of the weights hold on their device."""
    return [copy.deepcopy(trial).to(average._device or trial.device) for average in averages_of(trainer)]


def _buckets(trial: LitLanguageModel, processes: int) -> list[Tensor]:
    """What DDP sends gradients in."""
    return [torch.empty_like(p) for p in trial.parameters() if p.requires_grad] if processes > 1 else []
