"""Tokens per second of a training step: ours bare, through `fit` and as the docs recommend; nanoGPT and `transformers`.

    python -m benchmarks.train_speed [--rounds 3] [--cases a b c | gpu] [--nanogpt CLONE] [--threads 2] [--record]

A step is forward, backward, clipping at 1 and AdamW; the same mathematics for all (GPT-2 with biases, exact GELU,
float32, no dropout), but for `recommended`: the best that our docs name for the machine, in precision, compilation and
architecture defaults. All are timed in turn, as often as `--rounds` says. Each case ends with a line of JSON. Needs the
`bench` extra; on CUDA every contestant runs under bfloat16 autocast.
"""

import argparse
import contextlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers, report
from benchmarks.report import DEVICE
from benchmarks.timing import fit_seconds, synchronize
from lit_gpt.loss import cross_entropy_sum
from lit_gpt.model import GPT, GPTConfig
from lit_gpt.muon import has_bfloat16
from lit_gpt.optim import OptimizerConfig, build_optimizer

WARMUP = 3
RATES = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}
#: Seconds of one step, averaged over a number of them.
Contestant = Callable[[int], float]


@dataclass(frozen=True)
class Case:
    """A size: shape, rows of a step, and how many steps are timed."""

    shape: dict[str, int]
    rows: int
    steps: int
    pad_vocab_to: int = 1

    @property
    def padded(self) -> dict[str, int]:
        """The shape with the padded vocabulary, for peers that know of no padding."""
        V = -(-self.shape["vocab_size"] // self.pad_vocab_to) * self.pad_vocab_to
        return {**self.shape, "vocab_size": V}

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.shape["block_size"]


CASES = {
    "a": Case({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 257}, 12, 40),
    "b": Case({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 257}, 16, 4),
    "c": Case({"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 512, "vocab_size": 50304}, 2, 3),
    # GPT-2's own vocabulary, whose rows are padded to 50,304. nanoGPT trains all of these.
    "gpu": Case({"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257}, 32, 40, 64),
}


def loop(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor], Tensor], case: Case) -> Contestant:
    """A training loop written by hand around ``loss`` of token ids (B, T + 1)."""

    def step() -> None:
        ids = torch.randint(257, (case.rows, case.shape["block_size"] + 1), device=DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            value = loss(ids)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def seconds(steps: int) -> float:
        for _ in range(WARMUP):
            step()
        synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize()
        return (time.perf_counter() - start) / steps

    return seconds


def ours_bare(case: Case) -> Contestant:
    """Our network and optimizer."""
    net = GPT(GPTConfig.from_preset("gpt2", activation="gelu", pad_vocab_to=case.pad_vocab_to, **case.shape)).to(DEVICE)
    optimizer = build_optimizer(net, OptimizerConfig(kind="adamw", **RATES))  # type: ignore[arg-type]
    vocab = case.shape["vocab_size"]

    def loss(ids: Tensor) -> Tensor:
        hidden, targets = net.hidden(ids[:, :-1]), ids[:, 1:]
        nats = cross_entropy_sum(hidden, net.head, [net.wte.weight], targets, vocab, linear=net.linear_head)
        return nats / targets.numel()

    return loop(net, optimizer, loss, case)


def nanogpt(case: Case, clone: Path, compiled: bool) -> Contestant:
    """nanoGPT's network and its own choice of optimizer."""
    plain = peers.nanogpt(clone, case.padded).to(DEVICE)
    with contextlib.redirect_stdout(sys.stderr):
        optimizer = plain.configure_optimizers(RATES["weight_decay"], RATES["lr"], RATES["betas"], DEVICE)
    net = torch.compile(plain) if compiled else plain
    return loop(plain, optimizer, lambda ids: net(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1], case)


def transformers(case: Case) -> Contestant:
    """`GPT2LMHeadModel` with torch's AdamW."""
    net: Any = peers.transformers_gpt2(case.padded).to(DEVICE)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True, **RATES)  # type: ignore[arg-type]
    return loop(net, optimizer, lambda ids: peers.cross_entropy(net(ids[:, :-1]).logits, ids[:, 1:]), case)


def through_fit(case: Case, *more: str) -> Contestant:
    """`fit` with everything that is on by default."""
    flags = [f"--model.config.{name}={value}" for name, value in case.shape.items()]
    flags += [f"--model.config.pad_vocab_to={case.pad_vocab_to}"]
    flags += ["--data=BPEDataModule", "--data.tokenizer=byte", f"--data.tokens_per_step={case.tokens}"]
    flags += ["--model.optimizer.kind=adamw", f"--model.optimizer.lr={RATES['lr']}", "--trainer.gradient_clip_val=1.0"]
    flags += ["--model.optimizer.schedule=constant", f"--trainer.accelerator={DEVICE}", "--trainer.devices=1"]
    return lambda steps: fit_seconds([*flags, *more], steps, WARMUP)


def recommended() -> list[str]:
    """What our docs name as fastest for this machine: compiled blocks, bfloat16 where the hardware has it."""
    mixed = ["--trainer.precision=bf16-mixed"] if has_bfloat16(torch.device(DEVICE)) else []
    return ["--model.compile=true", *mixed]


def contestants(case: Case, clone: Path | None) -> dict[str, Contestant]:
    """All that are timed, by name."""
    same = ["--preset=gpt2", "--model.config.activation=gelu"]
    same += ["--trainer.precision=bf16-mixed"] if DEVICE == "cuda" else []
    made = {"bare": ours_bare(case), "fit": through_fit(case, *same)}
    made |= {"recommended": through_fit(case, *recommended())}
    if DEVICE == "cuda":
        gpt2 = ["--preset=gpt2", *recommended()]
        made["gpt2_compiled"] = through_fit(case, *gpt2)
        made["gpt2_compiled_bf16_stream"] = through_fit(case, *gpt2, "--model.residual_dtype=bfloat16")
    if importlib.util.find_spec("transformers"):
        made["transformers"] = transformers(case)
    if clone:
        made |= {"nanogpt": nanogpt(case, clone, False), "nanogpt_compiled": nanogpt(case, clone, True)}
    return made


def measure(name: str, case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Print each round and return tokens per second of each, the ratio of `fit` to the best peer, and of the
    recommended settings to nanoGPT as its README runs it.
    """
    runs = contestants(case, options.nanogpt)
    rates: dict[str, list[float]] = {contestant: [] for contestant in runs}
    for _ in range(options.rounds):
        for contestant, seconds in runs.items():
            rates[contestant].append(case.tokens / seconds(case.steps))
        print(f"({name})" + "".join(f"  {c} {r[-1]:,.0f}" for c, r in rates.items()), flush=True)
    found = {contestant: round(statistics.median(values)) for contestant, values in rates.items()}
    theirs = [c for c in rates if c.startswith(("nanogpt", "transformers"))]
    ratios = {}
    if theirs:
        best = max(theirs, key=lambda c: found[c])
        ratios[f"fit_over_{best}"] = ratio(rates["fit"], rates[best])
    if "nanogpt_compiled" in rates and "gpt2_compiled" in rates:
        ratios["gpt2_compiled_over_nanogpt_compiled"] = ratio(rates["gpt2_compiled"], rates["nanogpt_compiled"])
    if "nanogpt" in rates:
        ratios["recommended_over_nanogpt"] = ratio(rates["recommended"], rates["nanogpt"])
    return {**found, **ratios}


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def main() -> None:
    """Measure the cases that were asked for."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=["a", "b", "c"])
    parser.add_argument("--nanogpt", type=Path, help="folder of a clone of nanoGPT")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.cases:
        figures = measure(name, CASES[name], options)
        report.finish(f"train_speed {name}", figures, [line(CASES[name], figures)], options, DEVICE)


def line(case: Case, found: dict[str, float]) -> str:
    """The page's line: tokens per second, then the ratios."""
    shape = case.shape
    size = f"{shape['n_layer']} x {shape['n_embd']}, block {shape['block_size']}, batch {case.rows}"
    rates = ", ".join(f"{key} {value:,.0f}" for key, value in found.items() if "_over_" not in key)
    ratios = ", ".join(f"{key.replace('_', ' ')} **{value}**" for key, value in found.items() if "_over_" in key)
    return f"{size}: tokens/s {rates}; {ratios}"


if __name__ == "__main__":
    main()
