"""Every metric that is printed, computed again from the weights, the raw text and plain torch."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt import load
from lit_gpt.cli.lightning_cli import LitCLI
from tests.lit_gpt.cli.conftest import rows

Fit = Callable[..., Path]
T = 128
SHORT = ("--trainer.max_steps", "3", "--model.optimizer.lr", "0.02", "--samples.every_n_validations", "9")
KINDS = {
    "windows of characters": ("CharDataModule", "windows", "char"),
    "windows of BPE": ("BPEDataModule", "windows", "bpe"),
    "padded rows of characters": ("HeadlinesDataModule", "padded", "char"),
    "packed rows of BPE": ("HeadlinesDataModule", "packed", "bpe"),
}


def texts(short: bool) -> dict[str, str]:
    """Three splits of lines; short ones fit into a row, where packing has nothing to cut."""
    lines = [f"tok{i * i % 97} é reads w{i % 7}" for i in range(40)]
    parts = {"train": lines[:5], "val": lines[5:9], "test": lines[9:13]} if short else {}
    return {k: "\n".join(v) for k, v in (parts or {"train": lines, "val": lines[:22], "test": lines[11:35]}).items()}


def pieces(text: str, rows_: str, encode: Callable[[str], list[int]], eos: int | None) -> Iterator[list[int]]:
    """Sequences of tokens, in which each but the first is predicted from those before it."""
    eos_token = [] if eos is None else [eos]
    if rows_ == "windows":
        ids = [*eos_token, *encode(text), *eos_token]
        yield from (ids[start : start + T + 1] for start in range(0, len(ids) - 1, T))
    else:
        yield from ([*eos_token, *encode(line), *eos_token] for line in text.split("\n"))


def expected(text: str, rows_: str, model: Any) -> dict[str, float]:
    """The metrics of a text under the network, target by target."""
    tokenizer, eos = model.tokenizer, model.tokenizer.eos_id
    logits, targets = [], []
    for piece in pieces(text, rows_, tokenizer.encode, eos):
        tokens = torch.tensor([piece])
        with torch.no_grad():
            logits.append(model.net(tokens[:, :-1])[0])  # (t, V)
        targets.append(tokens[0, 1:])
    return metrics_of(torch.cat(logits), torch.cat(targets), *size(text, eos))


def size(text: str, eos: int | None) -> tuple[int, int]:
    """Characters and bytes of the scored text. Without EOS tokens that is all but the first character, which has no
    token before it. With them, the last one counts as a newline too; those of other lines are in the text.
    """
    return (len(text) - 1, len(text[1:].encode())) if eos is None else (len(text) + 1, len(text.encode()) + 1)


def metrics_of(logits: Tensor, targets: Tensor, chars: int, size_: int) -> dict[str, float]:
    """Each (N, V) and (N,)."""
    nats = float(F.cross_entropy(logits, targets, reduction="sum"))
    loss = nats / len(targets)
    order = logits.argsort(1, descending=True)
    hits = [float((order[:, :k] == targets[:, None]).any(1).float().mean()) for k in (1, 5)]
    per_token = {"loss": loss, "perplexity": math.exp(loss), "top1": hits[0], "top5": hits[1]}
    return {**per_token, "bpb": nats / math.log(2) / size_, "nats_per_char": nats / chars}


#: Rows and tokenizers of every kind are in these two.
QUICK = ("windows of characters", "packed rows of BPE")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_metrics_are_those_of_weights_and_text(kind: str, fit: Fit, tmp_path: Path) -> None:
    data, rows_, tokenizer = KINDS[kind]
    splits = texts(short=rows_ == "packed")
    flags = ["--data", data, "--data.rows", rows_, "--model.config.block_size", str(T)]
    for split, text in splits.items():
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
        flags += [f"--data.{'source' if split == 'train' else split + '_source'}", f"{split}.txt"]
    if tokenizer != "char" or data != "CharDataModule":
        flags += ["--data.tokenizer", tokenizer]
    flags += ["--data.vocab_size", "290"] if tokenizer == "bpe" else []
    # A step is the whole training text, in the order of the text: its loss can be computed again.
    flags += ["--data.tokens_per_step", str(40 * T), "--data.shuffle", "false", "--data.train_eval_rows", "40"]
    folder = fit(*flags, "--checkpoint.keep_every_n_steps", "1", *SHORT)
    last = load(folder / "checkpoints" / "last.ckpt")
    printed = json.loads((folder / "summary.json").read_text())["final"]
    scored = {"val": "val", "train_eval": "train"}
    if rows_ == "packed":  # a verb of its own takes a second, so it scores one kind of rows
        test = LitCLI("test", ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]).trainer.callback_metrics
        printed |= {k: float(v) for k, v in test.items()}
        scored["test"] = "test"
    for name, text in scored.items():
        metrics = {k.split("/")[1]: v for k, v in printed.items() if k.startswith(f"{name}/") and "challenge" not in k}
        assert metrics == pytest.approx(expected(splits[text], rows_, last), rel=2e-5, abs=1e-6), name
    before = load(folder / "checkpoints" / "step_000002.ckpt")
    losses = {row["step"]: float(row["train/loss"]) for row in rows(folder) if row["train/loss"]}
    assert losses["3"] == pytest.approx(expected(splits["train"], rows_, before)["loss"], rel=2e-5, abs=1e-6)
