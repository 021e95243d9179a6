"""Is the memory that `fit --plan` promises the memory that a step takes? Some shapes on the CPU, planned and measured.

    python -m benchmarks.plan_memory [--case NAME] [--record]

Each shape trains three steps of random tokens in a process of its own, with the Trainer of `fit`. Measured is the
growth of the largest resident set over what the process had after its imports. The last line is JSON.
"""

import argparse
import resource
import subprocess
import sys
from typing import Any

from benchmarks import report

#: Options of the network and the module, and rows of a micro-batch.
CASES: dict[str, dict[str, Any]] = {
    "GPT-2 124M, AdamW": {
        "config": {"preset": "gpt2", "vocab_size": 50257, "block_size": 256},
        "optimizer": {"kind": "adamw"},
        "rows": 2,
    },
    "10M characters, Muon, dropout": {
        "config": {"vocab_size": 100, "block_size": 256, "dropout": 0.1},
        "optimizer": {"kind": "muon"},
        "rows": 16,
    },
    "34M, a row of 512, AdamW": {
        "config": {"n_layer": 8, "n_head": 8, "n_embd": 512, "vocab_size": 8000, "block_size": 512},
        "optimizer": {"kind": "adamw"},
        "rows": 4,
    },
    "34M, activation checkpointing": {
        "config": {"n_layer": 8, "n_head": 8, "n_embd": 512, "vocab_size": 8000, "block_size": 512},
        "optimizer": {"kind": "adamw"},
        "activation_checkpointing": True,
        "rows": 8,
    },
}
STEPS = 3


def resident() -> int:
    """Bytes of the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(name: str) -> dict[str, float]:
    """Planned and measured gigabytes of one shape."""
    import lightning.pytorch as lightning
    import torch
    from torch.utils.data import DataLoader

    from lit_gpt import GPTConfig, LitGPT, sizes
    from lit_gpt.allocator import keep_freed_memory
    from lit_gpt.optim import build_optimizer

    keep_freed_memory()
    case = dict(CASES[name])
    options, rows = dict(case.pop("config")), case.pop("rows")
    preset = options.pop("preset", None)
    config = GPTConfig.from_preset(preset, **options) if preset else GPTConfig(**options)
    module = LitGPT(config, **case)
    ids = torch.randint(config.vocab_size or 1, (rows * STEPS, config.block_size + 1))
    pairs: Any = [{"input_ids": row[:-1], "targets": row[1:]} for row in ids]
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = resident()
    trainer.fit(module, DataLoader(pairs, batch_size=rows))
    grown = resident() - before
    step = sizes.Step(rows, config.block_size)
    planned = sizes.memory(module.net, [build_optimizer(module.net, module.optimizer_config)], step)
    return {"planned": planned.total / 1e9, "measured": grown / 1e9}


def main() -> None:
    """Measure every shape and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(*measure(options.case).values())
        return
    found = {}
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.plan_memory", "--case", name]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        planned, measured = map(float, printed.split()[-2:])
        found[name] = {"planned_gb": round(planned, 3), "measured_gb": round(measured, 3)}
        print(
            f"{name}: planned {planned:.2f} GB, measured {measured:.2f} GB, {planned / measured - 1:+.0%}", flush=True
        )
    lines = [f"- {name}: planned {gb['planned_gb']} GB, measured {gb['measured_gb']} GB" for name, gb in found.items()]
    report.finish("plan_memory", {"cases": found}, lines, options, report.DEVICE)


if __name__ == "__main__":
    main()
