"""``--trainer.strategy fsdp2``: weights, gradients and optimizer state sharded over the processes, by torch's FSDP2.

    Trainer(strategy="fsdp2", devices=8).fit(LitGPT(...), datamodule=...)

Each process has some rows of every weight. The weights of a block are gathered when the block computes, and freed after
it. A checkpoint is one file, the same that one process writes: a run may go on with any number of processes, sharded or
not. docs/scale.md says what is checked.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor

from datamodules.errors import UserError
from lit_gpt import integrity
from lit_gpt.averaging import averages_of
from lit_gpt.checkpoint import path_of
from lit_gpt.deferred_init import DeferredInit
from lit_gpt.distributed import full, is_sharded, layers_of, reshard, sharded_like

#: Modules whose network `DeferredInit` can build: a network of anybody's may initialise itself in other ways.
DEFERRED = ("lit_gpt.module.LitGPT",)
#: Where a checkpoint has weights by their names: the second is of a run with an average (see `lit_gpt.averaging`).
WEIGHTS = ("state_dict", "current_model_state")


class FSDP2(ModelParallelStrategy):
    """Shards the network of a `LitLanguageModel` over all processes.

    Lightning's strategy starts the processes. Here the network is sharded before its weights are loaded, so that all
    that follows is as in a run that is not sharded.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False: weights are loaded before `on_fit_start`, as without sharding."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning calls `load_optimizer_state_dict`."""
        return True

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        self._data_parallel_size = self.world_size

    def connect(self, model: Any) -> None:
        """Refuse what cannot be sharded, before data is prepared."""
        refuse_not_shardable(model)
        super().connect(model)

    # ---- the network

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Shard the network that is built inside.

        A plain GPT is built without memory for its weights. Then each process initialises its own rows.
        """
        module: Any = self.lightning_module
        if is_sharded(next(_parameters(module), None)):  # by an earlier call
            yield
            return
        _share_random_state(self)
        if hasattr(module, "net") or path_of(type(module)) not in DEFERRED:
            yield
            refuse_not_shardable(module)
            self._shard(module.net)
        else:
            with DeferredInit() as deferred:
                yield
            refuse_not_shardable(module)  # again: `configure_model` may have added parameters
            deferred.note_names(module.net)
            self._shard(module.net)
            module.net.to_empty(device=self.root_device)
            deferred.fill(module.net)
        for callback in averages_of(module.trainer):  # each has a copy of the network, made before
            average: Any = callback._average_model
            if average is not None:  # as it is outside of fit
                self._shard(average.module.net)

    def _shard(self, net: Any) -> None:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # not before it is needed

        name, mesh = type(net).__name__, self.device_mesh["data_parallel"]
        for layer in layers_of(net):
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        register_fsdp_forward_method(net, "hidden")
        type(net).__name__ = name  # torch made a class FSDP... for this network, and users know the other name

    def setup(self, trainer: Trainer) -> None:
        """Evaluate without inference mode: what is gathered in it could not be used in training."""
        loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
        for loop in loops:
            loop.inference_mode = False
        super().setup(trainer)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Free the gathered weights after the step."""
        return self._then_reshard(super().validation_step(*args, **kwargs))

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Free the gathered weights after the step."""
        return self._then_reshard(super().test_step(*args, **kwargs))

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Free the gathered weights after the step."""
        return self._then_reshard(super().predict_step(*args, **kwargs))

    def _then_reshard(self, result: Any) -> Any:
        reshard(self.lightning_module.net)  # type: ignore[union-attr]
        return result

    # ---- checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, sharded. `save_checkpoint` gathers them, a tensor at a time."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state, sharded, in the optimizer's own order."""
        return super(ModelParallelStrategy, self).optimizer_state(optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Gather what is sharded on rank 0, which writes the file."""
        gathered = _gathered(checkpoint, keep=self.is_global_zero)
        super().save_checkpoint(gathered, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint. The weights are sharded like the network's, if they fit it."""
        if "://" in str(checkpoint_path):
            checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        else:  # mapped into memory: of most tensors, a process reads its own rows alone
            checkpoint = integrity.load(Path(checkpoint_path), mmap=True)
        own = dict(self.lightning_module.named_parameters())  # type: ignore[union-attr]
        for key in WEIGHTS:
            if key in checkpoint:
                checkpoint[key] = {name: _fitted(value, own.get(name)) for name, value in checkpoint[key].items()}
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights of `load_checkpoint`."""
        super(ModelParallelStrategy, self).load_model_state_dict(checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizers' states, each sharded like its parameters."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {name: _fitted(value, parameters[number]) for name, value in values.items()}
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})


def refuse_not_shardable(module: Any) -> None:
    """Raise a UserError for a module that cannot be sharded, or not all of it."""
    if not hasattr(module, "not_shardable"):
        raise UserError(
            f"trainer.strategy fsdp2 shards the `net` of a LitLanguageModel, and {type(module).__name__} is none: "
            "use --trainer.strategy ddp."
        )
    if (what := module.not_shardable()) is not None:
        raise UserError(f"{what} cannot be sharded: use --trainer.strategy ddp instead of fsdp2.")


def _parameters(module: Any) -> Iterator[Tensor]:
    return module.net.parameters() if hasattr(module, "net") else iter(())


def _share_random_state(strategy: FSDP2) -> None:
    """Give all processes the random state of rank 0: each keeps a part of the same initial weights."""
    state: Tensor = strategy.broadcast(torch.get_rng_state())
    torch.set_rng_state(state)


def _fitted(value: Any, like: Any) -> Any:
    """A value of a checkpoint, sharded like a parameter of its shape."""
    if isinstance(value, Tensor) and is_sharded(like) and value.shape == like.shape:
        return sharded_like(value, like)
    return value


def _gathered(value: Any, keep: bool) -> Any:
    """A copy of a checkpoint in which every sharded tensor is whole and on the CPU.

    Args:
        value: The checkpoint, or a part of it.
        keep: False in a process that needs no result: it only takes part.
    """
    if is_sharded(value):
        whole = full(value)
        return whole.cpu() if keep else None
    if isinstance(value, dict):
        result = copy.copy(value)
        for key, part in value.items():
            result[key] = _gathered(part, keep)
        return result
    if isinstance(value, list | tuple):
        parts = [_gathered(part, keep) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


StrategyRegistry.register("fsdp2", FSDP2, description="Weights, gradients and optimizer state sharded by FSDP2.")
