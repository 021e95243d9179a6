"""Peak memory of one training step of GPT-2 124M, with the chunked loss and with all logits at once.

    python -m benchmarks.memory [--batch 4] [--block 512]

Each case runs in a process of its own and reports its largest resident set (on CUDA: allocated memory). The last line
is JSON.
"""

import argparse
import json
import resource
import subprocess
import sys

CASES = {
    "chunked loss": {"full": False, "checkpointing": False},
    "full logits": {"full": True, "checkpointing": False},
    "chunked loss, activation checkpointing": {"full": False, "checkpointing": True},
}


def measure(batch: int, block: int, full: bool, checkpointing: bool) -> float:
    """Peak gigabytes of two steps under bfloat16 autocast."""
    import torch

    from lit_gpt import loss
    from lit_gpt.model import GPT, GPTConfig
    from lit_gpt.optim import OptimizerConfig, build_optimizer

    if full:
        loss.MAX_LOGITS = 2**62
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = GPTConfig.from_preset("gpt2", vocab_size=50304, block_size=block, activation_checkpointing=checkpointing)
    net = GPT(config).to(device)
    optimizer = build_optimizer(net, OptimizerConfig())
    ids = torch.randint(50257, (batch, block), device=device)
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16):
            nats = loss.summed_nats(net.hidden(ids), net.head, [net.wte.weight], ids, 50304)
        (nats / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    """Measure every case and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(measure(options.batch, options.block, **CASES[options.case]))
        return
    found = {}
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", "--case", case]
        command += ["--batch", str(options.batch), "--block", str(options.block)]
        found[case] = round(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout), 3)
        print(f"{case}: {found[case]:.2f} GB", flush=True)
    print(json.dumps({"benchmark": "memory", "batch": options.batch, "block": options.block, "peak_gb": found}))


if __name__ == "__main__":
    main()
