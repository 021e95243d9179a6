"""What `fit` costs over a bare PyTorch loop: the same network, batches and optimizer, timed in turns.

    python -m benchmarks.overhead [--rounds 7] [--seconds 4] [--threads 2] [--record]

Each trains in a process of its own (why: `benchmarks.turns`). Prints the median, least and most of the rounds' ratios,
and what a step of each takes in CPU time and page faults; the last line is JSON.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict

import torch
import torch.nn.functional as F

from benchmarks import report
from benchmarks.turns import Turns, cost, fit_command, race, ratio, run_folder
from datamodules import CharDataModule
from lit_gpt.allocator import keep_freed_memory
from lit_gpt.model import GPT, GPTConfig

#: Shape and rows of a step.
SIZES: dict[str, tuple[dict[str, int], int]] = {
    "0.8M": ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, 12),
    "10.7M": ({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}, 16),
}
TARGETS = {"0.8M": 1.10, "10.7M": 1.03}
OPTIMIZER = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}


def through_fit(folder: str, shape: dict[str, int], rows: int) -> list[str]:
    """The command of `fit`."""
    flags = [f"--model.config.{name}={value}" for name, value in shape.items()]
    flags += [f"--data.tokens_per_step={rows * shape['block_size']}", "--trainer.accelerator=cpu"]
    flags += ["--model.optimizer.kind=adamw", f"--model.optimizer.lr={OPTIMIZER['lr']}"]
    flags += ["--model.optimizer.schedule=constant", "--trainer.gradient_clip_val=1.0"]
    return fit_command(flags, folder)


def bare(shape: dict[str, int], rows: int) -> None:
    """A loop written by hand, in turns, without an end. Memory is kept as `fit` keeps it."""
    keep_freed_memory()
    data = CharDataModule(block_size=shape["block_size"], tokens_per_step=rows * shape["block_size"])
    data.prepare_data()
    data.setup("fit")
    net = GPT(GPTConfig(**shape, vocab_size=data.vocab_size))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(net.parameters(), fused=True, **OPTIMIZER)  # type: ignore[arg-type]
    turns = Turns()
    for batch in endless(data):
        logits = net(batch["input_ids"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.step_done()


def endless(data: CharDataModule) -> Iterator[dict[str, torch.Tensor]]:
    """Epoch after epoch."""
    loader = data.train_dataloader()
    while True:
        yield from loader


def main() -> None:
    """Time both sizes and print."""
    parser = report.parser(__doc__, rounds=7, threads=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=4, help="the least seconds of a turn")
    parser.add_argument("--play", help=argparse.SUPPRESS)  # be the loop of another process
    options = parser.parse_args()
    if options.play:
        bare(*SIZES[options.play])
    results, lines = {}, []
    for name, size in SIZES.items():
        with run_folder() as folder:
            loop = [sys.executable, "-m", "benchmarks.overhead", "--play", name]
            commands = {"fit": through_fit(folder, *size), "bare": loop}
            *_, turns = race(commands, options.rounds, 2, options.seconds, options.threads)
        found = ratio(turns["bare"], turns["fit"])  # of the paces, bare over fit: of the seconds, fit over bare
        results[name] = {**asdict(found), "target": TARGETS[name], **{k: cost(each) for k, each in turns.items()}}
        rest = ", ".join(f"{k} {v['cpu_ms']} ms of CPU time a step" for k, v in results[name].items() if k in turns)
        lines.append(
            f"- {name}: fit / bare {found.median} ({found.least} to {found.most}; mark {TARGETS[name]}); {rest}"
        )
        print(lines[-1], flush=True)
    report.finish("overhead", results, lines, options)


if __name__ == "__main__":
    main()
