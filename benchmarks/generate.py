"""Tokens per second of decoding: ours with and without its cache, `transformers` and nanoGPT, in turn.

    python -m benchmarks.generate [--rounds 5] [--threads 2] [--nanogpt CLONE]

A GPT-2 of 6 layers and 384 channels with random weights writes 255 tokens after one, greedily. `transformers` runs the
same weights, exported, and must write the same tokens. nanoGPT, from a clone of it, has weights of its own and samples.
Prints the rates of each round and the medians of the rounds' ratios; what has no cache takes part in the first round
only. The last line is JSON. Needs the `bench` extra.
"""

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
from lit_gpt.interop import export_huggingface
from lit_gpt.model import GPT, GPTConfig

SHAPE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 65}
NEW = 255
TARGETS = {"transformers": 1.5}
#: Without a cache batch 16 takes minutes, and the ratio is far from any doubt: the first round will do.
SLOW = ("uncached", "nanogpt")

#: Continues ids (B, 1) to (B, 1 + NEW).
Decoder = Callable[[Tensor], Tensor]


def ours(net: GPT, cache: bool) -> Decoder:
    """Our decoding loop."""
    greedy, generator = Sampling(temperature=0), torch.Generator(DEVICE)

    def run(ids: Tensor) -> Tensor:
        steps = decode(net, ids.tolist(), max_new_tokens=NEW, sampling=greedy, generator=generator, cache=cache)
        return torch.cat((ids, torch.tensor(list(steps), device=DEVICE).T), dim=1)

    return run


def transformers(net: GPT) -> Decoder:
    """`generate` of `GPT2LMHeadModel` on our weights."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    tokenizer = CharTokenizer(map(chr, range(32, 32 + SHAPE["vocab_size"])))
    entry = {"network": "GPT", "config": asdict(net.config), "tokenizer": tokenizer.to_dict()}
    state = {PREFIX + name: tensor for name, tensor in net.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        export_huggingface({KEY: entry, "state_dict": state}, folder)
        disable_progress_bar()
        peer: Any = AutoModelForCausalLM.from_pretrained(folder)
        peer = peer.to(DEVICE).eval()
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return lambda ids: peer.generate(ids, attention_mask=torch.ones_like(ids), **options)


def nanogpt(clone: Path) -> Decoder:
    """`generate` of nanoGPT's network, which has no cache."""
    net = peers.nanogpt(clone, SHAPE).to(DEVICE).eval()
    return lambda ids: net.generate(ids, NEW)


def contestants(clone: Path | None) -> dict[str, Decoder]:
    """All that are timed, by name."""
    torch.manual_seed(0)
    net = GPT(GPTConfig.from_preset("gpt2", **SHAPE)).to(DEVICE).eval()
    runs = {"ours": ours(net, cache=True), "transformers": transformers(net), "uncached": ours(net, cache=False)}
    return runs | ({"nanogpt": nanogpt(clone)} if clone else {})


def tokens_per_second(run: Decoder, ids: Tensor) -> float:
    """Rate of one call, all rows counted."""
    start = time.perf_counter()
    run(ids)
    synchronize()
    return ids.size(0) * NEW / (time.perf_counter() - start)


def measure(runs: dict[str, Decoder], B: int, rounds: int) -> dict[str, float]:
    """Print each round's rates of batch `B`; return the medians of our rate over each peer's, and of our rate."""
    ids = torch.arange(B, device=DEVICE)[:, None]  # (B, 1)
    assert torch.equal(runs["ours"](ids), runs["transformers"](ids)), "the same weights wrote other tokens"
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        turn = [name for name in runs if i == 0 or name not in SLOW]
        for name in turn:
            rates[name].append(tokens_per_second(runs[name], ids))
        print(f"batch {B:<3}" + "".join(f"  {name} {rates[name][-1]:,.0f}" for name in turn), flush=True)
    figures: dict[str, float] = {"tokens_per_second": round(statistics.median(rates["ours"]))}
    for peer in list(runs)[1:]:
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[peer], strict=False))
        figures[f"over_{peer}"] = round(ratio, 3)
        target = f" (target {TARGETS[peer]})" if peer in TARGETS else ""
        print(f"batch {B}: {ratio:.2f} times {peer}{target}", flush=True)
    return figures


def main() -> None:
    """Measure batch 1 and 16."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--nanogpt", type=Path, help="folder of a clone of nanoGPT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        runs = contestants(options.nanogpt)
        figures = {f"batch_{B}": measure(runs, B, options.rounds) for B in (1, 16)}
    lines = [f"- {name}: {found}" for name, found in figures.items()]
    report.finish("generate", {"threads": options.threads, **figures}, lines, options, report.DEVICE)


if __name__ == "__main__":
    main()
