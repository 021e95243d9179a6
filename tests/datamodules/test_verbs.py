"""Data options through the command line's verbs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import lit_gpt
from lit_gpt.cli import LitCLI


def test_validate_scores_every_token_of_another_file_once_with_the_checkpoints_tokenizer(
    fit: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    data = ["--data", "HeadlinesDataModule", "--data.tokenizer", "bpe", "--data.vocab_size", "300"]
    path = fit(*data) / "checkpoints" / "last.ckpt"
    titles = ["the model reads ZEBRAS", "another one", "it stops before a token and writes another one"] * 7
    (tmp_path / "val.txt").write_text("\n".join(titles))
    (tmp_path / "config.yaml").write_text(
        f"data: {{class_path: HeadlinesDataModule, init_args: {{source: '{text}', tokenizer: bpe, vocab_size: 999}}}}"
    )
    flags = ["--ckpt_path", str(path), "--data.val_source", str(tmp_path / "val.txt"), "--trainer.accelerator", "cpu"]
    found = LitCLI("validate", ["--config", str(tmp_path / "config.yaml"), *flags]).trainer.callback_metrics

    model = lit_gpt.load(path)
    end, block_size, nats = model.tokenizer.eos_id, 16, 0.0
    stream = torch.tensor([end, *(i for title in titles for i in [*model.tokenizer.encode(title), end])])
    with torch.no_grad():
        for place in range(1, len(stream)):
            row, document = (place - 1) // block_size * block_size, int((stream[:place] == end).nonzero()[-1])
            logits = model.net(stream[None, max(row, document) : place])[0, -1]
            nats += float(cross_entropy(logits, stream[place]))
    assert float(found["val/loss"]) == pytest.approx(nats / (len(stream) - 1), rel=1e-5)
    assert float(found["val/nats_per_char"]) == pytest.approx(nats / sum(len(title) + 1 for title in titles), rel=1e-5)
