"""What `fit` costs over a bare PyTorch loop: the same network, batches and optimizer, timed in turn in one process.

    python -m benchmarks.overhead [--rounds 5] [--threads 2] [--record]

Prints the seconds of a step of each, by round, and the median of the rounds' ratios; the last line is JSON.
"""

import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks import report
from benchmarks.timing import fit_seconds
from datamodules import CharDataModule
from lit_gpt.model import GPT, GPTConfig

#: Shape, rows of a step, steps that are timed.
SIZES: dict[str, tuple[dict[str, int], int, int]] = {
    "0.8M": ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, 12, 100),
    "10.7M": ({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}, 16, 10),
}
WARMUP = 5
TARGETS = {"0.8M": 1.10, "10.7M": 1.03}
OPTIMIZER = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}


def through_fit(shape: dict[str, int], rows: int, steps: int) -> float:
    """Mean seconds of a step of `fit`."""
    flags = [f"--model.config.{name}={value}" for name, value in shape.items()]
    flags += [f"--data.tokens_per_step={rows * shape['block_size']}", "--trainer.accelerator=cpu"]
    flags += ["--model.optimizer.kind=adamw", f"--model.optimizer.lr={OPTIMIZER['lr']}"]
    flags += ["--model.optimizer.schedule=constant", "--trainer.gradient_clip_val=1.0"]
    return fit_seconds(flags, steps, WARMUP)


def bare_seconds(shape: dict[str, int], rows: int, steps: int) -> float:
    """Mean seconds of a step of a loop written by hand."""
    data = CharDataModule(block_size=shape["block_size"], tokens_per_step=rows * shape["block_size"])
    data.prepare_data()
    data.setup("fit")
    net = GPT(GPTConfig(**shape, vocab_size=data.vocab_size))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(net.parameters(), fused=True, **OPTIMIZER)  # type: ignore[arg-type]
    batches = endless(data)
    for step in range(steps + WARMUP):
        if step == WARMUP:
            start = time.perf_counter()
        batch = next(batches)
        logits = net(batch["input_ids"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - start) / steps


def endless(data: CharDataModule) -> Iterator[dict[str, torch.Tensor]]:
    """Epoch after epoch."""
    loader = data.train_dataloader()
    while True:
        yield from loader


def main() -> None:
    """Time both sizes and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results, lines = {}, []
    for name, (shape, rows, steps) in SIZES.items():
        size = shape, rows, steps
        pairs = [(through_fit(*size), bare_seconds(*size)) for _ in range(options.rounds)]
        ratio = statistics.median(fit / bare for fit, bare in pairs)
        results[name] = {"ratio": round(ratio, 4), "target": TARGETS[name], "seconds": pairs}
        rounds = ", ".join(f"{1000 * fit:.1f}/{1000 * bare:.1f}" for fit, bare in pairs)
        lines.append(f"- {name}: fit / bare {ratio:.3f} (mark {TARGETS[name]}); ms a step by round: {rounds}")
        print(lines[-1], flush=True)
    report.finish("overhead", results, lines, options)


if __name__ == "__main__":
    main()
