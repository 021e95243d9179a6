"""Prints the table of a run, writes summary.json, and prints the next commands at the end of the run."""

import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from datamodules.errors import UserError
from datamodules.files import write_json
from datamodules.text_facts import Baselines
from lit_gpt.callbacks.checkpoints import RunCheckpoints
from lit_gpt.callbacks.run_folder import CONFIG, SUMMARY, is_finished, read_summary
from lit_gpt.callbacks.run_table import network_facts, network_of, run_size, run_table
from lit_gpt.callbacks.throughput import Throughput
from lit_gpt.checkpoint import MODULES, path_of
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.origin import package_commit, started_in
from lit_gpt.protocols import TextData, data_of
from lit_gpt.sizes import count_parameters
from lit_gpt.version import __version__

MAX_TIME = "--trainer.max_time"
#: The share of validations in a run's time above which the end of the run says so.
MUCH_VALIDATION = 1 / 3
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
        self._earlier_summary: dict[str, Any] = {}
        self._origin: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder. All ranks must ask for it, because the Trainer broadcasts it."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._earlier_summary = read_summary(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the network's table, and write a first summary, which ``--resume auto`` reads."""
        self._began = True
        self._origin = {"versions": _versions(), "started_in": self._earlier_summary.get("started_in", started_in())}
        _checkpoints(trainer).after_save = [lambda: self._write(trainer, pl_module, finished=False)]
        if trainer.is_global_zero:
            facts, device = data_of(trainer).text_facts, device_name(pl_module.device)
            Console().print(run_table(facts, network_facts(trainer, pl_module), run_size(trainer, device)))
        self._write(trainer, pl_module, finished=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the validation's metrics now. Callbacks before RunCheckpoints may need them."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            _checkpoints(trainer).record_validation(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final summary, and print the next commands.

        A run that has nothing left to train is refused, unless it was killed after its last checkpoint and before this.
        """
        over = _is_over(trainer)
        unfinished = (self.folder / CONFIG).is_file() and not is_finished(self._earlier_summary)
        if not self._began and not (over and unfinished):
            raise _nothing_to_train(trainer)
        if self._began:
            self._write(trainer, pl_module, finished=over)
        elif trainer.is_global_zero:
            ended = {"finished": True, **_validations(trainer), "steps": trainer.global_step, **_pace(trainer)}
            write_json(self.folder / SUMMARY, self._earlier_summary | ended)
        self._print_next_steps(trainer, pl_module, over)

    @rank_zero_only
    def _write(self, trainer: Trainer, pl_module: LightningModule, finished: bool) -> None:
        write_json(self.folder / SUMMARY, self._summary(trainer, pl_module, finished))

    def _summary(self, trainer: Trainer, pl_module: LightningModule, finished: bool) -> dict[str, Any]:
        return {
            "finished": finished,
            **_validations(trainer),
            "steps": trainer.global_step,
            **_pace(trainer),
            "parameters": count_parameters(network_of(pl_module)),
            "baselines": asdict(_baselines(trainer)),
            "seed": self.seed,
            "device": device_name(pl_module.device),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "hashes": {"config": self.config_hash, **data_of(trainer).fingerprints},
            **self._origin,
        }

    @rank_zero_only
    def _print_next_steps(self, trainer: Trainer, pl_module: LightningModule, over: bool) -> None:
        folder, checkpoints = self.folder, _checkpoints(trainer)
        best, value = checkpoints.best, checkpoints.best_value
        if value is not None:
            print(f"\nbest {checkpoints.monitor} {value:.4f} at step {best['step']} of {trainer.global_step}")
        for line in (*_baseline_lines(_baselines(trainer)), *_validation_lines(trainer)):
            print(line)
        print(f"everything about this run is in {folder}")
        if not over:
            more = f" and a longer {MAX_TIME}" if _time_is_up(trainer) else ""
            print(f"to resume from step {trainer.global_step}: the same command with --resume auto{more}")
        print("next:")
        model = _generating(pl_module)
        if model is not None and data_of(trainer).tokenizer is not None:
            # a run's folder stands for its best checkpoint, and makes a line that fits 80 columns
            path = shlex.quote(str(checkpoints.folder / "last.ckpt" if value is None else folder))
            is_causal = pl_module.net.causal  # type: ignore[union-attr]
            verb = "generate" if is_causal else "fill-mask"
            options = _prompt_option(data_of(trainer)) if is_causal else ' --text "This is a [MASK]."'
            print(f"  python -m lit_gpt {verb} --ckpt_path {path}{model}{options}")
        print(f"  tensorboard --logdir {shlex.quote(str(folder.parent.parent))}", flush=True)


def _baselines(trainer: Trainer) -> Baselines:
    facts = data_of(trainer).text_facts
    return facts.baselines if facts else Baselines()


def _baseline_lines(losses: Baselines) -> list[str]:
    """A line with the losses to compare val/loss with, unless none but ln V is known."""
    known = {"two-sided bigram": losses.two_sided, "bigram": losses.bigram}
    known |= {"unigram": losses.unigram, "ln V": losses.uniform}
    if losses.unigram is None:
        return []
    return ["without a network: " + ", ".join(f"{name} {nats:.4f}" for name, nats in known.items() if nats is not None)]


def _validation_lines(trainer: Trainer) -> list[str]:
    """A line if validations took much of the time."""
    pace = _pace(trainer)
    validations, whole = pace["validation_seconds"], pace["training_seconds"] + pace["validation_seconds"]
    if validations <= MUCH_VALIDATION * whole:
        return []
    return [
        f"validations took {validations / whole:.0%} of the time: for fewer, raise --trainer.val_check_interval; for "
        "shorter ones, set --trainer.limit_val_batches"
    ]


def _pace(trainer: Trainer) -> dict[str, Any]:
    """Tokens and seconds of the whole run so far."""
    speed = next(iter(_of(trainer, Throughput)), Throughput())
    tokens, seconds = speed.so_far()
    return {
        "tokens": tokens,
        "training_seconds": round(seconds, 2),
        "validation_seconds": round(speed.validation_seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
    }


def _prompt_option(data: TextData) -> str:
    """The option ``--prompt`` with a beginning that the tokenizer can encode; nothing where none is known."""
    try:
        data.tokenizer.encode("The ")
        return ' --prompt "The "'
    except UserError:  # a text without one of these letters: its own first word, or else a token
        tokenizer, stored = data.tokenizer, "train" in data.stores
        ids = data.stores["train"].tokens[:200].tolist() if stored else range(tokenizer.vocab_size)
        words = tokenizer.decode([i for i in ids if i != tokenizer.eos_id]).split()
        return f" --prompt {shlex.quote(words[0][: 20 if stored else 1])}" if words else ""


def _generating(module: LightningModule) -> str | None:
    """The option ``--model`` that ``generate`` needs for a module's checkpoint. None: it cannot load such a module.

    It cannot load a module that is no LitLanguageModel, or a class of a script or notebook, which another process
    cannot import.
    """
    if not isinstance(module, LitLanguageModel):
        return None
    path = path_of(type(module))
    if path in MODULES:
        return ""
    return None if path.startswith("__main__.") or "<locals>" in path else f" --model {path}"


def _is_over(trainer: Trainer) -> bool:
    """Whether the run is finished, by steps, epochs or early stopping. ``max_time`` only interrupts it."""
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


def device_name(device: torch.device) -> str:
    """The device's name, with the number of threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} {platform.machine()}, {threads} thread{'s' * (threads > 1)}"


def _checkpoints(trainer: Trainer) -> RunCheckpoints:
    callback = next(iter(_of(trainer, RunCheckpoints)), None)
    assert callback is not None, "RunSummary asks RunCheckpoints which validation was the best: give the Trainer both"
    return callback


def _validations(trainer: Trainer) -> dict[str, dict[str, float]]:
    """Metrics of the last and of the best validation, each with its step. Without a validation: the logged metrics."""
    checkpoints = _checkpoints(trainer)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    final = checkpoints.latest or {"step": trainer.global_step, **logged}
    return {"final": _rounded(final), "best": _rounded(checkpoints.best)}


def _rounded(metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {k: v if isinstance(v, int) else round(float(v), 6) for k, v in sorted(metrics.items())}


def _versions() -> dict[str, str | None]:
    return {
        "lit_gpt": __version__,
        "lit_gpt_commit": package_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "torchmetrics": version("torchmetrics"),
    }
