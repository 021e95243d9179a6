"""Tokens per second of decoding: ours with and without its cache, `transformers` and nanoGPT, in turn.

    python -m benchmarks.generate [--rounds 5] [--new 255] [--threads 2] [--nanogpt CLONE]

A GPT-2 of 6 layers and 384 channels with random weights writes 255 tokens after one, greedily. `transformers` runs the
same weights, exported, and must write the same tokens; on CUDA, where kernels round differently and a tie may fall
either way, the share of equal tokens is told instead. nanoGPT, from a clone of it, has weights of its own and samples.
Prints the rates of each round and the medians of the rounds' ratios; each writes a few tokens before it is timed, and
what has no cache takes part in the first round only. The last line is JSON. Needs the `bench` extra.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers, report
from benchmarks.report import DEVICE
from benchmarks.timing import synchronize
from datamodules.tokenizers import CharTokenizer
from lit_gpt.checkpoint import KEY, PREFIX
from lit_gpt.decode import Sampling, decode
from lit_gpt.interop.exporting import export_huggingface
from lit_gpt.model import GPT, GPTConfig

SHAPE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 65}
#: Tokens before the clock runs: libraries load and memory is taken at first use.
WARM_UP = 4
MARKS = {"transformers": 2.5}
#: Without a cache batch 16 takes minutes, and the ratio is far from any doubt: the first round will do.
SLOW = ("uncached", "nanogpt")

#: Continues ids (B, 1) to (B, 1 + new).
Decoder = Callable[[Tensor, int], Tensor]


def ours(net: GPT, cache: bool) -> Decoder:
    """Our decoding loop."""
    greedy, generator = Sampling(temperature=0), torch.Generator(DEVICE)

    def run(ids: Tensor, new: int) -> Tensor:
        steps = decode(net, ids.tolist(), max_new_tokens=new, sampling=greedy, generator=generator, cache=cache)
        return torch.cat((ids, torch.tensor(list(steps), device=DEVICE).T), dim=1)

    return run


def transformers(net: GPT) -> Decoder:
    """`generate` of `GPT2LMHeadModel` on our weights."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    tokenizer = CharTokenizer(map(chr, range(32, 32 + SHAPE["vocab_size"])))
    entry = {"module": "lit_gpt.module.LitGPT", "config": asdict(net.config), "tokenizer": tokenizer.to_dict()}
    state = {PREFIX + name: tensor for name, tensor in net.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        export_huggingface({KEY: entry, "state_dict": state}, folder)
        disable_progress_bar()
        peer: Any = AutoModelForCausalLM.from_pretrained(folder)
        peer = peer.to(DEVICE).eval()
    options = {"do_sample": False, "pad_token_id": 0}
    return lambda ids, new: peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **options)


def nanogpt(clone: Path) -> Decoder:
    """`generate` of nanoGPT's network, which has no cache."""
    net = peers.nanogpt(clone, SHAPE).to(DEVICE).eval()
    return net.generate


def contestants(clone: Path | None) -> dict[str, Decoder]:
    """All that are timed, by name."""
    torch.manual_seed(0)
    net = GPT(GPTConfig.from_preset("gpt2", **SHAPE)).to(DEVICE).eval()
    runs = {"ours": ours(net, cache=True), "transformers": transformers(net), "uncached": ours(net, cache=False)}
    return runs | ({"nanogpt": nanogpt(clone)} if clone else {})


def tokens_per_second(run: Decoder, ids: Tensor, new: int) -> float:
    """Rate of one call, all rows counted."""
    synchronize()
    start = time.perf_counter()
    run(ids, new)
    synchronize()
    return ids.size(0) * new / (time.perf_counter() - start)


def equal_share(ours: Tensor, theirs: Tensor) -> float:
    """Share of tokens (B, T) that are equal, which is all of them on a CPU."""
    share = float((ours == theirs).float().mean())
    assert share == 1 or DEVICE == "cuda", "the same weights wrote other tokens"
    return share


def measure(runs: dict[str, Decoder], B: int, options: argparse.Namespace) -> dict[str, float]:
    """Print each round's rates of batch `B`; return the medians of our rate over each peer's, and of our rate."""
    ids = torch.arange(B, device=DEVICE)[:, None]  # (B, 1)
    for run in runs.values():
        run(ids, WARM_UP)
    share = equal_share(*(runs[name](ids, options.new)[:, 1:] for name in ("ours", "transformers")))
    print(f"batch {B}: {share:.1%} of the tokens are those of transformers", flush=True)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(options.rounds):
        turn = [name for name in runs if i == 0 or name not in SLOW]
        for name in turn:
            rates[name].append(tokens_per_second(runs[name], ids, options.new))
        print(f"batch {B:<3}" + "".join(f"  {name} {rates[name][-1]:,.0f}" for name in turn), flush=True)
    figures = {"tokens_per_second": round(statistics.median(rates["ours"])), "equal_tokens": round(share, 4)}
    for peer in list(runs)[1:]:
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[peer], strict=False))
        figures[f"over_{peer}"] = round(ratio, 3)
        mark = f" (mark {MARKS[peer]})" if peer in MARKS else ""
        print(f"batch {B}: {ratio:.2f} times {peer}{mark}", flush=True)
    return figures


def line(name: str, found: dict[str, float]) -> str:
    """The page's line of a batch."""
    peers = {"uncached": "itself without its cache", "nanogpt": "nanoGPT"}
    times = {name.removeprefix("over_"): ratio for name, ratio in found.items() if name.startswith("over_")}
    over = ", ".join(f"**{ratio:.2f}** times {peers.get(peer, peer)}" for peer, ratio in times.items())
    share = f"{found['equal_tokens']:.1%} of the tokens are those of transformers"
    return f"- {name.replace('_', ' ')}: {found['tokens_per_second']:,} tokens/s, {over}; {share}"


def main() -> None:
    """Measure batch 1 and 16."""
    parser = report.parser(__doc__, rounds=5, threads=torch.get_num_threads())
    parser.add_argument("--new", type=report.at_least_1, default=255, help="tokens to write")
    parser.add_argument("--nanogpt", type=peers.clone, help="folder of a clone of nanoGPT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        runs = contestants(options.nanogpt)
        figures: dict[str, Any] = {}
        for B in (1, 16):
            figures[f"batch_{B}"] = measure(runs, B, options)
            report.show(figures)
    lines = [line(name, found) for name, found in figures.items()]
    report.finish("generate", {"threads": options.threads, **figures}, lines, options, report.DEVICE)


if __name__ == "__main__":
    main()
