"""`--data.micro_batch_size auto`, and what to type when a run is out of memory."""

import os
from typing import Any

from datamodules.errors import UserError
from lit_gpt.cli.trial_steps import largest, sizes
from lit_gpt.integrity import advice_to_continue
from lit_gpt.language_model import LitLanguageModel, print_rank_zero
from lit_gpt.strategies import FSDP2

#: Environment variable in which rank 0 passes the number to the processes that it starts.
VARIABLE = "LIT_GPT_MICRO_BATCH"


def settle(cli: Any) -> None:
    """Replace ``auto`` by a number, in the data, in config.yaml and in the checkpoints to come.

    A resumed run takes that of its checkpoint.
    """
    data = cli.datamodule
    if not getattr(data, "finds_micro_batch", False):
        return
    rows = _known(cli) or _found(cli)
    os.environ[VARIABLE] = str(rows)
    data.use_micro_batch_size(rows)
    cli.config.fit.data.init_args.micro_batch_size = rows
    cli.folder_callback.config = cli.resolved_config()
    print_rank_zero([f"micro-batches of {rows} rows (--data.micro_batch_size auto)"])


def _known(cli: Any) -> int | None:
    """The number that rank 0 found, or that of the run that is resumed."""
    if cli.trainer.global_rank and VARIABLE in os.environ:
        return int(os.environ[VARIABLE])
    options = (cli.stored.get("data") or {}).get("init_args") or {}
    stored = options.get("micro_batch_size")
    return stored if isinstance(stored, int) else None


def _found(cli: Any) -> int:
    if not isinstance(cli.model, LitLanguageModel):
        raise UserError(f"micro_batch_size auto cannot try steps of a {type(cli.model).__name__}: give a number.")
    if cli.trainer.world_size > 1 and not cli.trainer.strategy.launcher:
        raise UserError(
            "micro_batch_size auto is tried before the processes meet, which torchrun and srun start at once: give a "
            "number, that of a run with one process."
        )
    if isinstance(cli.trainer.strategy, FSDP2):
        raise UserError(
            "micro_batch_size auto tries steps of one process with all weights, and fsdp2 shards them: give a number."
        )
    return largest(cli.model, cli.datamodule, cli.trainer)


def fix(cli: Any) -> str | None:
    """What to type for a run that began and is out of memory. None: it did not begin, or its rows are unknown."""
    folder = cli.folder_callback
    if folder is None or not folder.began or not hasattr(cli.datamodule, "step_size"):
        return None
    step = cli.datamodule.step_size
    fewer = next((rows for rows in sizes(step.micro * step.accumulation, 1) if rows < step.micro), None)
    typed = f"--data.micro_batch_size {fewer}" if fewer else "--model.activation_checkpointing true"
    can_checkpoint = cli.config.fit.model.init_args.get("activation_checkpointing") is False  # true: it does already
    if fewer is None and not can_checkpoint:
        return "a step has one row at a time already, so lower --model.config.block_size or the size of the network"
    # Under torchrun only rank 0 knows the folder.
    rest = "go on with --resume auto" if cli.trainer.global_rank else advice_to_continue(str(folder.folder))
    return f"add {typed}, which changes no result, and {rest}"
