"""Whether two commits train alike, to the last bit: the same losses, gradient norms and weights in 32-true.

    git worktree add ../before COMMIT
    python -m benchmarks.bit_equal ../before . [--steps 20] [--configs char headlines]

For a change that should move or rename code and alter no number. Each config is trained for some steps by both trees,
each from its own folder. Weights are compared as sets of hashes, so that a parameter may have another name.
"""

import argparse
import csv
import hashlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

#: Columns of metrics.csv that must be equal as text.
COLUMNS = ("train/loss", "grad_norm")
#: A tokenizer file that is trained once, and smaller steps.
UNIGRAM = (
    *("--data.tokenizer", "unigram.json", "--data.vocab_size", "null", "--data.prefix_space", "false"),
    *("--data.tokens_per_step", "1024"),
)
#: Configs, and what makes their first steps quick without the network or much text.
CONFIGS: dict[str, tuple[str, ...]] = {
    "char": (),
    "shakespeare_char": ("--data.source", "embedded"),
    "speedrun_cpu": ("--data.source", "embedded"),
    "headlines_cpu": UNIGRAM,
    "headlines": UNIGRAM,
    "reproductions/memorize": (),
    "reproductions/memorize_masked": (),
    "reproductions/taylor_swift_128": ("--data.source", "embedded"),
    "reproductions/novel_1x1": ("--data.source", "embedded"),
    "reproductions/novel_bigram": ("--data.source", "embedded"),
    "reproductions/diary_bigram_counts": ("--data.source", "embedded"),
    "reproductions/diary_gpt": ("--data.source", "embedded", "--data.tokens_per_step", "512"),
}


def main() -> None:
    """Train every config in both trees and print what differs; status 1 where something does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--configs", nargs="*", default=list(CONFIGS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(compare(options, Path(folder)))


def compare(options: argparse.Namespace, folder: Path) -> bool:
    """Whether a config trains differently in the two trees."""
    # Trained once: unigram training gives other tokens each time.
    command = ["tokenizer", "train", "--source", "embedded_headlines", "--documents", "line", "--kind", "unigram"]
    command += ["--vocab_size", "2000", "--prefix_space", "true", "--out", str(folder / "unigram.json")]
    subprocess.run([sys.executable, "-m", "lit_gpt", *command], check=True, stdout=subprocess.DEVNULL)
    differing = False
    for config in options.configs:
        flags = [str(folder / flag) if flag.endswith(".json") else flag for flag in CONFIGS[config]]
        trees = options.before.resolve(), options.after.resolve()
        before, after = (trained(tree, config, flags, options.steps) for tree in trees)
        equal = before == after
        differing |= not equal
        print(f"{config:<34} {'equal' if equal else 'DIFFERENT: ' + difference(before, after)}", flush=True)
    return differing


def trained(tree: Path, config: str, more: list[str], steps: int) -> dict[str, object]:
    """The logged columns of a few steps and the hashes of the weights after them."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--logs_dir", folder, "--name", "run", "--trainer.max_steps", str(steps)]
        flags += ["--trainer.precision", "32-true", "--trainer.log_every_n_steps", "1"]
        flags += ["--samples.max_new_tokens", "0", "--trainer.limit_val_batches", "0"]
        flags = ["--config", f"configs/{config}.yaml", *more, *flags]
        command = [sys.executable, "-m", "lit_gpt", "fit", *flags]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": folder}
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        run = Path(folder) / "run" / "version_0"
        with (run / "metrics.csv").open() as file:
            rows = [tuple(row.get(name, "") for name in COLUMNS) for row in csv.DictReader(file)]
        return {"losses": [row for row in rows if row[0]], "weights": _hashes(run / "checkpoints" / "last.ckpt")}


def _hashes(checkpoint: Path) -> Counter[str]:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    tensors = (tensor for name, tensor in state.items() if name.startswith("net."))
    return Counter(hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for tensor in tensors)


def difference(before: dict[str, object], after: dict[str, object]) -> str:
    """The first step whose row differs, or the number of tensors that do."""
    pairs = enumerate(zip(before["losses"], after["losses"], strict=False), start=1)  # type: ignore[call-overload]
    for step, (one, other) in pairs:
        if one != other:
            return f"step {step}: {one} and {other}"
    return f"{sum((before['weights'] - after['weights']).values())} tensors"  # type: ignore[operator]


if __name__ == "__main__":
    main()
