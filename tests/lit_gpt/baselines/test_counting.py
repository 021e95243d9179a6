"""The counting bigram counts its text once, whatever the rows and epochs are."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from datamodules import CharDataModule, HeadlinesDataModule
from lit_gpt import LitBigram
from lit_gpt.baselines.bigram import BigramConfig
from tests.lit_gpt.test_language_model import rows, trainer

COUNTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one epoch": ({}, {"max_epochs": 1}),
    "two epochs": ({}, {"max_epochs": 2}),
    "less than an epoch": ({}, {"max_steps": 3}),
    "windows that overlap": ({"stride": 5}, {"max_epochs": 1}),
    "a masked beginning": ({"mask_first": 4}, {"max_epochs": 1}),
    "a part of the batches": ({"shuffle": False}, {"max_epochs": 2, "limit_train_batches": 2}),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_every_pair_of_the_text_counts_once(kind: str, tmp_path: Path, text: Path) -> None:
    of_data, of_trainer = COUNTED[kind]
    data = CharDataModule(str(text), tokens_per_step=1024, **of_data)
    model = LitBigram(BigramConfig(kind="counts", block_size=16))
    trainer(tmp_path, limit_val_batches=0, **of_trainer).fit(model, datamodule=data)
    written = text.read_text()
    ids = data.tokenizer.encode(written[: int(len(written) * 0.9)])
    expected = torch.zeros_like(model.net.counts)
    for (first, second), times in Counter(pairwise(ids)).items():
        expected[first, second] = times
    assert torch.equal(model.net.counts, expected)


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_the_marks_around_documents_count(kind: Any, tmp_path: Path, text: Path) -> None:
    data = HeadlinesDataModule(str(text), tokenizer="byte", tokens_per_step=1024, rows=kind, val_documents=1)
    model = LitBigram(BigramConfig(kind="counts", block_size=16))
    trainer(tmp_path, limit_val_batches=0, max_epochs=2).fit(model, datamodule=data)
    documents = [data.tokenizer.encode(line) for line in text.read_text().split("\n")[:-1]]
    eos = data.tokenizer.eos_id
    expected = Counter(pair for one in documents for pair in pairwise([eos, *one, eos]))
    counts = model.net.counts
    assert {(int(i), int(j)): int(counts[i, j]) for i, j in counts.nonzero()} == expected


def test_batches_without_a_text_count_in_the_first_epoch(tmp_path: Path) -> None:
    model = LitBigram(BigramConfig(kind="counts", block_size=16, vocab_size=20))
    trainer(tmp_path, max_epochs=2).fit(model, DataLoader(rows(16, 7), batch_size=None))
    assert int(model.net.counts.sum()) == 16 + 7
