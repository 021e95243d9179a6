"""Tokens per second of a training step: ours bare, through `fit` and as the docs recommend; nanoGPT and `transformers`.

    python -m benchmarks.train_speed [--rounds 5] [--seconds 5] [--cases a b c | gpu] [--only fit nanogpt ...]
                                     [--nanogpt CLONE] [--threads 2] [--record]

A step is forward, backward, clipping at 1 and AdamW; the same mathematics for all (GPT-2 with biases, exact GELU,
float32, no dropout), but for `recommended`: the best that our docs name for the machine, in precision, compilation and
architecture defaults. `bare` is our network in a loop written by hand, `fit` the command of that name with its default
callbacks. `fit_compiled` is `fit` with `model.compile`, and `nanogpt_compiled` is nanoGPT with `torch.compile`. Each
trains in a process of its own (why: `benchmarks.turns`); in each round all take a turn, in an order drawn anew. Figures
are lines of JSON: tokens per second (median, least and most of the rounds), what a step costs in CPU time, page faults
and memory, and ratios by round. Case (c) wants 3.5 GB of memory for each contestant. Needs the `bench` extra. On CUDA
one contestant follows the other, every one under bfloat16 autocast, and `fit_compiled_bf16_stream` has a residual
stream in bfloat16.
"""

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers, report
from benchmarks.report import DEVICE
from benchmarks.turns import Spread, Turn, Turns, cost, fit_command, race, rates, ratio, run_folder
from lit_gpt.callbacks.throughput import peak_flops
from lit_gpt.loss import cross_entropy_sum
from lit_gpt.model import GPT, GPTConfig
from lit_gpt.muon import has_bfloat16
from lit_gpt.optim import OptimizerConfig, build_optimizer

RATES = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}


@dataclass(frozen=True)
class Case:
    """A size: shape, rows of a step, and the fewest steps of a turn."""

    shape: dict[str, int]
    rows: int
    steps: int = 2
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
    "a": Case({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 257}, 12),
    "b": Case({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 257}, 16),
    "c": Case({"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 512, "vocab_size": 50304}, 2),
    # GPT-2's own vocabulary, whose rows are padded to 50,304. nanoGPT trains all of these.
    "gpu": Case({"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257}, 32, 40, 64),
}

#: Everything that may be timed; what each is: at the top.
CONTESTANTS = (
    *("fit", "fit_compiled", "recommended", "bare", "transformers", "nanogpt", "nanogpt_compiled"),
    "fit_compiled_bf16_stream",  # on CUDA alone
)

#: A network, its optimizer and the loss of token ids (B, T + 1).
Parts = tuple[nn.Module, torch.optim.Optimizer, Callable[[Tensor], Tensor]]


def train(case: Case, parts: Parts) -> None:
    """A training loop written by hand, in turns, without an end."""
    (net, optimizer, loss), turns = parts, Turns()
    while True:
        ids = torch.randint(257, (case.rows, case.shape["block_size"] + 1), device=DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            value = loss(ids)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.step_done()


def ours_bare(case: Case) -> Parts:
    """Our network and optimizer."""
    net = GPT(GPTConfig.from_preset("gpt2", activation="gelu", pad_vocab_to=case.pad_vocab_to, **case.shape)).to(DEVICE)
    optimizer = build_optimizer(net, OptimizerConfig(kind="adamw", **RATES))  # type: ignore[arg-type]
    vocab = case.shape["vocab_size"]

    def loss(ids: Tensor) -> Tensor:
        hidden, targets = net.hidden(ids[:, :-1]), ids[:, 1:]
        nats = cross_entropy_sum(hidden, net.head, [net.wte.weight], targets, vocab, linear=net.linear_head)
        return nats / targets.numel()

    return net, optimizer, loss


def nanogpt(case: Case, clone: Path, compiled: bool) -> Parts:
    """nanoGPT's network and its own choice of optimizer."""
    plain = peers.nanogpt(clone, case.padded).to(DEVICE)
    with contextlib.redirect_stdout(sys.stderr):
        optimizer = plain.configure_optimizers(RATES["weight_decay"], RATES["lr"], RATES["betas"], DEVICE)
    net = torch.compile(plain) if compiled else plain
    return plain, optimizer, lambda ids: net(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1]


def transformers(case: Case) -> Parts:
    """`GPT2LMHeadModel` with torch's AdamW."""
    net: Any = peers.transformers_gpt2(case.padded).to(DEVICE)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True, **RATES)  # type: ignore[arg-type]
    return net, optimizer, lambda ids: peers.cross_entropy(net(ids[:, :-1]).logits, ids[:, 1:])


def loop_of(name: str, case: Case, clone: Path) -> Parts:
    """A contestant that is no `fit`."""
    if name == "bare":
        return ours_bare(case)
    return transformers(case) if name == "transformers" else nanogpt(case, clone, name == "nanogpt_compiled")


def through_fit(case: Case, folder: str, *more: str) -> list[str]:
    """`fit` with everything that is on by default."""
    flags = [f"--model.config.{name}={value}" for name, value in case.shape.items()]
    flags += [f"--model.config.pad_vocab_to={case.pad_vocab_to}"]
    flags += ["--data=BPEDataModule", "--data.tokenizer=byte", f"--data.tokens_per_step={case.tokens}"]
    flags += ["--model.optimizer.kind=adamw", f"--model.optimizer.lr={RATES['lr']}", "--trainer.gradient_clip_val=1.0"]
    flags += ["--model.optimizer.schedule=constant", f"--trainer.accelerator={DEVICE}", "--trainer.devices=1"]
    return fit_command([*flags, *more], folder)


def recommended() -> list[str]:
    """What our docs name as fastest for this machine: compiled blocks, bfloat16 where the hardware has it."""
    mixed = ["--trainer.precision=bf16-mixed"] if has_bfloat16(torch.device(DEVICE)) else []
    return ["--model.compile=true", *mixed]


def commands(name: str, folder: str, options: argparse.Namespace) -> dict[str, list[str]]:
    """What each contestant is started by; on CUDA those first that matter most, because time is short there."""
    case, clone = CASES[name], options.nanogpt
    same = ["--preset=gpt2", "--model.config.activation=gelu"]
    same += ["--trainer.precision=bf16-mixed"] if DEVICE == "cuda" else []
    compiled = [*same, "--model.compile=true"]
    fits = {"fit_compiled_bf16_stream": [*compiled, "--model.residual_dtype=bfloat16"]} if DEVICE == "cuda" else {}
    fits |= {"fit_compiled": compiled, "fit": same, "recommended": recommended()}
    given = [f"--nanogpt={clone}"] if clone else []
    play = [sys.executable, "-m", "benchmarks.train_speed", "--cases", name, *given, "--play"]
    loops = ["bare", *(["transformers"] if importlib.util.find_spec("transformers") else [])]
    loops += ["nanogpt"] if clone else []
    found = {"nanogpt_compiled": [*play, "nanogpt_compiled"]} if clone else {}
    found |= {contestant: through_fit(case, folder, *flags) for contestant, flags in fits.items()}
    found |= {contestant: [*play, contestant] for contestant in loops}
    return {c: command for c, command in found.items() if not options.only or c in options.only}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a case, which are also shown as soon as they are known."""
    case, found = CASES[name], dict[str, Any]()
    seconds = 0 if DEVICE == "cuda" else options.seconds
    with run_folder() as folder:
        asked = commands(name, folder, options)
        for turns in race(asked, options.rounds, case.steps, seconds, options.threads, together=DEVICE == "cpu"):
            found = summary(case, turns)
            report.show(found)
    return found


def summary(case: Case, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """What each contestant's steps took so far, the ratios, and on CUDA model FLOPs utilisation."""
    found: dict[str, Any] = {name: asdict(rates(each, case.tokens)) | cost(each) for name, each in turns.items()}
    utilisation(case, found)
    return found | {name: asdict(spread) for name, spread in ratios(turns, case).items()}


def utilisation(case: Case, found: dict[str, Any]) -> None:
    """Add the model FLOPs utilisation on CUDA, by the same number of FLOPs a token for all that are GPT-2."""
    peak = peak_flops(torch.device(DEVICE))
    if peak is None:
        return
    with torch.device("meta"):
        flops = GPT(GPTConfig.from_preset("gpt2", pad_vocab_to=case.pad_vocab_to, **case.shape)).flops_per_token()
    for name in found.keys() - {"recommended"}:  # another architecture
        found[name]["mfu"] = round(found[name]["median"] * flops / peak, 4)


def ratios(turns: dict[str, list[Turn]], case: Case) -> dict[str, Spread]:
    """Ours over the best peer, the one of the highest median; recommended over nanoGPT as its README runs it on a CPU,
    which is not compiled.
    """
    theirs = [c for c in turns if c.startswith(("nanogpt", "transformers"))]
    best = max(theirs, key=lambda c: rates(turns[c], case.tokens).median, default="")
    pairs = [(ours, best) for ours in turns if ours.startswith("fit")] + [("recommended", "nanogpt")]
    return {f"{a}_over_{b}": ratio(turns[a], turns[b]) for a, b in pairs if a in turns and b in turns}


def main() -> None:
    """Measure the cases that were asked for."""
    parser = report.parser(__doc__, rounds=5, threads=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5, help="the least seconds of a turn, on a CPU")
    parser.add_argument(
        "--cases", nargs="+", choices=tuple(CASES), default=["a", "b", "c"], help="sizes of the network"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTESTANTS,
        metavar="NAME",
        help="some contestants alone: " + ", ".join(CONTESTANTS),
    )
    parser.add_argument("--nanogpt", type=peers.clone, help="folder of a clone of nanoGPT")
    parser.add_argument("--play", help=argparse.SUPPRESS)  # be a contestant of another process
    options = parser.parse_args()
    if not options.nanogpt and any(name.startswith("nanogpt") for name in options.only or ()):
        parser.error("nanoGPT is to be timed: add --nanogpt with the folder of a clone of it")
    if options.play:
        case = CASES[options.cases[0]]
        train(case, loop_of(options.play, case, options.nanogpt))
    for name in options.cases:
        figures = measure(name, options)
        if not figures:
            sys.exit(f"case {name}: no contestant could be timed, so nothing is recorded; their errors are above")
        lines = table(figures) if DEVICE == "cuda" else cpu_table(CASES[name], figures)
        report.finish(f"train_speed {name}", figures, lines, options, DEVICE)


def cpu_table(case: Case, found: dict[str, Any]) -> list[str]:
    """The page's lines of a case on a CPU: each contestant, then the ratios."""
    shape = case.shape
    lines = [f"{shape['n_layer']} layers of {shape['n_embd']} channels, block {shape['block_size']}, batch {case.rows}"]
    lines += ["", "| who | tokens/s | CPU ms a step | page faults a step |", "|---|---|---|---|"]
    paces = {name: figures for name, figures in found.items() if "_over_" not in name}
    for who, figures in paces.items():
        cells = [who, spread(figures, "{:,.0f}"), f"{figures['cpu_ms']:,.1f}", f"{figures['page_faults']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    ratios = {name.replace("_", " "): figures for name, figures in found.items() if name not in paces}
    return [*lines, "", *(f"- {name} **{spread(figures, '{}')}**" for name, figures in ratios.items())]


def table(found: dict[str, Any]) -> list[str]:
    """The page's lines of the case on CUDA, beside compiled nanoGPT."""
    lines = ["| who | tokens/s | MFU | times compiled nanoGPT |", "|---|---|---|---|"]
    peer = found.get("nanogpt_compiled", {}).get("median")
    for who, figures in found.items():
        if isinstance(figures, dict) and "_over_" not in who:  # not the seconds of the whole part
            mfu = f"{figures['mfu']:.1%}" if "mfu" in figures else ""
            times = f"{figures['median'] / peer:.3f}" if peer else ""
            lines.append(f"| {who.replace('_', ' ')} | {figures['median']:,.0f} | {mfu} | {times} |")
    return [*lines, "", "Marks: compiled GPT-2 at 45 % MFU or more and 1.1 times compiled nanoGPT or more."]


def spread(found: dict[str, float], form: str) -> str:
    """Median and range."""
    median, least, most = (form.format(found[key]) for key in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


if __name__ == "__main__":
    main()
