"""Tokens per second of a training step: ours bare, through `fit` and as the docs recommend; nanoGPT and `transformers`.

    python -m benchmarks.train_speed [--rounds 3] [--cases a b c | gpu] [--nanogpt CLONE] [--threads 2] [--record]

A step is forward, backward, clipping at 1 and AdamW; the same mathematics for all (GPT-2 with biases, exact GELU,
float32, no dropout), but for `recommended`: the best that our docs name for the machine, in precision, compilation and
architecture defaults. All are timed in turn, as often as `--rounds` says. Figures are lines of JSON. Needs the `bench`
extra; on CUDA every contestant runs under bfloat16 autocast, and GPT-2 with compiled blocks takes part too, with a
residual stream in float32 and in bfloat16.
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
from lit_gpt.callbacks.throughput import peak_flops
from lit_gpt.loss import cross_entropy_sum
from lit_gpt.model import GPT, GPTConfig
from lit_gpt.muon import has_bfloat16
from lit_gpt.optim import OptimizerConfig, build_optimizer

WARMUP = 3
OURS_COMPILED = ("gpt2_compiled", "gpt2_compiled_bf16_stream")
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
    """All that are timed, by name; on CUDA those first that matter most, because time is short there."""
    same = ["--preset=gpt2", "--model.config.activation=gelu"]
    same += ["--trainer.precision=bf16-mixed"] if DEVICE == "cuda" else []
    made: dict[str, Contestant] = {}
    if DEVICE == "cuda":
        made |= {"nanogpt_compiled": nanogpt(case, clone, True)} if clone else {}
        compiled = [*same, "--model.compile=true"]
        made["gpt2_compiled_bf16_stream"] = through_fit(case, *compiled, "--model.residual_dtype=bfloat16")
        made["gpt2_compiled"] = through_fit(case, *compiled)
    made |= {"bare": ours_bare(case), "fit": through_fit(case, *same)}
    made["recommended"] = through_fit(case, *recommended())
    if importlib.util.find_spec("transformers"):
        made["transformers"] = transformers(case)
    if clone:
        made["nanogpt"] = nanogpt(case, clone, False)
    if clone and "nanogpt_compiled" not in made:
        made["nanogpt_compiled"] = nanogpt(case, clone, True)
    return made


def measure(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Show each rate and ratio as soon as it is known, and return them all: tokens per second, model FLOPs utilisation
    on CUDA, and ratios.
    """
    runs = contestants(case, options.nanogpt)
    rates: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    for _ in range(options.rounds):
        for contestant, seconds in list(runs.items()):
            try:
                rates.setdefault(contestant, []).append(case.tokens / seconds(case.steps))
            except Exception as error:  # the others are still wanted
                report.show({contestant: f"failed: {type(error).__name__}: {str(error)[:160]}"})
                del runs[contestant], rates[contestant]
            found = summary(case, rates)
            report.show(found)
        print(f"({name})" + "".join(f"  {c} {r[-1]:,.0f}" for c, r in rates.items()), flush=True)
    return found


def summary(case: Case, rates: dict[str, list[float]]) -> dict[str, Any]:
    """Tokens per second of those timed so far; the ratio of `fit` to the best peer, of compiled GPT-2 to compiled
    nanoGPT, and of the recommended settings to nanoGPT as its README runs it.
    """
    found = {contestant: round(statistics.median(values)) for contestant, values in rates.items()}
    theirs = [c for c in rates if c.startswith(("nanogpt", "transformers"))]
    pairs = [("fit", max(theirs, key=lambda c: found[c]))] if theirs else []
    pairs += [(ours, "nanogpt_compiled") for ours in OURS_COMPILED] + [("recommended", "nanogpt")]
    ratios = {f"{a}_over_{b}": ratio(rates[a], rates[b]) for a, b in pairs if a in rates and b in rates}
    return {**found, **ratios, **utilisation(case, found)}


def utilisation(case: Case, found: dict[str, int]) -> dict[str, dict[str, float]]:
    """Model FLOPs utilisation on CUDA, by the same number of FLOPs a token for all that are GPT-2."""
    peak = peak_flops(torch.device(DEVICE))
    if peak is None:
        return {}
    with torch.device("meta"):
        flops = GPT(GPTConfig.from_preset("gpt2", pad_vocab_to=case.pad_vocab_to, **case.shape)).flops_per_token()
    of = [c for c in found if c != "recommended"]  # another architecture
    return {"mfu": {contestant: round(found[contestant] * flops / peak, 4) for contestant in of}}


def table(found: dict[str, Any]) -> list[str]:
    """The page's lines of the case on CUDA, beside compiled nanoGPT."""
    lines = ["| who | tokens/s | MFU | times compiled nanoGPT |", "|---|---|---|---|"]
    peer = found.get("nanogpt_compiled")
    for who, rate in found.items():
        if isinstance(rate, int):
            mfu = f"{found['mfu'][who]:.1%}" if who in found["mfu"] else ""
            lines.append(f"| {who.replace('_', ' ')} | {rate:,} | {mfu} | {f'{rate / peer:.3f}' if peer else ''} |")
    return [*lines, "", "Marks: compiled GPT-2 at 45 % MFU or more and 1.1 times compiled nanoGPT or more."]


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
        lines = table(figures) if "mfu" in figures else [line(CASES[name], figures)]
        report.finish(f"train_speed {name}", figures, lines, options, DEVICE)


def line(case: Case, found: dict[str, float]) -> str:
    """The page's line: tokens per second, then the ratios."""
    shape = case.shape
    size = f"{shape['n_layer']} x {shape['n_embd']}, block {shape['block_size']}, batch {case.rows}"
    rates = ", ".join(f"{key} {value:,.0f}" for key, value in found.items() if "_over_" not in key)
    ratios = ", ".join(f"{key.replace('_', ' ')} **{value}**" for key, value in found.items() if "_over_" in key)
    return f"{size}: tokens/s {rates}; {ratios}"


if __name__ == "__main__":
    main()
