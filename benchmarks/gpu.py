"""GPT-2 124M on one CUDA device, in two calls: where a step's time goes, speed and MFU beside nanoGPT, packed rows and
the GPU's tests; then resume, memory and text.

    python -m benchmarks.gpu --seconds 480 [--nanogpt CLONE] [--record]
    python -m benchmarks.gpu --parts resume memory generate --seconds 240 [--nanogpt CLONE] [--record]
    python -m benchmarks.gpu --tiny        # the same path on any machine, with a small model

Parts run in the order of their value. Each stands alone: one that fails is told in a sentence and the others go on;
its figures are printed, and with --record kept, as soon as it ends. A part gets what is left of --seconds, and the
parts for which nothing is left are named. What they should take on an H100, start-up and compilation included, in
seconds (worked out, not measured): ready 40, micro 130, speed 60, packed 20, tests 120, train_speed 110, resume 80,
memory 50, generate 20, curve 160.

`fit` trains (bf16-mixed, compiled blocks, fused AdamW, block 1024) on bytes under GPT-2's vocabulary size, 50,257
padded to 50,304: speed does not depend on what the ids mean, and nothing is downloaded. The curve is of --text;
without one it is of the embedded corpus, some 320 kB that 124M parameters learn by heart within the time: it then
shows that training works, not how well the model predicts. The last line is JSON. It needs torch with CUDA, a C
compiler, Python's headers and Lightning; `transformers` and a clone of nanoGPT for the peers. What is missing is
said at once.
"""

import argparse
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.timing import column, synchronize
from benchmarks.train_speed import CASES
from lit_gpt.model import GPT, GPTConfig

FULL = CASES["gpu"].shape
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 128, "vocab_size": 512}
#: Seconds after which a process is given up: a part that hangs must not take the others' time.
LIMIT = 240
#: Fewer seconds than any part takes.
LEAST = 15
#: When the time of the call is over.
DEADLINE = [float("inf")]


def seconds_left() -> float:
    """What a process may take."""
    return min(LIMIT, DEADLINE[0] - time.monotonic())


class FailedError(RuntimeError):
    """Why a process of a part has no figures, in a sentence."""


def output(module: str, *flags: str) -> list[str]:
    """What a command wrote, line by line; it is shown on the error stream when the command ends."""
    with tempfile.TemporaryFile("w+") as file:  # a pipe could be held open by workers that outlive a killed process
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *flags], stdout=file, stderr=file, timeout=seconds_left(), check=False
            )
        except subprocess.TimeoutExpired:
            raise FailedError(f"{module} took longer than there was time for") from None
        finally:
            file.seek(0)
            lines = file.read().splitlines()
            print(*lines, sep="\n", file=sys.stderr, flush=True)
    if done.returncode:
        raise FailedError(f"{module} ended with status {done.returncode}: {lines[-1] if lines else 'no output'}")
    return lines


def fit(folder: Path, name: str, options: argparse.Namespace, *more: str) -> Path:
    """Run `fit` in a process of its own and return the run's folder."""
    shape, rows, micro = (TINY, 8, 4) if options.tiny else (FULL, 128, 32)
    flags = [f"--model.config.{key}={value}" for key, value in shape.items()]
    flags += ["--model.config.pad_vocab_to=64", "--preset=gpt2", "--data=BPEDataModule", "--data.tokenizer=byte"]
    flags += [f"--data.tokens_per_step={rows * shape['block_size']}", f"--data.micro_batch_size={micro}"]
    flags += ["--model.optimizer.lr=0.0006", "--trainer.gradient_clip_val=1.0", "--trainer.val_check_interval=100000"]
    flags += [f"--logs_dir={folder}", f"--name={name}", "--trainer.devices=1", "--trainer.log_every_n_steps=5"]
    flags += ["--trainer.limit_val_batches=32"]
    if not options.tiny:
        flags += ["--trainer.accelerator=cuda", "--trainer.precision=bf16-mixed", "--model.compile=true"]
    output("lit_gpt", "fit", *flags, *more)
    return folder / name / "version_0"


def ready(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Versions, what is missing, and the seconds of the first compilation."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = [] if shutil.which("gcc") or shutil.which("cc") else ["a C compiler"]
    missing += [] if header.exists() else ["Python.h"]
    missing += [name for name in ("transformers", "pytest") if importlib.util.find_spec(name) is None]
    missing += [] if options.nanogpt else ["a clone of nanoGPT (--nanogpt)"]
    found = {"torch": torch.__version__, "lightning": version("lightning"), "python": platform.python_version()}
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "device": torch.cuda.get_device_name()}
    print(f"missing: {', '.join(missing) or 'nothing'}", flush=True)
    start = time.perf_counter()
    torch.compile(lambda x: x.sin().sum())(torch.ones(9, device=report.DEVICE))
    return {**found, "missing": missing, "first_compilation_seconds": round(time.perf_counter() - start, 1)}


def gpu_tests(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The last line of the tests that need a GPU."""
    lines = output("pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py")
    return {"result": lines[-1]}


def speed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the second half of a short run."""
    run = fit(folder, "speed", options, f"--trainer.max_steps={10 if options.tiny else 50}")
    found = {}
    for name in ("train/tokens_per_second", "train/mfu", "train/peak_memory_gb"):
        values = list(column(run, name).values())
        found[name.removeprefix("train/")] = statistics.median(values[len(values) // 2 :]) if values else None
    return found


def resume(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Losses of a straight run beside those of the same run when it goes on from its checkpoint of the middle."""
    middle, end = (5, 10) if options.tiny else (15, 30)
    same = ["--model.optimizer.schedule=constant", f"--trainer.max_steps={end}", "--trainer.log_every_n_steps=1"]
    run = fit(folder, "run", options, *same, f"--checkpoint.keep_every_n_steps={middle}")
    one = column(run, "train/loss")
    checkpoint = min((run / "checkpoints").glob("step_*.ckpt"))
    fit(folder, "run", options, *same, f"--ckpt_path={checkpoint}")  # in the same folder, whose figures it renews
    two = column(run, "train/loss")
    steps = [step for step in one if step > middle]
    return {"steps_compared": len(steps), "largest_difference": max(abs(one[step] - two[step]) for step in steps)}


@torch.no_grad()
def packed(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Largest difference of logits between FlexAttention and the dense mask, and seconds of a forward pass of each."""
    shape: dict[str, Any] = TINY if options.tiny else FULL
    net = GPT(GPTConfig(**shape)).to(report.DEVICE).eval()
    torch.nn.init.normal_(net.lm_head.weight, std=0.02)  # type: ignore[union-attr]
    T = net.config.block_size
    ids = torch.randint(shape["vocab_size"], (4, T), device=report.DEVICE)
    documents = (torch.rand(4, T, device=report.DEVICE) < 0.02).cumsum(1).int()
    every = torch.ones_like(ids, dtype=torch.bool)  # a mask of pads is what makes it dense
    flex, flex_seconds = timed(lambda: net(ids, document_ids=documents))
    dense, dense_seconds = timed(lambda: net(ids, document_ids=documents, attention_mask=every))
    apart = {"largest_difference": float((flex - dense).abs().max()), "largest_logit": float(dense.abs().max())}
    return {**apart, "flex_seconds": flex_seconds, "dense_seconds": dense_seconds}


def timed(forward: Callable[[], Tensor], times: int = 5) -> tuple[Tensor, float]:
    """The result of a call and its median seconds, once warm."""
    result = forward()
    seconds = []
    for _ in range(times):
        synchronize()
        start = time.perf_counter()
        forward()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def curve(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Validation loss in nats per character by step, of a training of two minutes."""
    limits = ["--trainer.max_steps=10"] if options.tiny else ["--trainer.max_time=00:00:02:00"]
    limits += [f"--trainer.val_check_interval={5 if options.tiny else 50}"]
    text = [f"--data.source={options.text}"] if options.text else []
    schedule = ["--model.optimizer.schedule=constant", "--model.optimizer.warmup=20"]
    run = fit(folder, "curve", options, *schedule, *limits, *text)
    name = options.text.name if options.text else "the embedded corpus, learned by heart"
    return {"text": name, "nats_per_char": column(run, "val/nats_per_char")}


def peer(name: str, tiny: list[str], full: list[str], *, clone: bool = True) -> "Part":
    """A part that is a benchmark of its own, in a process of its own; ``clone``: whether nanoGPT takes part."""

    def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
        given = [f"--nanogpt={options.nanogpt}"] if clone and options.nanogpt else []
        lines = output(f"benchmarks.{name}", *(tiny if options.tiny else full), *given)
        found: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
        return {key: value for key, value in found.items() if key != "benchmark"}

    return measure


#: Takes a folder that is gone in the end and the options; gives figures.
Part = Callable[[Path, argparse.Namespace], dict[str, Any]]
PARTS: dict[str, Part] = {
    "ready": ready,
    "micro": peer("gpu_micro", ["--tiny"], [], clone=False),
    "speed": speed,
    "packed": packed,
    "tests": gpu_tests,
    "train_speed": peer("train_speed", ["--cases", "a", "--rounds", "1"], ["--cases", "gpu", "--rounds", "1"]),
    "resume": resume,
    "memory": peer("memory", ["--block", "64", "--batch", "1"], ["--block", "1024", "--batch", "16"], clone=False),
    "generate": peer("generate", ["--rounds", "1", "--new", "8"], ["--rounds", "1"]),
    "curve": curve,
}


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a part and its seconds, or why it has none."""
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[part](Path(folder), options)
    except Exception as error:  # whatever it is, the other parts go on
        kind = "" if isinstance(error, FailedError) else f"{type(error).__name__}: "
        words = f"failed: {kind}{error}".split()
        found = {"failed": " ".join("PATH" if "/" in word else word for word in words)[:400]}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Run the parts, keep the figures of each and print them all."""
    parser = report.parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="these alone, in this order")
    parser.add_argument("--tiny", action="store_true", help="a small model, on whatever there is")
    parser.add_argument("--nanogpt", type=Path, help="folder of a clone of nanoGPT")
    parser.add_argument("--text", type=Path, help="text of the curve, best of 100 MB or more; else the embedded corpus")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the time of all parts together")
    options = parser.parse_args()
    DEADLINE[0] = time.monotonic() + options.seconds
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("there is no CUDA device: use --tiny to try the path without one.")
    found = {}
    for part in options.parts:
        if seconds_left() < LEAST:
            print(f"{part}: no time is left", flush=True)
            continue
        found[part] = measure(part, options)
        print(f"{part}: {json.dumps(found[part])}", flush=True)
        if options.record:
            name = f"gpu tiny {part}" if options.tiny else f"gpu {part}"
            report.keep(name, found[part], lines(found[part]), report.DEVICE)
    print(json.dumps({"benchmark": "gpu", **found}))
    sys.exit(any("failed" in figures for figures in found.values()))


def lines(figures: dict[str, Any]) -> list[str]:
    """The page's lines."""
    return [f"- {name.replace('_', ' ')}: {value}" for name, value in figures.items()]


if __name__ == "__main__":
    main()
