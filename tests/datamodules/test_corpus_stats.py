"""Facts of a corpus, and the verb that prints them beside the first batches."""

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from datamodules import BPEDataModule, HeadlinesDataModule
from datamodules.corpus_stats import document_lengths, overlap, token_counts
from datamodules.errors import UserError
from lit_gpt.commands.data import main, row_lines


def stores(tmp_path: Path, train: list[str], val: list[str]) -> HeadlinesDataModule:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(train + val))
    data = HeadlinesDataModule(str(path), tokenizer="byte", block_size=8, val_documents=len(val))
    data.setup()
    return data


def test_overlap_counts_documents_and_shingles_as_brute_force_does(tmp_path: Path) -> None:
    draw = random.Random(0)
    train = ["".join(draw.choices("abcdé", k=120)) for _ in range(20)]
    val = [train[3], train[5][20:90] + "xyz", "".join(draw.choices("abcdé", k=100)), "short"]
    data = stores(tmp_path, train, val)
    shared = overlap(data.stores["train"], data.stores["val"], data.tokenizer)

    def shingles(texts: list[str]) -> list[str]:
        return [text[i : i + 50] for text in texts for i in range(len(text) - 49)]

    known = set(shingles(train))
    assert shared.documents == 0.25
    assert shared.shingles == pytest.approx(np.mean([s in known for s in shingles(val)]))


def test_a_sample_of_a_long_validation_split_estimates_the_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(2)
    lines = ["".join(draw.choices("abcdefgh", k=1049)) for _ in range(8)]  # 1000 shingles each
    data = stores(tmp_path, [*lines[:3], lines[5][:549]], lines)  # three lines and a half of eight
    monkeypatch.setattr("datamodules.corpus_stats._SAMPLE", 1000)  # about one shingle in eight
    shared = overlap(data.stores["train"], data.stores["val"], data.tokenizer)
    assert shared.shingles == pytest.approx(3.5 / 8, abs=0.06)  # four standard deviations


def test_overlap_of_chunks_is_that_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "é".join("".join(random.Random(1).choices("abcd", k=90)) for _ in range(3))
    data = stores(tmp_path, [text, "unlike"], [text[7:]])
    monkeypatch.setattr("datamodules.corpus_stats._CHUNK", 7)  # cuts inside characters and shingles
    assert overlap(data.stores["train"], data.stores["val"], data.tokenizer).shingles == 1.0


def test_memory_does_not_grow_with_the_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = stores(tmp_path, [f"{i:0500}" for i in range(2000)], [f"{7:0500}", "unlike"])
    train = data.stores["train"]
    monkeypatch.setattr("datamodules.corpus_stats._CHUNK", 1 << 12)
    tracemalloc.start()
    shared = overlap(train, data.stores["val"], data.tokenizer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shared.documents == 0.5
    assert peak < train.tokens.nbytes / 2


def test_too_short_to_compare_is_said(tmp_path: Path) -> None:
    data = stores(tmp_path, ["a", "b"], ["c"])
    assert overlap(data.stores["train"], data.stores["val"], data.tokenizer).shingles is None


def test_counts_and_lengths(tmp_path: Path) -> None:
    data = stores(tmp_path, ["aab", "b"], ["c"])
    counts = token_counts(data.stores["train"], 257)
    assert (counts[97], counts[98], counts[256], counts.sum()) == (2, 2, 3, 7)
    assert document_lengths(data.stores["train"]).tolist() == [3, 1]


def test_rows_show_marks_masks_and_unscored_targets(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("ab\n\ncd e")
    data = BPEDataModule(
        str(path), tokenizer="byte", documents="line", rows="padded", block_size=6, val_fraction=0.0, mask_first=1
    )
    data.setup()
    batch = next(iter(data.train_dataloader()))
    first = next(i for i in range(4) if batch["document"][i] == 0)
    assert row_lines(batch, first, data.tokenizer) == [
        f"  row {first}: 3 tokens, 2 scored",
        "    input   <|endoftext|>|a|b",
        "    target  ·|b|<|endoftext|>",
        "    ids     256 97 98 256 256 256",
        "    targets -100 98 256 -100 -100 -100",
        "    mask    ###...",
    ]


def test_the_verb_prints_facts_and_batches_of_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "titles.txt"
    path.write_text("\n".join(f"title number {i}" for i in range(50)))
    config = tmp_path / "config.yaml"
    config.write_text(
        "name: x\nmodel: {class_path: lit_gpt.LitGPT, init_args: {config: {block_size: 16}}}\n"
        f"data: {{class_path: datamodules.HeadlinesDataModule, init_args: {{source: {path}, tokenizer: byte}}}}\n"
        "trainer: {max_steps: 3}\n"
    )
    main(["--config", str(config), "--data.tokens_per_step", "64", "--rows", "1", "--batches", "2"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    shown = shown.replace("\n  document_ids", " document_ids")
    for line in (
        "train          45",
        "vocabulary: ",
        "most frequent: ",
        "tokens a document: ",
        "padding: ",
        "validation documents also in train: 0.00%",
        "batch 1 of ",
        "batch 2 of ",
        "input_ids (4, 16), targets (4, 16), attention_mask (4, 16), document_ids (4, 16)",
        "<|endoftext|>|",
    ):
        assert line in shown
    assert [line.split()[-1] for line in shown.splitlines()[1:3]] == ["1.000", "1.000"]  # bytes of a token that is one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "missing.yaml"], "config .missing.yaml. does not exist"),
        (["--data.sorce", "x"], "did you mean --data.source"),
        (["--data.source", "missing.txt"], "there is no file, folder or source 'missing.txt'"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)
