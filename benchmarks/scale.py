"""What a size costs, worked out from FLOPs: the table of docs/scale.md.

    python -m benchmarks.scale

Tokens are 20 a parameter (Hoffmann et al. 2022); hours are FLOPs over 40 % of the device's bfloat16 peak; memory is
weights, gradients and optimizer state in float32, and activations of one row in bfloat16 (34 bytes a channel,
token and layer: Korthikanti et al. 2022, without the attention scores that SDPA never stores).
"""

import torch

from lit_gpt.callbacks.throughput import PEAK_FLOPS
from lit_gpt.model import GPT, GPTConfig
from lit_gpt.sizes import gathered_bytes

MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama", "modern")
DEVICES = ("RTX 4090", "A100", "H100")
UTILISATION = 0.4
#: Processes over which fsdp2 shards the state.
SHARDS = 8


def row(name: str) -> str:
    """One line of the table."""
    config = GPTConfig.from_preset(name, vocab_size=50257)
    with torch.device("meta"):
        net = GPT(config)
    parameters, flops = net.num_parameters(), net.flops_per_token()
    tokens = 20 * parameters
    hours = [flops * tokens / (PEAK_FLOPS[device] * UTILISATION) / 3600 for device in DEVICES]
    state = 16 * parameters / 1e9
    sharded = state / SHARDS + 2 * gathered_bytes(net) / 1e9  # with the weights and gradients that are whole at a time
    activations = 34 * config.n_embd * config.n_layer * config.block_size / 1e9
    cells = [name, f"{parameters:,}", f"{flops / 1e9:.2f}", f"{tokens / 1e9:.1f}", f"{flops * tokens:.2e}"]
    cells += [f"{state:.1f}", f"{sharded:.1f}", f"{activations:.2f}", *(f"{hour:,.1f}" for hour in hours)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    head = [
        "preset",
        "parameters",
        "GFLOP/token",
        "10^9 tokens",
        "FLOPs",
        "GB state",
        f"GB state, fsdp2 on {SHARDS}",
        "GB/row",
    ]
    head += [f"hours, 1 x {device}" for device in DEVICES]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name in MODELS:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
