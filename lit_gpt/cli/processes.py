"""Refuses, before anything is built, processes that Lightning would start in vain or wait for."""

import os
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import StrategyRegistry

from datamodules.errors import UserError
from lit_gpt.cli.suggest import unknown
from lit_gpt.strategy_names import CHOICES, OWN, name_of, refuse_name

LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
#: What each machine must know, if no launcher sets it: the number of the machine, and where the first one listens.
OF_MACHINES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_processes(trainer: Namespace) -> None:
    """Refuse strategies that cannot work, and more processes than a machine can start.

    Args:
        trainer: The options of the Trainer.
    """
    _check_numbers(trainer)
    _check_strategy(trainer.strategy)


def _check_numbers(trainer: Namespace) -> None:
    """Refuse more processes than a machine can start: they would make it unusable."""
    most = max(64, 4 * (os.cpu_count() or 1))
    devices = int(trainer.devices) if str(trainer.devices).isdecimal() else 0
    for name, value, limit in (
        ("trainer.num_nodes", trainer.num_nodes, 2**16),
        ("trainer.devices", devices, most),
    ):
        if isinstance(value, int) and value > limit:
            raise UserError(f"{name} is {value}: give at most {limit} here.")


def _check_strategy(strategy: Any) -> None:
    is_class = isinstance(strategy, Namespace)
    name = name_of(strategy)
    refuse_name(name)
    if is_class and str(strategy.get("init_args.start_method", "popen")) in ("spawn", "forkserver"):
        refuse_name(f"ddp_spawn, which {name} with this start_method is,")
    if not is_class and name.lower() not in ("auto", *OWN, *StrategyRegistry.available_strategies()):
        raise unknown("trainer.strategy", name, CHOICES)


def check_launcher(trainer: Namespace) -> None:
    """Refuse a run on several machines that nobody has told of each other: each would wait half an hour for the others.

    Args:
        trainer: The options of the Trainer.
    """
    lacking = [name for name in OF_MACHINES if name not in os.environ]
    if isinstance(trainer.num_nodes, int) and trainer.num_nodes > 1 and lacking and not _is_launched(trainer.plugins):
        raise UserError(
            f"trainer.num_nodes is {trainer.num_nodes}, and nothing has told this process which machine it is on: use "
            f"torchrun or srun to start it on each machine, or set {', '.join(lacking)} there (docs/scale.md)."
        )


def _is_launched(plugins: Any) -> bool:
    """Whether a launcher that Lightning knows, or a plugin of the user's, knows the processes of the run."""
    return bool(plugins) or any(environment.detect() for environment in LAUNCHERS)
