"""HeadlinesDataModule: whole documents, from lines and tables, packed."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datamodules import HeadlinesDataModule
from datamodules.errors import UserError
from datamodules.rows import IGNORE_INDEX
from datamodules.synthetic import headlines
from datamodules.tokens import TokenStore

TITLES = [f"  Title {i % 30} of {i % 7}  " for i in range(200)]


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "titles.txt"
    path.write_text("\n".join(TITLES) + "\n")
    return str(path)


def documents(data: HeadlinesDataModule, split: str) -> list[str]:
    store = TokenStore(data._folder, split)
    text = [
        data.tokenizer.decode(store.tokens[a + 1 : b].tolist())
        for a, b in zip(store.starts, store.starts[1:], strict=False)
    ]
    return text


def module(source: str, **options: object) -> HeadlinesDataModule:
    data = HeadlinesDataModule(source, **{"tokenizer": "byte", "strip": True, "block_size": 32, **options})  # type: ignore[arg-type]
    data.setup()
    return data


def test_lines_are_stripped_and_the_last_ones_validate(lines: str) -> None:
    data = module(lines, val_documents=20)
    stripped = [title.strip() for title in TITLES]
    assert documents(data, "train") == stripped[:180]
    assert documents(data, "val") == stripped[180:]
    assert data.scored_text("val").eos_tokens == 20
    assert data.scored_text("val").chars == sum(len(title) + 1 for title in stripped[180:])


def test_repeats_are_dropped_before_the_split(lines: str) -> None:
    data = module(lines, deduplicate=True, split="shuffle")
    train, val = documents(data, "train"), documents(data, "val")
    assert len(train) + len(val) == len({title.strip() for title in TITLES})
    assert not set(train) & set(val)


def test_a_column_of_a_table_is_the_same_as_lines(lines: str, tmp_path: Path) -> None:
    table = tmp_path / "titles.csv"
    table.write_text("id,title\n" + "".join(f'{i},"{title}"\n' for i, title in enumerate(TITLES)))
    by_column = module(str(table), documents="column", column="title")
    assert documents(by_column, "val") == documents(module(lines), "val")


def test_a_wrong_column_is_one_sentence(tmp_path: Path) -> None:
    table = tmp_path / "titles.csv"
    table.write_text("id,title\n1,a\n")
    with pytest.raises(UserError, match=r"no column 'headline'; it has id, title"):
        module(str(table), documents="column", column="headline")


@pytest.mark.parametrize("rows", ["packed", "padded", "windows"])
def test_validation_scores_every_token_once_in_every_kind(lines: str, rows: str) -> None:
    data = module(lines, rows=rows)
    store = TokenStore(data._folder, "val")
    found: Counter[int] = Counter()
    for batch in data.val_dataloader()[0]:
        found.update(batch["targets"][batch["targets"] != IGNORE_INDEX].tolist())
        assert ("document_ids" in batch) == (rows == "packed")
    assert found == Counter(store.tokens[1:].tolist())


def test_packed_epochs_are_about_full(lines: str) -> None:
    packed, padded = (module(lines, rows=rows) for rows in ("packed", "padded"))

    def share_of_real(data: HeadlinesDataModule) -> float:
        return float(np.mean([batch["attention_mask"].float().mean() for batch in data.train_dataloader()]))

    assert share_of_real(packed) > 0.8
    assert share_of_real(padded) < 0.6


@pytest.mark.parametrize("rows", ["packed", "padded"])
def test_a_mask_that_leaves_no_target_of_any_document_is_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "titles.txt").write_text("ab\nabcd\nabc\na longer one that validates")
    title = str(tmp_path / "titles.txt")
    with pytest.raises(UserError, match=r"mask_first 5 leaves no target of the longest document .* 5 targets: .* to 4"):
        module(title, rows=rows, val_documents=1, mask_first=5)
    data = module(title, rows=rows, val_documents=1, mask_first=4)
    batches = list(data.train_dataloader())
    assert [t for batch in batches for t in batch["targets"][batch["targets"] != IGNORE_INDEX].tolist()] == [
        data.tokenizer.eos_id
    ]


def test_predictions_know_their_document(lines: str) -> None:
    data = module(lines, val_documents=20)
    seen = [d for batch in data.predict_dataloader() for d in batch["document"].tolist() if d >= 0]
    assert seen == list(range(20))


def test_other_sources_validate_whole_and_nothing_is_taken_from_the_training_text(lines: str, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("one\ntwo\ntwo\n")
    (tmp_path / "test.txt").write_text("three")
    others = {"val_source": str(tmp_path / "val.txt"), "test_source": str(tmp_path / "test.txt")}
    data = module(lines, split="shuffle", deduplicate=True, **others)
    assert documents(data, "train") == list(dict.fromkeys(title.strip() for title in TITLES))
    assert documents(data, "val") == ["one", "two", "two"]
    assert documents(data, "test") == ["three"]
    half = module(lines, val_source=others["val_source"], test_fraction=0.1)
    assert (len(documents(half, "train")), documents(half, "val")) == (180, ["one", "two", "two"])
    with pytest.raises(UserError, match="val_source and val_documents=3 contradict"):
        module(lines, val_source=others["val_source"], val_documents=3)


@pytest.mark.parametrize(("rows_per_step", "scored"), [(1, 2016), (4, 2048), (40, 1280), (128, 0)])
def test_the_challenge_counts_an_eos_token_as_five_characters_and_whole_spans_of_a_batch(
    lines: str, rows_per_step: int, scored: int
) -> None:
    (Path(lines).parent / "val.txt").write_text("abcdefghi\n" * 208)
    options = {"val_source": str(Path(lines).parent / "val.txt"), "tokens_per_step": 32 * rows_per_step}
    data = module(lines, **options, challenge_metrics=True)
    n = 208 * 10 + 1
    spans = range(0, n - 32 * rows_per_step, 32 * rows_per_step + 1)  # of a step's targets and the input before them
    assert len(spans) * 32 * rows_per_step == scored
    metrics = data.extra_metrics("val", 100.0)
    assert metrics == {
        "challenge_loss": pytest.approx(100 / (208 * len("abcdefghi<eos>"))),
        "challenge_coverage": pytest.approx(scored / n),
    }
    assert data.extra_metrics("train_eval", 100.0) == {}
    assert module(lines, **options).extra_metrics("val", 100.0) == {}


def test_a_share_beside_a_number_of_documents_is_at_least_one(lines: str) -> None:
    few = Path(lines).parent / "few.txt"
    few.write_text("\n".join(TITLES[:9]))
    data = module(str(few), val_fraction=0.1, test_documents=2)
    assert [len(documents(data, split)) for split in ("train", "val", "test")] == [6, 1, 2]


def test_a_split_by_documents_needs_enough_of_them(lines: str) -> None:
    with pytest.raises(UserError, match="leave nothing to train on"):
        module(lines, val_documents=200)


def test_the_synthetic_headlines_are_the_default() -> None:
    data = HeadlinesDataModule(tokenizer="byte", block_size=64)
    data.setup()
    assert documents(data, "train") + documents(data, "val") == list(headlines(10_000))
