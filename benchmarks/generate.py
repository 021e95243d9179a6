"""Tokens per second of decoding on the CPU: `lit_gpt`, `transformers` and `lit_gpt` without a cache, in turn.

    python -m benchmarks.generate [--rounds 5] [--threads 2]

A GPT-2 of 6 layers, 384 channels and random weights, the same shape on both sides, writes 255 tokens after one.
Prints the rates of each round and the medians of the rounds' ratios; the last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lit_gpt.decode import Sampling, decode
from lit_gpt.model import GPT, GPTConfig

SHAPE: dict[str, Any] = {"n_layer": 6, "n_head": 6, "n_embd": 384}
V, BLOCK, NEW = 65, 256, 255
TARGETS = {"transformers": 1.5, "uncached": 10.0}


def ours(net: GPT, B: int, cache: bool) -> None:
    """Sample `NEW` tokens for each of `B` rows."""
    generator = torch.Generator().manual_seed(0)
    for _ in decode(
        net, [[0]] * B, max_new_tokens=NEW, sampling=Sampling(1.0), generator=generator, vocab_size=V, cache=cache
    ):
        pass


def theirs(net: GPT2LMHeadModel, B: int) -> None:
    """The same with `transformers`."""
    ids = torch.zeros(B, 1, dtype=torch.long)
    net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=True, top_k=0, pad_token_id=0)


def rate(run: Callable[[], None], B: int) -> float:
    """Tokens per second of one call."""
    start = time.perf_counter()
    run()
    return B * NEW / (time.perf_counter() - start)


def measure(B: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each contestant in each round."""
    net = GPT(GPTConfig.from_preset("gpt2", vocab_size=V, **{"block_size": BLOCK, **SHAPE})).eval()
    peer = GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_positions=BLOCK, bos_token_id=0, eos_token_id=None, **SHAPE)
    ).eval()
    contestants: dict[str, Callable[[], None]] = {
        "ours": lambda: ours(net, B, cache=True),
        "transformers": lambda: theirs(peer, B),
        "uncached": lambda: ours(net, B, cache=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            rates[name].append(rate(run, B))
        print(f"batch {B:<3}", *(f"{name} {values[-1]:8.0f} tokens/s" for name, values in rates.items()), flush=True)
    return rates


def main() -> None:
    """Measure batch 1 and 16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = {}
    for B in (1, 16):
        rates = measure(B, options.rounds)
        for peer, target in TARGETS.items():
            ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[peer], strict=True))
            figures[f"batch_{B}_over_{peer}"] = round(ratio, 2)
            print(f"batch {B}: {ratio:.2f} times {peer} (target {target})")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
