"""Data options through the command line's verbs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import lit_gpt
from lit_gpt.cli.lightning_cli import LitCLI
from tests.conftest import TINY


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
    metrics = LitCLI("validate", ["--config", str(tmp_path / "config.yaml"), *flags]).trainer.callback_metrics

    model = lit_gpt.load(path)
    eos, block_size, nats, count = model.tokenizer.eos_id, 16, 0.0, 0
    with torch.no_grad():
        for title in titles:  # each alone, not packed
            ids = torch.tensor([eos, *model.tokenizer.encode(title), eos])
            for position in range(1, len(ids)):
                logits = model.net(ids[None, (position - 1) // block_size * block_size : position])[0, -1]
                nats += float(cross_entropy(logits, ids[position]))
            count += len(ids) - 1
    assert float(metrics["val/loss"]) == pytest.approx(nats / count, rel=1e-5)
    chars = sum(len(title) + 1 for title in titles)
    assert float(metrics["val/nats_per_char"]) == pytest.approx(nats / chars, rel=1e-5)


def test_the_runs_seed_decides_the_order_of_the_data_and_which_run_goes_on(
    fit: Callable[..., Path], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY, "--data.source", str(text), "--trainer.max_steps", "1", "--trainer.limit_val_batches", "1"]

    def first_batch(*more: str) -> torch.Tensor:
        data = LitCLI("fit", [*flags, *more]).datamodule
        return next(iter(data.train_dataloader()))["input_ids"]

    one, two = (first_batch("--seed_everything", seed) for seed in "12")
    assert not torch.equal(one, two)
    assert torch.equal(one, first_batch("--seed_everything", "2", "--data.seed", "1"))
    newest = Path("logs", "run", "version_2", "summary.json")
    newest.write_text(newest.read_text().replace('"finished": true', '"finished": false'))
    capsys.readouterr()
    first_batch("--seed_everything", "3", "--data.seed", "1", "--resume", "auto")
    assert "has another configuration (seed_everything is 2 there, 3 here)" in capsys.readouterr().out
