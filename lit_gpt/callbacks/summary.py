"""The table at the start of a run, its summary.json, and the closing lines that say what to type next."""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import lit_gpt
from datamodules.errors import UserError
from datamodules.files import write_json
from lit_gpt.callbacks.checkpoints import RunCheckpoints
from lit_gpt.callbacks.run_folder import SUMMARY, read_summary
from lit_gpt.callbacks.throughput import Throughput
from lit_gpt.checkpoint import MODULES, path_of
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.protocols import data_of
from lit_gpt.version import __version__

#: A page of TensorBoard (Custom Scalars) where curves that belong together share a chart.
CHARTS = {
    title: {name: ["Multiline", [f"^train_eval/{name}$", f"^val/{name}$"]] for name in names}
    for title, names in (("loss", ("loss", "bpb")), ("accuracy", ("top1", "top5")))
}

MAX_TIME = "--trainer.max_time"
Kind = TypeVar("Kind", bound=Callback)


class RunSummary(Callback):
    """Writes ``summary.json`` at the start (``finished: false``), after every save and at the end.

    Args:
        config_hash: Hash of the options of model and data and of the seed.
        seed: The run's seed.
    """

    def __init__(self, config_hash: str = "", seed: int | None = None) -> None:
        self.config_hash = config_hash
        self.seed = seed
        self.folder = Path()
        self._began = False
        self._found: dict[str, Any] = {}
        self._origin: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder, on all ranks: the Trainer broadcasts it."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._found = read_summary(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the network; leave a first summary for ``--resume auto`` to find."""
        self._began = True
        self._origin = {"versions": _versions(), "started_in": self._found.get("started_in", _started_in())}
        _checkpoints(trainer).after_save = [lambda: self._write(trainer, pl_module, finished=False)]
        if trainer.is_global_zero:
            Console().print(network_table(_network(pl_module)))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_custom_scalars(CHARTS)
        self._write(trainer, pl_module, finished=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the figures of the validation for the callbacks that come after this one."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            _checkpoints(trainer).remember(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final summary, and what to type next; to begin with nothing left to do is a mistake, unless the run was
        killed between its last checkpoint and this.
        """
        over = _is_over(trainer)
        if not self._began and (not over or self._found.get("finished", True)):
            raise _nothing_to_train(trainer)
        if self._began:
            self._write(trainer, pl_module, finished=over)
        elif trainer.is_global_zero:
            ended = {"finished": True, **_validations(trainer), "steps": trainer.global_step}
            write_json(self.folder / SUMMARY, self._found | ended)
        self._say_goodbye(trainer, pl_module, over)

    @rank_zero_only
    def _write(self, trainer: Trainer, pl_module: LightningModule, finished: bool) -> None:
        write_json(self.folder / SUMMARY, self._summary(trainer, pl_module, finished))

    def _summary(self, trainer: Trainer, pl_module: LightningModule, finished: bool) -> dict[str, Any]:
        speed = next(iter(_of(trainer, Throughput)), Throughput())
        tokens, seconds = speed.so_far()
        return {
            "finished": finished,
            **_validations(trainer),
            "steps": trainer.global_step,
            "tokens": tokens,
            "training_seconds": round(seconds, 2),
            "validation_seconds": round(speed.validation_seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
            "parameters": _parameters(_network(pl_module)),
            "seed": self.seed,
            "device": device_name(pl_module.device),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "hashes": {"config": self.config_hash, **data_of(trainer).fingerprints},
            **self._origin,
        }

    @rank_zero_only
    def _say_goodbye(self, trainer: Trainer, pl_module: LightningModule, over: bool) -> None:
        folder, checkpoints = self.folder, _checkpoints(trainer)
        best, value = checkpoints.best, checkpoints.best_value
        if value is not None:
            print(f"\nbest {checkpoints.monitor} {value:.4f} at step {best['step']} of {trainer.global_step}")
        print(f"everything about this run is in {folder}")
        if not over:
            more = f" and a longer {MAX_TIME}" if _time_is_up(trainer) else ""
            print(f"to go on from step {trainer.global_step}: the same command with --resume auto{more}")
        print("next:")
        model = _generating(pl_module)
        if model is not None and data_of(trainer).tokenizer is not None:
            path = checkpoints.folder / ("last.ckpt" if value is None else "best.ckpt")
            print(f'  python -m lit_gpt generate --ckpt_path {path}{model} --prompt "The "')
        print(f"  tensorboard --logdir {folder.parent.parent}", flush=True)


def _generating(module: LightningModule) -> str | None:
    """What ``generate`` has to be told of a module beside its checkpoint, None where it cannot take it.

    It takes neither a module without a network of ours nor a class in a script or notebook, which no other process can
    import.
    """
    if not isinstance(module, LitLanguageModel):
        return None
    path = path_of(type(module))
    if path in MODULES:
        return ""
    return None if path.startswith("__main__.") or "<locals>" in path else f" --model {path}"


def _is_over(trainer: Trainer) -> bool:
    """Whether the run is at its end, by steps, epochs or early stopping; a clock only interrupts it."""
    epochs: int = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    stopped = any(c.stopping_reason_message for c in _of(trainer, EarlyStopping)) and trainer.should_stop
    return trainer.global_step == trainer.max_steps or epochs == trainer.max_epochs or stopped


def _time_is_up(trainer: Trainer) -> bool:
    left = [timer.time_remaining() for timer in _of(trainer, Timer)]
    return any(seconds is not None and seconds <= 0 for seconds in left)


def _of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def _nothing_to_train(trainer: Trainer) -> UserError:
    step, limit = trainer.global_step, trainer.max_steps
    if 0 <= limit <= step:
        return UserError(f"already at step {step}: raise --trainer.max_steps, which is {limit}.")
    if _time_is_up(trainer):
        return UserError(
            f"already at step {step} after the whole of {MAX_TIME}, which counts all parts of a run: raise it."
        )
    return UserError(
        f"already at step {step} and nothing left to train: raise --trainer.max_epochs, which is {trainer.max_epochs}, "
        f"or --trainer.limit_train_batches, which is {trainer.limit_train_batches}."
    )


def network_table(net: nn.Module) -> Table:
    """Parameters by part of the network."""
    table = Table(title=f"{type(net).__name__}, {_parameters(net):,} parameters{_not_known(net)}")
    for name in ("part", "kind", "parameters"):
        table.add_column(name, justify="right" if name == "parameters" else "left")
    for name, child in net.named_children():
        kind = f"{len(child)} x {type(child[0]).__name__}" if isinstance(child, nn.ModuleList) else type(child).__name__
        table.add_row(name, kind, f"{_parameters(child):,}{_not_known(child)}")
    return table


def _network(module: LightningModule) -> nn.Module:
    return module.net if isinstance(module, LitLanguageModel) else module


def _parameters(net: nn.Module) -> int:
    return sum(0 if is_lazy(p) else p.numel() for p in net.parameters())


def _not_known(net: nn.Module) -> str:
    """What stands beside a number of parameters that leaves out lazy layers, whose shape the first batch decides."""
    return " and lazy ones" if any(map(is_lazy, net.parameters())) else ""


def device_name(device: torch.device) -> str:
    """What the run computes on, for people who compare figures."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {torch.get_num_threads()} threads"


def _checkpoints(trainer: Trainer) -> RunCheckpoints:
    found = next(iter(_of(trainer, RunCheckpoints)), None)
    assert found is not None, "RunSummary asks RunCheckpoints which validation was the best: give the Trainer both"
    return found


def _validations(trainer: Trainer) -> dict[str, dict[str, float]]:
    """The last and the best, each with its step; what was logged so far where there was none."""
    checkpoints = _checkpoints(trainer)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    final = checkpoints.latest or {"step": trainer.global_step, **logged}
    return {"final": _rounded(final), "best": _rounded(checkpoints.best)}


def _rounded(metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {k: v if isinstance(v, int) else round(float(v), 6) for k, v in sorted(metrics.items())}


def _versions() -> dict[str, str | None]:
    package = Path(lit_gpt.__file__).parent
    return {
        "lit_gpt": __version__,
        "lit_gpt_commit": _commit(package) if _git(package, "ls-files", "__init__.py") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "torchmetrics": version("torchmetrics"),
    }


def _started_in() -> dict[str, str | None]:
    """The folder that the run was started in, and its commit."""
    folder = Path.cwd()
    return {"folder": str(folder), "commit": None if _git(folder, "check-ignore", ".") else _commit(folder)}


def _commit(folder: Path) -> str | None:
    """The commit of the repository that the folder is a part of, None where it is of none.

    A folder that a repository contains need not be a part of it (site-packages of an environment inside a project): see
    the callers.
    """
    return _git(folder, "describe", "--always", "--dirty")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints about a folder; None where it prints nothing, fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
