"""Peak memory of a training step of GPT-2 124M: chunked loss, full logits, activation checkpointing, `transformers`.

    python -m benchmarks.memory [--batch 4] [--block 512] [--precision bf16] [--record]

Each case runs in a process of its own and reports its largest resident set (on CUDA: allocated memory). The last line
is JSON. Needs the `bench` extra.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import report

CASES = (
    "chunked loss",
    "full logits",
    "chunked loss, activation checkpointing",
    "transformers",
    "transformers, activation checkpointing",
)
V = 50304


def build(case: str, block: int, device: str) -> tuple[Any, Any, Callable[[Any], Any]]:
    """Network, optimizer and the mean loss of token ids (B, T + 1)."""
    import torch

    from benchmarks import peers
    from lit_gpt import loss
    from lit_gpt.model import GPT, GPTConfig
    from lit_gpt.optim import OptimizerConfig, build_optimizer

    recompute = "checkpointing" in case
    if case.startswith("transformers"):
        size = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": block, "vocab_size": V}
        peer: Any = peers.transformers_gpt2(size).to(device)
        if recompute:
            peer.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(peer.parameters(), fused=True)
        return peer, optimizer, lambda ids: peers.cross_entropy(peer(ids[:, :-1]).logits, ids[:, 1:])
    if case == "full logits":
        loss.MAX_LOGITS = loss.MAX_LOGITS_CPU = 2**62
    net = GPT(GPTConfig.from_preset("gpt2", vocab_size=V, block_size=block)).to(device)
    net.activation_checkpointing = recompute

    def mean(ids: torch.Tensor) -> torch.Tensor:
        hidden, targets = net.hidden(ids[:, :-1]), ids[:, 1:]
        linear = None if case == "full logits" else net.linear_head
        return loss.cross_entropy_sum(hidden, net.head, [net.wte.weight], targets, V, linear=linear) / targets.numel()

    return net, build_optimizer(net, OptimizerConfig()), mean


def measure(case: str, options: argparse.Namespace) -> float:
    """Peak gigabytes of two steps."""
    import torch

    device = report.DEVICE
    _, optimizer, loss = build(case, options.block, device)
    ids = torch.randint(50257, (options.batch, options.block + 1), device=device)
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
            value = loss(ids)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    """Measure every case and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--batch", type=report.at_least_1, default=4, help="rows of a step")
    parser.add_argument("--block", type=report.at_least_1, default=512, help="tokens of a row")
    parser.add_argument("--precision", choices=("bf16", "32"), default="bf16", help="autocast to bfloat16, or float32")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(measure(options.case, options))
        return
    found = {}
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", "--case", case, "--precision", options.precision]
        command += ["--batch", str(options.batch), "--block", str(options.block)]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found[case] = round(float(printed.split()[-1]), 3)
        report.show({"peak_gb": found})
    lines = [f"- {case}: {gb:.2f} GB" for case, gb in found.items()]
    given = {"batch": options.batch, "block": options.block, "precision": options.precision}
    report.finish("memory", {**given, "peak_gb": found}, lines, options, report.DEVICE)


if __name__ == "__main__":
    main()
