"""Brings the network of a training in forked processes back to the process that a notebook talks to.

Under ``ddp_notebook`` and ``ddp_fork`` all of a fit happens in forked processes. Lightning then loads the trained
weights into the module of the first process, which has no network yet. So the configuration travels with them.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerStatus

#: The key of the network's configuration in a state that goes back.
KEY = "config"


def with_config(state: dict[str, Any], config: Any, trainer: Any) -> dict[str, Any]:
    """The state of a module, with its configuration if it is the result of a forked process. Not in checkpoints.

    Args:
        state: What the module's ``state_dict`` returns.
        config: The configuration of its network.
        trainer: Its Trainer, or None.
    """
    launcher = getattr(getattr(trainer, "strategy", None), "launcher", None)
    is_result = isinstance(launcher, _MultiProcessingLauncher) and trainer.state.status == TrainerStatus.FINISHED
    return {**state, KEY: asdict(config)} if is_result else state


def split_config(state: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The configuration in a state, None if there is none, and the state without it."""
    if KEY not in state:
        return None, state
    return state[KEY], {name: value for name, value in state.items() if name != KEY}
