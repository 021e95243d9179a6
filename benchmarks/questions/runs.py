"""What the experiments of benchmarks/questions share: slices of the embedded corpus, small runs, tables."""

import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningDataModule, Trainer

from datamodules import BPEDataModule, CharDataModule
from datamodules.embedded import corpus
from lit_gpt import GPT, GPTConfig, LitGPT
from lit_gpt.optim import OptimizerConfig

SHAPE: dict[str, Any] = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 64}
ROWS = 16
#: That of configs/char.yaml.
OPTIMIZER = OptimizerConfig(kind="muon", lr=0.004, group_lr={"matrices": 0.02}, schedule="linear", warmup=20)


@dataclass
class Budget:
    """How much an experiment may spend; `quick` only shows that everything runs."""

    steps: int = 240
    seeds: int = 3
    val_chars: int = 16_000
    quick: bool = False


QUICK = Budget(steps=2, seeds=2, val_chars=400, quick=True)


@dataclass
class Table:
    """Rows of cells that are printed as they come and kept for the page."""

    head: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        print(_line(self.head) + "\n" + "|---" * len(self.head) + "|", flush=True)

    def add(self, *cells: object) -> None:
        """Append a row and print it."""
        self.rows.append([str(cell) for cell in cells])
        print(_line(self.rows[-1]), flush=True)

    def markdown(self) -> str:
        """The whole table."""
        return "\n".join([_line(self.head), "|---" * len(self.head) + "|", *map(_line, self.rows)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass
class Sample:
    """One figure over several seeds."""

    values: list[float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return statistics.stdev(self.values)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.spread:.3f}"

    def below(self, other: "Sample") -> bool:
        """Whether every seed of this one is below every seed of the other."""
        return max(self.values) < min(other.values)


class Corpus:
    """A part of the embedded corpus as files: the first characters to train on, the last ones to validate on.

    A context manager: the files are gone when it ends.
    """

    def __init__(self, train_chars: int | None, val_chars: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder, text = Path(self._folder.name), corpus()
        train_end = min(train_chars or len(text), len(text) - val_chars)
        self.train_chars = train_end
        (folder / "train.txt").write_text(text[:train_end], encoding="utf-8")
        (folder / "val.txt").write_text(text[-val_chars:], encoding="utf-8")
        self._options: dict[str, Any] = {
            "source": str(folder / "train.txt"),
            "val_source": str(folder / "val.txt"),
            "tokens_per_step": ROWS * SHAPE["block_size"],
            "cache_dir": str(folder / "cache"),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def characters(self, seed: int) -> CharDataModule:
        """One token a character."""
        return CharDataModule(**self._options, seed=seed)

    def bpe(self, seed: int, vocab_size: int) -> BPEDataModule:
        """Tokens of a byte-pair encoding, trained once."""
        return BPEDataModule(**self._options, seed=seed, tokenizer="bpe", vocab_size=vocab_size)


def train(data: LightningDataModule, steps: int, seed: int, **shape: Any) -> tuple[GPT, dict[str, float]]:
    """Train a small GPT; the network and its final metrics, such as ``val/loss`` and ``train_eval/loss``."""
    torch.manual_seed(seed)
    model = LitGPT(GPTConfig(**{**SHAPE, **shape}), OPTIMIZER)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=data)
    (net,) = model.net.trained_nets()
    return net, {name: float(value) for name, value in trainer.callback_metrics.items()}
