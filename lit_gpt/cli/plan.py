"""``fit --plan``: the memory, disk and time that a configuration would take. It neither trains nor downloads anything.

The network is on the meta device. The text and the device of the run need not be there.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from rich import box
from rich.console import Console
from rich.table import Table

from datamodules.planning import known_facts, known_store, planned_step, vocab_size_of_options
from datamodules.prepare import load_tokenizer_of
from datamodules.step_size import StepSize
from datamodules.tokens import token_dtype
from lit_gpt import sizes
from lit_gpt.callbacks.run_table import (
    UNKNOWN,
    RunSize,
    facts_of_module,
    memory_of,
    network_of,
    readable,
    run_table,
)
from lit_gpt.callbacks.throughput import PEAK_FLOPS
from lit_gpt.cli.lightning_cli import LitCLI
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.optim import build_optimizer
from lit_gpt.protocols import check_targets, with_defaults
from lit_gpt.strategies import refuse_not_shardable
from lit_gpt.strategy_names import OWN, name_of

#: Devices of the table of hours, and how many of each.
DEVICES = {"T4": 1, "RTX 4090": 1, "A100": 1, "H100": 1, "8 x H100": 8}
#: Peak FLOP/s of float32 matmuls from the makers' data sheets: TF32, which `fit` allows, and float32 on a T4.
PEAK_FLOPS_32 = {"T4": 8.1e12, "RTX 4090": 82.6e12, "A100": 156e12, "H100": 494e12}
#: The share of the peak that a training is assumed to reach, as in docs/scale.md.
UTILISATION = 0.4
#: Tokens of the table of hours where the run's number of tokens is unknown.
A_BILLION = 10**9
UNITS = {"MB": 1e6, "GB": 1e9}
#: Short names of the Trainer's precisions.
PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
#: A micro-batch is assumed to have as many rows where the data is of an unknown kind.
ASSUMED_ROWS = 1


class PlanCLI(LitCLI):
    """The command line of ``fit``, which builds neither run folder nor Trainer, and prints."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__("fit", arguments)

    def _parse_ckpt_path(self) -> None:
        """Nothing: there is no run to resume and no run folder to create."""

    def instantiate_classes(self) -> None:
        """Instantiate the configuration without a Trainer."""
        self.config_init = self.instantiated()

    def _run_subcommand(self, subcommand: str) -> None:
        objects, config = self.config_init[subcommand], self.config[subcommand]
        Plan(objects.model, objects.data, config).print(Console())


class Plan:
    """What a configuration would take.

    Args:
        module: The LightningModule, without its network.
        data: The datamodule, before ``prepare_data``.
        config: The configuration of ``fit``.
    """

    def __init__(self, module: LightningModule, data: Any, config: Namespace) -> None:
        self.module, self.config = module, config
        self.is_sharded = name_of(config.trainer.strategy).lower() in OWN
        if self.is_sharded:
            refuse_not_shardable(module)
        self.notes: list[str] = []
        store = known_store(data)
        self.text = known_facts(store, data)
        self._complete(store if self.text else None, data)
        self.processes = _processes(config.trainer)
        self.device = _device_type(config.trainer.accelerator)
        precision = str(config.trainer.precision or "32")
        self.precision = PRECISIONS.get(precision, precision)
        self.source = _name(getattr(data, "source", UNKNOWN))
        self.block_size = int(getattr(getattr(module, "config", None), "block_size", 1))
        self.step = planned_step(data, self.block_size, self.processes)
        self.net = network_of(module).to(sizes.WEIGHTS.get(self.precision))
        self.optimizers = self._optimizers()

    def _complete(self, store: Path | None, data: Any) -> None:
        """Complete the module's configuration, and build its network on the meta device."""
        module = self.module
        if not isinstance(module, LitLanguageModel):
            return
        if store and self.text:
            known = with_defaults(data)
            known.tokenizer, known.vocab_size = load_tokenizer_of(store), self.text.vocab_size
            module.complete_config(known)
        else:
            V, note = vocab_size_of_options(data)
            V = with_defaults(data).vocab_size or V
            if module.config.vocab_size is None:
                self.notes += [note] if note else []
            self.notes += module.assume_vocabulary(module.config.vocab_size or V)
        if "compile" in module.options:
            module.options["compile"] = False  # it would load a compiler, which takes seconds
        with torch.device("meta"):
            module.configure_model()
        check_targets(module.net, with_defaults(data))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        module = self.module
        if not isinstance(module, LitLanguageModel) or not any(p.requires_grad for p in module.net.parameters()):
            return []
        return [build_optimizer(module.net, module.optimizer_config)]

    # ---- numbers

    def run_size(self) -> RunSize:
        """Steps, epochs and batch, as far as options and text say them."""
        trainer = self.config.trainer
        an_epoch = self.steps_of_an_epoch()
        by_steps = trainer.max_steps if trainer.max_steps >= 0 else math.inf
        by_epochs = trainer.max_epochs * (an_epoch or math.nan) if (trainer.max_epochs or -1) >= 0 else math.inf
        steps = min(by_steps, by_epochs)
        known = int(steps) if math.isfinite(steps) else None
        epochs = known / an_epoch if known is not None and an_epoch else None
        count = f" x {self.processes}" * (self.processes > 1)
        return RunSize(known, epochs, self.step, self.precision, f"{self.device}{count}")

    def steps_of_an_epoch(self) -> int | None:
        """About how many optimizer steps an epoch has. The padding of packed rows may add a few."""
        limit = self.config.trainer.limit_train_batches
        if self.step is None or isinstance(limit, int):
            return limit // self.step.accumulation if self.step and limit else None
        if self.text is None:
            return None
        return max(1, math.ceil(self.text.train_tokens / self.step.tokens * (limit or 1.0)))

    def memory(self, rows: int) -> sizes.Memory | None:
        """The memory of a step with micro-batches of some rows."""
        packed = bool(self.step and self.step.packed)
        step = StepSize(rows, rows, 1, self.step.block_size if self.step else self.block_size, packed)
        shards = self.processes if self.is_sharded else 1
        return memory_of(self.module, self.optimizers, step, self.precision, self.device, shards)

    # ---- tables

    def print(self, console: Console) -> None:
        """Print all of it."""
        rows = self.step.micro if self.step else ASSUMED_ROWS
        memories = {number: self.memory(number) for number in _around(rows)}
        block_size = self.step.block_size if self.step else self.block_size
        network = facts_of_module(self.module, block_size, memories[rows] if self.step else None)
        run = self.run_size()
        console.print(run_table(self.text, network, run, f"{self.source} (not prepared yet)"))
        unit = _unit(memories)
        console.print(f"memory of a process in {unit}, by rows of a micro-batch", highlight=False)
        console.print(_memory_table(memories, rows if self.step else None, UNITS[unit]))
        what = "the run" if run.tokens is not None else "a billion tokens (the run's are unknown)"
        console.print(f"time for {what} at an MFU of {UTILISATION:.0%}, {run.precision}", highlight=False)
        console.print(_hours_table(network.flops_per_token, run))
        for line in (*self.disk_lines(run), *self.notes, "a plan: nothing was trained, prepared or downloaded"):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    def disk_lines(self, run: RunSize) -> Iterator[str]:
        """What checkpoints and tokens take on the disk."""
        size = sizes.bytes_of([*self.net.parameters(), *self.net.buffers()])
        size += sum(map(sizes.state_bytes, self.optimizers))
        every = self.config.checkpoint.keep_every_n_steps
        kept = (run.steps or 0) // every if every else 0
        unknown = " and one for every {every} steps" * bool(every and run.steps is None)
        files = f"best.ckpt, last.ckpt{f' and {kept} kept files' * bool(kept)}{unknown.format(every=every)}"
        yield f"disk: {readable((2 + kept) * size)} for {files}, {readable(size)} each"
        if self.text is None:
            yield "disk: the size of the tokens is unknown before the text is prepared"
        else:
            size = self.text.total("tokens") * token_dtype(self.text.vocab_size).itemsize
            yield f"disk: {readable(size)} for the tokens, {token_dtype(self.text.vocab_size).itemsize} bytes each"


def _processes(trainer: Namespace) -> int:
    """Number of processes, as far as the options say it."""
    devices = trainer.devices
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1
    return max(count, 1) * int(trainer.num_nodes)


def _device_type(accelerator: str) -> str:
    """The type of the device; ``auto`` is this machine's."""
    name = str(accelerator)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return {"gpu": "cuda"}.get(name, name)


def _around(rows: int) -> list[int]:
    """Micro-batches to show: a quarter and four times as many rows, and 1."""
    return sorted({1, max(1, rows // 4), rows, 4 * rows})


def _name(source: Any) -> str:
    return ", ".join(map(str, source)) if isinstance(source, list) else str(source)


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _unit(memories: dict[int, sizes.Memory | None]) -> str:
    largest = max((memory.total for memory in memories.values() if memory), default=0)
    return "GB" if largest >= UNITS["GB"] else "MB"


def _memory_table(memories: dict[int, sizes.Memory | None], chosen: int | None, unit: float) -> Table:
    """Memory by micro-batch. ``unit`` is the number of bytes of a MB or GB. The run's own micro-batch is marked."""
    kinds = ["weights", "gradients", "optimizer", "activations", "logits"]
    kinds += ["heap"] * any(memory and memory.heap for memory in memories.values())
    table = _table("rows", *kinds, "total")
    for rows, memory in memories.items():
        values = [getattr(memory, kind) for kind in kinds] + [memory.total] if memory else []
        cells = [f"{value / unit:,.2f}" for value in values] or [UNKNOWN] * (len(kinds) + 1)
        table.add_row(f"{rows:,}{' here' * (rows == chosen)}", *cells)
    return table


def _hours_table(flops: float | None, run: RunSize) -> Table:
    """The time of the run on some devices, or of a billion tokens where the run has no known end."""
    peaks = PEAK_FLOPS if "16" in run.precision else PEAK_FLOPS_32
    tokens = run.tokens if run.tokens is not None else A_BILLION
    table = _table("device", "peak TFLOP/s", "time")
    for name, count in DEVICES.items():
        peak = peaks[name.rpartition(" x ")[2]] * count
        is_known = flops and "64" not in run.precision
        time = _duration(flops * tokens / (peak * UTILISATION)) if flops and is_known else UNKNOWN
        table.add_row(name, f"{peak / 1e12:,.0f}" if is_known else UNKNOWN, time)
    return table


def _duration(seconds: float) -> str:
    """A duration in hours, or in minutes or seconds if it is short."""
    if seconds < 60:
        return f"{max(seconds, 0.1):.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:,.1f} hours"
