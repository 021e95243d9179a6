"""The strategies of Lightning that these modules cannot be trained with, and those to use instead."""

from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from datamodules.errors import UserError

#: How the names of Lightning's strategies that shard weights begin, without underscores, in lower case.
SHARDING = ("fsdp", "deepspeed", "modelparallel")
#: Our own strategy that shards weights (see `lit_gpt.strategies`), by its name and by its class.
OWN = ("fsdp2",)
#: Strategies to name to somebody who has typed one that does not exist.
CHOICES = ("auto", "ddp", "fsdp2", "ddp_notebook", "ddp_fork")


def name_of(strategy: Any) -> str:
    """The name in the option ``--trainer.strategy``: as it was typed, or that of the class that was chosen."""
    return str(strategy.class_path.rpartition(".")[2] if hasattr(strategy, "class_path") else strategy)


def refuse_name(name: str) -> None:
    """Raise a UserError for the name, or the class, of a strategy that shards weights or copies the run's objects.

    Without it, Lightning asks for a GPU or for another package first.
    """
    if name.lower().startswith("ddp_spawn"):
        raise UserError(
            f"trainer.strategy {name} starts processes that are handed the run's loggers and callbacks, which cannot "
            "be copied: use --trainer.strategy ddp, or ddp_notebook in a notebook."
        )
    if name.lower() not in OWN and name.lower().replace("_", "").startswith(SHARDING):
        raise _shards(name)


def refuse_strategy(strategy: Any) -> None:
    """Raise a UserError for a strategy of Lightning's that shards weights, in a Trainer that Python code has built."""
    is_own = type(strategy).__name__.lower() in OWN
    if not is_own and isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise _shards(type(strategy).__name__)


def _shards(name: str) -> UserError:
    return UserError(
        f"trainer.strategy {name} shards weights in a way that the optimizer's groups and the clipping cannot handle: "
        "use --trainer.strategy fsdp2, or ddp, which gives each device all weights."
    )
