"""The table that says what a run is: its text, its network and its size. `fit` prints it before the first step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich import box
from rich.table import Table
from torch import nn

from datamodules.step_size import StepSize
from datamodules.text_facts import Baselines, TextFacts
from lit_gpt import sizes
from lit_gpt.distributed import needs_all
from lit_gpt.integrity import WithoutInitialisation
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.protocols import Network, data_of

UNKNOWN = "-"


@dataclass(frozen=True)
class NetworkFacts:
    """What the table says of a network. None stands for unknown.

    Attributes:
        name: its class.
        parameters: number of parameters, without those of lazy layers.
        embeddings: how many of these are in embeddings.
        is_lazy: whether some layers have no shape before the first batch.
        flops_per_token: floating-point operations of training, for each token.
        memory: bytes of a training step.
        vocab_size: V.
    """

    name: str
    parameters: int
    embeddings: int
    is_lazy: bool = False
    flops_per_token: float | None = None
    memory: sizes.Memory | None = None
    vocab_size: int | None = None


@dataclass(frozen=True)
class RunSize:
    """What the table says of a run. None stands for unknown.

    Attributes:
        steps: number of optimizer steps.
        epochs: passes through the training text.
        step: size of an optimizer step.
        precision: the Trainer's.
        device: its name, and the number of processes.
    """

    steps: int | None
    epochs: float | None
    step: StepSize | None
    precision: str
    device: str

    @property
    def tokens(self) -> int | None:
        """Tokens of all steps, padding included."""
        return None if self.steps is None or self.step is None else self.steps * self.step.tokens


def run_table(text: TextFacts | None, network: NetworkFacts, run: RunSize, source: str = UNKNOWN) -> Table:
    """The table. It fits 80 columns, and has "-" for what is unknown.

    Args:
        text: The facts of the text.
        network: The facts of the network.
        run: The size of the run.
        source: The name of a text without facts.
    """
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    uniform = math.log(network.vocab_size) if network.vocab_size else None
    for part, rows in (
        ("text", _text_rows(text, source)),
        ("network", _network_rows(network, text.baselines if text else Baselines(uniform))),
        ("run", _run_rows(run, network.parameters) | {"memory expected": _memory(network.memory)}),
    ):
        for number, (what, value) in enumerate(rows.items()):
            table.add_row(part if number == 0 else "", what, value, end_section=number == len(rows) - 1)
    return table


def _text_rows(text: TextFacts | None, source: str) -> dict[str, str]:
    names = ("source", "documents", "characters", "tokens", "vocabulary", "bytes a token", "also in training")
    if text is None:
        return dict.fromkeys(names, UNKNOWN) | {"source": source}
    sizes_of = {what: _by_split(text.splits, what) for what in ("documents", "chars", "tokens")}
    shared = [
        f"{share:.2%} of validation's {what}"
        for share, what in ((text.shared_text, "50-character pieces"), (text.shared_documents, "documents"))
        if share is not None
    ]
    vocabulary, density = f"{text.vocab_size:,}", f"{text.bytes_per_token:.2f}"
    values = [text.source, *sizes_of.values(), vocabulary, density, ", ".join(shared) or UNKNOWN]
    return dict(zip(names, values, strict=True))


def _by_split(splits: Mapping[str, Mapping[str, int]], what: str) -> str:
    names = {"train": "training", "val": "validation", "test": "test"}
    return ", ".join(f"{counts[what]:,} {names[split]}" for split, counts in splits.items())


def _network_rows(net: NetworkFacts, baselines: Baselines) -> dict[str, str]:
    sides = baselines.two_sided  # of masked tokens alone
    return {
        "network": net.name,
        "parameters": f"{net.parameters:,}{' and lazy layers' * net.is_lazy}",
        "without embeddings": f"{net.parameters - net.embeddings:,}",
        "FLOPs a token": _number(net.flops_per_token, " to train"),
        "uniform loss": _nats(baselines.uniform, ": ln V"),
        "unigram loss": _nats(baselines.unigram, ", by frequency"),
        "bigram loss": _nats(baselines.bigram, ", by the token before"),
        **({} if sides is None else {"two-sided bigram": _nats(sides, ", by both neighbours")}),
    }


def _nats(nats: float | None, note: str) -> str:
    return UNKNOWN if nats is None else f"{nats:.3f} nats a token{note}"


def _run_rows(run: RunSize, parameters: int) -> dict[str, str]:
    tokens, step = run.tokens, run.step
    batch = f"{step.tokens:,} tokens a step, {step.rows:,} rows of {step.block_size:,}" if step else UNKNOWN
    micro = f"{step.accumulation} micro-batches of {step.micro:,} rows" if step else UNKNOWN
    return {
        "steps": _count(run.steps),
        "tokens": _count(tokens),
        "epochs": UNKNOWN if run.epochs is None else f"{run.epochs:.2f}",
        "tokens a parameter": f"{tokens / parameters:.2f}" if tokens is not None and parameters else UNKNOWN,
        "batch": batch,
        "gradient accumulation": "none" if step and step.accumulation == 1 else micro,
        "precision": run.precision,
        "device": run.device,
    }


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _number(value: float | None, note: str) -> str:
    """A large number with a word for its size."""
    if not value:
        return UNKNOWN
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}{note}"
    return f"{value:,.0f}{note}"


def _memory(memory: sizes.Memory | None) -> str:
    """The whole, and its parts."""
    if memory is None:
        return UNKNOWN
    state = memory.weights + memory.gradients + memory.optimizer
    parts = f"{readable(state)} weights, gradients and optimizer state"
    return f"{readable(memory.total)} a process: {parts}, the rest activations"


def readable(size: int) -> str:
    """Bytes in MB or GB, with about three digits."""
    return f"{size / 1e6:.3g} MB" if size < 1e9 else f"{size / 1e9:.{2 if size < 1e10 else 0}f} GB"


# ---- of a Trainer


def network_facts(trainer: Trainer, module: LightningModule) -> NetworkFacts:
    """The facts of the network that a Trainer trains."""
    step = data_of(trainer).step_size
    if step is None or sizes.has_lazy_layers(network_of(module)):
        memory = None
    else:
        shards = trainer.world_size if needs_all(network_of(module)) else 1
        memory = memory_of(module, trainer.optimizers, step, str(trainer.precision), shards=shards)
    return facts_of_module(module, step.block_size if step else None, memory)


def facts_of_module(module: LightningModule, block_size: int | None, memory: sizes.Memory | None) -> NetworkFacts:
    """The facts of a module's network.

    Args:
        module: The module with its network.
        block_size: Tokens of a row of training. None: unknown.
        memory: Bytes of a training step. None: unknown.
    """
    net, flops, vocab_size = network_of(module), None, None
    if isinstance(module, LitLanguageModel):
        flops = module.flops_per_token(block_size) if block_size else None
        vocab_size = module.config.vocab_size
    parameters, embeddings = sizes.count_parameters(net), sizes.count_embeddings(net)
    is_lazy = sizes.has_lazy_layers(net)
    return NetworkFacts(type(net).__name__, parameters, embeddings, is_lazy, flops, memory, vocab_size)


def network_of(module: LightningModule) -> nn.Module:
    """The network of one of our modules; another module is its own network."""
    return module.net if isinstance(module, LitLanguageModel) else module


def memory_of(
    module: LightningModule,
    optimizers: list[Any],
    step: StepSize,
    precision: str,
    device: str | None = None,
    shards: int = 1,
) -> sizes.Memory | None:
    """The memory of a training step. None for a module that is not ours, or whose network torch cannot trace.

    Args:
        module: The module with its network.
        optimizers: Of the module.
        step: The size of a step.
        precision: The Trainer's.
        device: The type of the device. None: the module's.
        shards: The number of processes that weights, gradients and optimizer state are sharded over.
    """
    if not isinstance(module, LitLanguageModel):
        return None
    shape = sizes.Step(step.micro, step.block_size, step.packed, precision, device or module.device.type, module.passes)
    try:
        net = _unsharded(module)
        memory = sizes.memory(net, optimizers, shape)
        return sizes.sharded(memory, net, shards) if shards > 1 else memory
    except Exception:  # a network of anybody's may do what torch cannot trace without its values; that must stop no run
        return None


def _unsharded(module: LitLanguageModel) -> Network:
    """The module's network. If that is sharded, one like it on the meta device, which one process can run alone."""
    if not needs_all(module.net):
        return module.net
    with torch.device("meta"), WithoutInitialisation():
        net = module.build_network().to(next(module.net.parameters()).dtype)
    settings = (bool, torch.dtype, type(None))  # such as `activation_checkpointing`, which a module sets after building
    for name, value in vars(module.net).items():
        if isinstance(value, settings) and not name.startswith("_"):
            setattr(net, name, value)
    return net


def run_size(trainer: Trainer, device: str) -> RunSize:
    """The size of the run that a Trainer is about to do."""
    steps = trainer.estimated_stepping_batches
    step = data_of(trainer).step_size
    an_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    known = int(steps) if 0 <= steps < float("inf") else None
    epochs = known / an_epoch if known is not None and 0 < an_epoch < float("inf") else None
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return RunSize(known, epochs, step, str(trainer.precision), device + processes)
