"""GPT-2 124M on a CUDA device in under ten minutes: speed and MFU beside nanoGPT, decoding, memory, packed rows,
resume, and the curve of a four-minute training.

    python -m benchmarks.gpu [--nanogpt CLONE] [--record]
    python -m benchmarks.gpu --tiny        # the same path on any machine, with a small model

`fit` trains (bf16-mixed, compiled blocks, fused AdamW, block 1024) on bytes of the embedded corpus under GPT-2's
vocabulary size: speed does not depend on what the ids mean, and nothing is downloaded. The last line is JSON. Needs the
`bench` extra.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.timing import column
from lit_gpt.model import GPT, GPTConfig

FULL = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024}
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 128}


def fit(folder: Path, name: str, options: argparse.Namespace, *more: str) -> Path:
    """Run `fit` in a process of its own and return the run's folder."""
    shape, rows, micro = (TINY, 8, 4) if options.tiny else (FULL, 128, 32)
    flags = [f"--model.config.{key}={value}" for key, value in shape.items()]
    flags += ["--preset=gpt2", "--model.config.vocab_size=50304", "--data=BPEDataModule", "--data.tokenizer=byte"]
    flags += [f"--data.tokens_per_step={rows * shape['block_size']}", f"--data.micro_batch_size={micro}"]
    flags += ["--model.optimizer.lr=0.0006", "--trainer.gradient_clip_val=1.0", "--trainer.val_check_interval=100000"]
    flags += [f"--logs_dir={folder}", f"--name={name}", "--trainer.devices=1", "--trainer.log_every_n_steps=5"]
    if not options.tiny:
        flags += ["--trainer.accelerator=cuda", "--trainer.precision=bf16-mixed", "--model.compile=true"]
    subprocess.run([sys.executable, "-m", "lit_gpt", "fit", *flags, *more], check=True, stdout=sys.stderr)
    return folder / name / "version_0"


def speed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the second half of a short run."""
    run = fit(folder, "speed", options, f"--trainer.max_steps={10 if options.tiny else 60}")
    found = {}
    for name in ("train/tokens_per_second", "train/mfu", "train/peak_memory_gb"):
        values = list(column(run, name).values())
        found[name.removeprefix("train/")] = statistics.median(values[len(values) // 2 :]) if values else None
    return found


def resume(folder: Path, options: argparse.Namespace) -> float:
    """The largest difference in loss between a straight run and one that stopped in the middle and went on."""
    constant = "--model.optimizer.schedule=constant"
    straight = fit(folder, "straight", options, constant, "--trainer.max_steps=30")
    parted = fit(folder, "parted", options, constant, "--trainer.max_steps=15")
    last = f"--ckpt_path={parted / 'checkpoints' / 'last.ckpt'}"
    fit(folder, "parted", options, constant, "--trainer.max_steps=30", last)
    one, two = (column(run, "train/loss") for run in (straight, parted))
    assert one.keys() == two.keys()
    return max(abs(one[step] - two[step]) for step in one)


@torch.no_grad()
def packed(options: argparse.Namespace) -> dict[str, float]:
    """Largest difference of logits between FlexAttention and the dense mask, and seconds of a forward pass of each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = GPT(GPTConfig(**(TINY if options.tiny else FULL), vocab_size=50304)).to(device).eval()  # type: ignore[arg-type]
    torch.nn.init.normal_(net.lm_head.weight, std=0.02)  # type: ignore[union-attr]
    T = net.config.block_size
    ids = torch.randint(50257, (4, T), device=device)
    documents = (torch.rand(4, T, device=device) < 0.02).cumsum(1).int()
    flex = net(ids, document_ids=documents)
    dense = net(ids, document_ids=documents, attention_mask=torch.ones_like(ids, dtype=torch.bool))
    return {"largest_difference": float((flex - dense).abs().max()), "largest_logit": float(dense.abs().max())}


def curve(folder: Path, options: argparse.Namespace) -> dict[int, float]:
    """Validation loss in nats per character by step, of a training of four minutes."""
    limits = ["--trainer.max_steps=10"] if options.tiny else ["--trainer.max_time=00:00:04:00"]
    every = 5 if options.tiny else 100
    schedule = ["--model.optimizer.schedule=constant", "--model.optimizer.warmup=20"]
    run = fit(folder, "curve", options, *schedule, *limits, f"--trainer.val_check_interval={every}")
    return column(run, "val/nats_per_char")


def beside_peers(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of the benchmarks that time peers, each in a process of its own."""
    clone = [f"--nanogpt={options.nanogpt}"] if options.nanogpt else []
    case = "a" if options.tiny else "gpu"
    commands = {
        "train_speed": ["--cases", case, "--rounds", "1" if options.tiny else "3", *clone],
        "generate": ["--rounds", "1" if options.tiny else "3", *clone],
        "memory": ["--block", "64", "--batch", "1"] if options.tiny else ["--block", "1024", "--batch", "16"],
    }
    found = {}
    for name, flags in commands.items():
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else "failed: see the output"
        print(f"{name}: {found[name]}", flush=True)
    return found


def main() -> None:
    """Run all parts and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small model, on whatever there is")
    parser.add_argument("--nanogpt", type=Path, help="folder of a clone of nanoGPT")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("there is no CUDA device: use --tiny to try the path without one.")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {
            "speed": lambda: speed(folder, options),
            "packed": lambda: packed(options),
            "resume_difference": lambda: resume(folder, options),
            "peers": lambda: beside_peers(options),
            "curve": lambda: curve(folder, options),
        }
        for part, measure in parts.items():
            result[part] = measure()
            print(f"{part}: {result[part]}", flush=True)
    report.finish("gpu", result, [f"- {part}: {found}" for part, found in result.items()], options)


if __name__ == "__main__":
    main()
