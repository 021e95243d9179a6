"""One function for each question of docs/questions.md: it measures, prints its table and says what it found."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.questions.runs import ROWS, SHAPE, Budget, Corpus, Sample, Table, train
from lit_gpt import GPT, GPTConfig
from lit_gpt.attention import attention
from lit_gpt.model import Attention

Experiment = Callable[[Budget], "Finding"]
Init = Literal["gpt2", "normal", "zero_proj", "torch"]
INITS: tuple[Init, ...] = ("normal", "gpt2", "zero_proj")
#: Head sizes D that are trained with and without the division of scores.
TRAINED_HEADS = (16, 128)
STARTS: tuple[Init, ...] = ("gpt2", "zero_proj", "torch")


@dataclass
class Finding:
    """What an experiment found: its table, figures that the text quotes, and what the text claims, true or not."""

    table: Table
    figures: dict[str, float]
    claims: dict[str, bool]


# ---- why scores are divided by sqrt(D)


def scale(budget: Budget) -> Finding:
    """Attention with and without the division, for random heads and in training."""
    keys = 64
    figures: dict[str, float] = {}
    table = Table(["D", "spread of q·k", "largest of 64 weights", "if divided", "val/loss", "if divided"])
    trained: dict[int, tuple[Sample, Sample]] = {}
    for D in (4, 16, 64, 128):
        q, k = torch.randn(2, 1, 256, keys, D)
        spread = (q @ k.mT).std().item()
        raw, divided = (_weights(queries, k).max(-1).values.mean().item() for queries in (_up(q), q))
        if D in TRAINED_HEADS:
            trained[D] = _trained_scale(budget, D, _undivided), _trained_scale(budget, D, nullcontext)
        table.add(D, f"{spread:.1f}", f"{raw:.2f}", f"{divided:.2f}", *trained.get(D, ("", "")))
        figures |= {f"spread_{D}": spread, f"raw_{D}": raw, f"divided_{D}": divided}
    costs = {D: [raw - divided for raw, divided in zip(*(x.values for x in trained[D]), strict=True)] for D in trained}
    figures |= {f"cost_{D}": statistics.fmean(costs[D]) for D in costs} | {"steps": budget.steps // 2}
    claims = {
        "Not divided, the largest weight grows with D.": figures["raw_128"] > figures["raw_4"] + 0.2,
        "Divided, it does not depend on D.": abs(figures["divided_128"] - figures["divided_4"]) < 0.02,
        "At D = 128 training without the division ends worse at every seed.": min(costs[128]) > 0,
        "At D = 16 it costs less than a quarter of that.": abs(figures["cost_16"]) < figures["cost_128"] / 4,
    }
    return Finding(table, figures, claims)


def _up(q: Tensor) -> Tensor:
    """Undo the division that attention is about to make."""
    return q * q.size(-1) ** 0.5


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """The last query's attention weights, (B, H, S): what comes out when the values are the unit vectors."""
    values = torch.eye(k.size(2)).expand(*k.shape[:2], -1, -1)
    return attention(q, k, values)[:, :, -1]


@contextmanager
def _undivided() -> Iterator[None]:
    """The model's attention without its division."""

    def raw(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return attention(_up(q), k, v, **options)

    with patch.dict(Attention.forward.__globals__, attention=raw):
        yield


def _trained_scale(budget: Budget, D: int, attending: Callable[[], AbstractContextManager[None]]) -> Sample:
    """Validation losses of one layer, 128 wide, with heads of D channels."""
    shape = {"n_layer": 1, "n_embd": 128, "n_head": 128 // D}
    with attending(), Corpus(None, budget.val_chars) as data:
        runs = [train(data.characters(seed), budget.steps // 2, seed, **shape)[1] for seed in range(budget.seeds)]
    return Sample([metrics["val/loss"] for metrics in runs])


# ---- what scaling the initial outputs of blocks does to the stream


def residual(budget: Budget) -> Finding:
    """Variance of the stream after every block of networks that were not trained, by depth and initial weights."""
    depths = (4, 16, 64)
    figures: dict[str, float] = {}
    table = Table(["blocks L", "after block", "normal", "gpt2", "zero_proj"])
    for depth in depths:
        growth = {init: _growth(depth, init) for init in INITS}
        for place in (depth // 4, depth // 2, depth):
            table.add(depth, place, *(f"{growth[init][place]:.2f}" for init in growth))
        figures |= {f"{init}_{depth}": growth[init][-1] for init in growth}
    claims = {
        "Unscaled, the variance at the end grows with depth.": figures["normal_64"] > 8 * figures["normal_4"],
        "Scaled, it does not.": figures["gpt2_64"] < 1.25 * figures["gpt2_4"],
    }
    return Finding(table, figures, claims)


@torch.no_grad()
def _growth(depth: int, init: Init) -> list[float]:
    """Variance of the stream after 0, 1, ... `depth` blocks, in multiples of the embedding's."""
    torch.manual_seed(0)
    shape = SHAPE | {"n_layer": depth, "n_embd": 128}
    net = GPT(GPTConfig.from_preset("gpt2", **shape, vocab_size=256, init=init))
    variances: list[float] = []
    net.blocks[0].register_forward_pre_hook(lambda _, x: variances.append(x[0].var().item()))
    for block in net.blocks:
        block.register_forward_hook(lambda _, __, x: variances.append(x.var().item()))
    net(torch.randint(256, (4, 64)))
    return [v / variances[0] for v in variances]


# ---- what a tied head saves and costs


def tied(budget: Budget) -> Finding:
    """The same network with one table and with two, at a small and at a large vocabulary."""
    table = Table(["tokens", "V", "parameters, two tables", "one", "saved", "nats a character, two tables", "one"])
    figures: dict[str, float] = {}
    claims: dict[str, bool] = {}
    for name, vocab_size in (("characters", None), ("bpe", 300 if budget.quick else 1024)):
        runs = {one: _trained_head(budget, vocab_size, one) for one in (False, True)}
        (V, two, untied), (_, one, tied_) = runs[False], runs[True]
        table.add(name, V, f"{two:,}", f"{one:,}", f"{1 - one / two:.0%}", untied, tied_)
        figures |= {f"saved_{name}": 1 - one / two, f"cost_{name}": tied_.mean - untied.mean}
        claims[f"Two tables win with {name}, in every run."] = untied.below(tied_)
    return Finding(table, figures, claims)


def _trained_head(budget: Budget, vocab_size: int | None, one: bool) -> tuple[int, int, Sample]:
    losses = []
    with Corpus(None, budget.val_chars) as corpus:
        for seed in range(budget.seeds):
            data = corpus.characters(seed) if vocab_size is None else corpus.bpe(seed, vocab_size)
            net, metrics = train(data, budget.steps, seed, tied_head=one)
            losses.append(metrics["val/nats_per_char"])
        return data.vocab_size, net.num_parameters(), Sample(losses)


# ---- where dropout helps


def dropout(budget: Budget) -> Finding:
    """The same number of steps over texts of three lengths: many passes, some, less than one."""
    budget, figures = replace(budget, seeds=2), {"rate": 0.2, "steps": budget.steps, "seeds": 2}
    table = Table(["characters", "passes", "dropout", "train_eval/loss", "val/loss"])
    losses: dict[tuple[str, float], Sample] = {}
    for name, chars in (("many", 4_000), ("some", 16_000), ("less", None)):
        with Corpus(chars, budget.val_chars) as data:
            passes = budget.steps * ROWS * SHAPE["block_size"] / data.train_chars
            for rate in (0.0, figures["rate"]):
                train_eval, losses[name, rate] = _both_losses(data, budget, dropout=rate)
                table.add(f"{data.train_chars:,}", f"{passes:.1f}", rate, train_eval, losses[name, rate])
        without, with_ = losses[name, 0.0], losses[name, figures["rate"]]
        figures |= {f"{name}_passes": passes, f"{name}_without": without.mean, f"{name}_with": with_.mean}
    gains = {name: figures[f"{name}_without"] - figures[f"{name}_with"] for name in ("many", "some", "less")}
    claims = {
        "Over many passes dropout wins, in every run.": losses["many", 0.2].below(losses["many", 0.0]),
        "In less than one pass it loses, in every run.": losses["less", 0.0].below(losses["less", 0.2]),
        "After some passes it still loses.": gains["some"] < 0,
        "The more passes, the more it gains.": gains["many"] > gains["some"] > gains["less"],
    }
    return Finding(table, figures, claims)


def _both_losses(data: Corpus, budget: Budget, **shape: Any) -> tuple[Sample, Sample]:
    runs = [train(data.characters(seed), budget.steps, seed, **shape)[1] for seed in range(budget.seeds)]
    return Sample([run["train_eval/loss"] for run in runs]), Sample([run["val/loss"] for run in runs])


# ---- why a wider model overfits while its validation loss improves


def width(budget: Budget) -> Finding:
    """Training and validation loss of ever wider networks on the same text."""
    widths = (16, 32, 64, 128)
    figures: dict[str, float] = {}
    table = Table(["width", "parameters", "train_eval/loss", "val/loss", "gap"])
    losses: list[tuple[Sample, Sample]] = []
    with Corpus(4_000 if budget.quick else 64_000, budget.val_chars) as data:
        for n_embd in widths:
            losses.append(_both_losses(data, budget, n_embd=n_embd))
            train_eval, val = losses[-1]
            gap = val.mean - train_eval.mean
            table.add(n_embd, f"{_parameters(n_embd):,}", train_eval, val, f"{gap:.3f}")
            figures |= {f"val_{n_embd}": val.mean, f"gap_{n_embd}": gap}
    gaps = [figures[f"gap_{n}"] for n in widths]
    claims = {
        "The gap widens with every width.": gaps == sorted(gaps),
        "The validation loss falls with every width, in every run.": all(
            wide[1].below(narrow[1]) for narrow, wide in itertools.pairwise(losses)
        ),
    }
    return Finding(table, figures, claims)


def _parameters(n_embd: int) -> int:
    """Those of a small network, but for its embedding."""
    return GPT(GPTConfig(**{**SHAPE, "n_embd": n_embd}, vocab_size=100)).num_parameters(embeddings=False)


# ---- an embedding against a linear layer on one-hots


def onehot(budget: Budget) -> Finding:
    """Look up rows of a table, or multiply one-hot vectors with it: results, gradients and time."""
    tokens, channels, rounds = 256, 384, 1 if budget.quick else 7
    figures: dict[str, float] = {}
    table = Table(["V", "same output", "same gradient", "lookup", "one-hot", "times", "input of one-hots"])
    claims: dict[str, bool] = {}
    for V in (100, 4096, 50257):
        weight, ids = torch.randn(V, channels, requires_grad=True), torch.randint(V, (tokens,))
        ways = (lambda w, i: F.embedding(i, w)), (lambda w, i: F.one_hot(i, len(w)).float() @ w)
        (looked, looked_grad, fast), (multiplied, grad, slow) = (_timed(way, weight, ids, rounds) for way in ways)
        same = torch.equal(looked, multiplied), torch.allclose(looked_grad, grad, rtol=1e-5, atol=1e-5)
        agreed, times = (("no", "yes")[agree] for agree in same), (f"{1e3 * s:.2f} ms" for s in (fast, slow))
        megabytes = 4 * V * tokens / 1e6
        table.add(V, *agreed, *times, f"{slow / fast:.0f}", f"{megabytes:.1f} MB")
        figures |= {f"times_{V}": slow / fast, f"megabytes_{V}": megabytes}
        claims |= {f"Both ways agree at V = {V}.": all(same), f"The lookup is faster at V = {V}.": slow > fast}
    return Finding(table, figures, claims)


def _timed(
    way: Callable[[Tensor, Tensor], Tensor], weight: Tensor, ids: Tensor, rounds: int
) -> tuple[Tensor, Tensor, float]:
    """Output, the weight's gradient, and the median seconds of CPU of a forward and backward pass."""
    seconds = []
    for _ in range(rounds):
        weight.grad = None
        start = time.process_time()
        out = way(weight, ids)
        out.backward(out.detach())
        seconds.append(time.process_time() - start)
    assert weight.grad is not None
    return out.detach(), weight.grad, statistics.median(seconds)


# ---- why the first loss is ln V


def first_loss(budget: Budget) -> Finding:
    """The loss of networks that were not trained, by vocabulary and initial weights."""
    figures: dict[str, float] = {}
    claims: dict[str, bool] = {}
    table = Table(["V", "ln V", "gpt2", "zero_proj", "torch", "gpt2, head x 50"])
    for V in (65, 1024, 50257):
        losses = {init: _loss_at_start(V, init) for init in STARTS}
        large = _loss_at_start(V, "gpt2", head=50.0)
        table.add(V, f"{math.log(V):.3f}", *(f"{loss:.3f}" for loss in losses.values()), f"{large:.1f}")
        figures |= {"ln": math.log(V), "large": large, "torch": losses["torch"], "gpt2": losses["gpt2"]}
        claims[f"Within 0.2 of ln V at V = {V}."] = all(abs(x - math.log(V)) < 0.2 for x in losses.values())
    return Finding(table, figures, claims)


@torch.no_grad()
def _loss_at_start(V: int, init: Init, head: float = 1.0) -> float:
    """Mean loss of random targets; `head` multiplies the head's weights."""
    torch.manual_seed(0)
    net = GPT(GPTConfig(**{**SHAPE, "n_embd": 128}, vocab_size=V, init=init, softcap=None))
    assert isinstance(net.lm_head, nn.Linear)
    net.lm_head.weight.mul_(head)
    ids = torch.randint(V, (8, SHAPE["block_size"] + 1))
    return F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()


EXPERIMENTS: dict[str, Experiment] = {
    "scale": scale,
    "residual": residual,
    "tied": tied,
    "dropout": dropout,
    "width": width,
    "onehot": onehot,
    "first_loss": first_loss,
}
