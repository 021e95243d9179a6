"""BertDataModule: its options, its order on any number of processes, and what it says of itself."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import BertDataModule, BPEDataModule, UserError
from datamodules.batches import Batch, TrainLoader
from datamodules.planning import vocab_size_of_options
from datamodules.step_size import RankShare
from datamodules.step_totals import StepBatches
from datamodules.tokenizers import WordPieceTokenizer

WORDS = ["the", "model", "reads", "a", "token", "and", "writes", "another", "one", "before", "it", "stops"]
KINDS = [{"rows": "pairs"}, {"pairs": "google"}, {"rows": "packed"}, {"rows": "padded", "documents": "line"},
         {"rows": "packed", "documents": "line", "whole_words": True}]  # fmt: skip


@pytest.fixture
def make(text: Path) -> Callable[..., BertDataModule]:
    """A datamodule of the small text, after ``setup``."""

    def call(**options: object) -> BertDataModule:
        data = BertDataModule(str(text), **{"vocab_size": 120, "block_size": 32, "seed": 4, **options})  # type: ignore[arg-type]
        data.setup()
        return data

    return call


def loader(data: BertDataModule, micro: int, world: int = 1, rank: int = 0, workers: int = 0) -> TrainLoader:
    rows = data.make_rows("train", training=True)
    return TrainLoader(StepBatches(rows, RankShare(rows.count, 8, micro, rank, world)), workers)


def whole_steps(parts: list[list[Batch]], accumulation: int) -> list[Batch]:
    """The global batches of processes' micro-batches; the totals of a step must be those of all its parts."""
    steps = []
    for start in range(0, len(parts[0]), accumulation):
        micro = [batches[j] for j in range(start, start + accumulation) for batches in parts]
        step = {name: torch.cat([batch[name] for batch in micro]) for name in micro[0]}
        assert (step.pop("step_targets") == (step["targets"] != -100).sum()).all()
        labels = step.get("next_sentence_label", torch.tensor([-100]))
        assert (step.pop("step_pairs") == (labels != -100).sum()).all()
        steps.append(step)
    return steps


def equal(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_processes_and_accumulation_see_the_same_steps(
    make: Callable[..., BertDataModule], options: dict[str, object]
) -> None:
    data = make(**options)
    one = whole_steps([list(loader(data, 8))], 1)
    assert len(one) > 3
    assert sum(int((step["targets"] != -100).sum()) for step in one) > 100
    four = whole_steps([list(loader(data, 4, 2, rank)) for rank in range(2)], 1)
    accumulated = whole_steps([list(loader(data, 2, 2, rank)) for rank in range(2)], 2)
    for other in (four, accumulated):
        assert len(other) == len(one)
        assert all(map(equal, one, other))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_resumed_run_goes_on_with_the_next_step_on_another_number_of_processes(
    make: Callable[..., BertDataModule], options: dict[str, object]
) -> None:
    data, n = make(**options), 0
    straight = loader(data, 8)
    n = len(straight)
    steps = [*straight, *straight]  # two epochs
    broken = loader(data, 8)
    for _ in islice(broken, n - 1):
        pass
    state = broken.state_dict()
    assert all(type(value) is int for value in state.values())
    resumed = [loader(make(**options), 2, 2, rank) for rank in range(2)]
    for each in resumed:
        each.load_state_dict(state)
    rest = whole_steps([[*each, *each] for each in resumed], 2)
    expected = whole_steps([steps], 1)[n - 1 :]
    assert len(rest) == len(expected) == n + 1
    assert all(map(equal, expected, rest))
    assert not equal(expected[0], expected[1])


def test_workers_build_the_same_batches(make: Callable[..., BertDataModule]) -> None:
    data = make()
    assert all(map(equal, loader(data, 4), loader(data, 4, workers=2)))


def test_each_epoch_has_other_masks_and_each_seed_another_order(make: Callable[..., BertDataModule]) -> None:
    rows = make(rows="padded").make_rows("train", training=True)
    first, second = (rows.batch(epoch, torch.arange(rows.count).numpy()) for epoch in (0, 1))
    mine = [torch.tensor(batch["targets"]) != -100 for batch in (first, second)]
    shared = (mine[0] & mine[1]).sum() / mine[0].sum()
    assert float(shared) == pytest.approx(0.16, abs=0.05)
    other = make(rows="padded", seed=5).make_rows("train", training=True).batch(0, torch.arange(rows.count).numpy())
    assert not (other["targets"] == first["targets"]).all()


def test_evaluation_does_not_depend_on_seed_masking_share_and_epoch(make: Callable[..., BertDataModule]) -> None:
    others: list[dict[str, object]] = [
        {"max_predictions": 3, "shuffle": False},
        {"masking": "bernoulli"},
        {"whole_words": True},
    ]
    for options, training in zip(({"rows": "pairs"}, {"rows": "packed"}, {"pairs": "google"}), others, strict=True):
        one, other = make(**options), make(**options, seed=9, mlm_probability=0.3, **training)
        for mine, yours in zip(one.val_dataloader(), other.val_dataloader(), strict=True):
            batches = list(mine)
            assert all(map(equal, batches, yours))
            assert all(map(equal, batches, mine))  # again
        masked = torch.cat([batch["targets"] for batch in one.val_dataloader()[0]]) != -100
        real = torch.cat([batch["attention_mask"] for batch in one.val_dataloader()[0]])
        assert float(masked.sum() / real.sum()) == pytest.approx(0.15, abs=0.03)


def test_a_trainer_takes_it(
    make: Callable[..., BertDataModule],
    recorder: Callable[..., object],
    make_trainer: Callable[..., Trainer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, module = make(micro_batch_size=2, tokens_per_step=256), recorder(32)
    make_trainer(max_steps=5, limit_val_batches=2).fit(module, datamodule=data)  # type: ignore[arg-type]
    seen = module.seen["train"]  # type: ignore[attr-defined]
    assert len(seen) == 5 * 4
    assert [int(batch["step_targets"]) for batch in seen[::4]] == [
        sum(int((batch["targets"] != -100).sum()) for batch in seen[start : start + 4]) for start in range(0, 20, 4)
    ]
    assert capsys.readouterr().out.count("pairs: ") == 1


def test_predict_scores_fixed_masks_of_its_own_text(
    make: Callable[..., BertDataModule],
    recorder: Callable[..., object],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    (tmp_path / "other.txt").write_text("it stops and writes another token before the model reads. " * 20)
    for options in ({}, {"predict_source": str(tmp_path / "other.txt")}):
        outputs = [make_trainer().predict(recorder(32), datamodule=make(**options, seed=seed)) for seed in (1, 2)]  # type: ignore[arg-type]
        assert all(map(equal, *outputs))
        assert any(int((batch["targets"] != -100).sum()) for batch in outputs[0])


def test_no_bits_per_byte_and_facts_of_masked_tokens(make: Callable[..., BertDataModule]) -> None:
    data = make()
    assert data.scored_text("val") is None
    losses = data.text_facts.baselines
    assert losses.two_sided is not None
    assert losses.bigram is not None
    assert 0 < losses.unigram < losses.uniform  # type: ignore[operator]
    assert data.text_facts.splits["train"]["tokens"] == len(data.stores["train"])


def test_a_vocabulary_file_and_its_checkpoint(make: Callable[..., BertDataModule], tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]) + "\n")
    data = make(tokenizer=str(path), vocab_size=None)
    tokenizer = data.tokenizer
    assert isinstance(tokenizer, WordPieceTokenizer)
    assert (data.vocab_size, tokenizer.mask_id) == (18, 4)
    stored = data.init_args["tokenizer"]
    path.unlink()
    again = BertDataModule(data.source, tokenizer=stored, block_size=32)
    again.use_tokenizer(tokenizer)
    again.setup()
    assert again.fingerprints == data.fingerprints


def test_a_decoder_can_have_the_very_tokens_of_a_bert(make: Callable[..., BertDataModule]) -> None:
    bert = make()
    decoder = BPEDataModule(bert.source, tokenizer="wordpiece", vocab_size=120, block_size=32)
    decoder.setup()
    assert decoder._folder == bert._folder
    assert decoder.scored_text("val") is None  # capitals and spaces are not predicted
    with pytest.raises(UserError, match="prefix_space is for a bpe or unigram"):
        BPEDataModule(bert.source, tokenizer="wordpiece", prefix_space=True).recipe()


def test_rows_of_a_store_at_a_url_are_those_of_a_file(make: Callable[..., BertDataModule], tmp_path: Path) -> None:
    for kind in KINDS[:3]:
        near, far = make(**kind), make(**kind, cache_dir=f"file://{tmp_path}/storage")
        assert far.train_dataloader().remote  # threads read ahead
        assert not near.train_dataloader().remote
        for one, other in zip(islice(near.train_dataloader(), 3), islice(far.train_dataloader(), 3), strict=True):
            assert equal(one, other)


def test_a_resumed_run_does_not_train_its_tokenizer_again(make: Callable[..., BertDataModule]) -> None:
    trained = make().tokenizer
    other = WordPieceTokenizer([*trained.vocab[:-1], "zzz"])  # type: ignore[attr-defined]
    for uncased, expected in ((True, other), (False, None)):
        data = BertDataModule(make().source, vocab_size=120, block_size=32, uncased=uncased)
        data.reuse_tokenizer(other)
        data.setup()
        assert (data.tokenizer.fingerprint == other.fingerprint) == (expected is other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 3}, "stride is for models that predict the next token"),
        ({"mask_first": 3}, "mask_first is for models that predict the next token"),
        ({"rows": "packed", "packing": "best_fit"}, "packing is for models that predict the next token"),
        ({"shuffle_window": "1MB"}, "shuffle_window is for models that predict the next token"),
        ({"block_size": 7}, "block_size of 7 has no room for a pair: give at least 8"),
        ({"tokenizer": "bpe"}, "bpe is no WordPiece vocabulary"),
        ({"vocab_size": 20}, "vocab_size=20 is none for wordpiece"),
        ({"mlm_probability": 1.5}, "mlm_probability 1.5 is no share"),
    ],
)
def test_options_that_cannot_be(make: Callable[..., BertDataModule], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)


def test_rows_longer_than_the_network_reads_are_one_sentence(
    text: Path, recorder: Callable[..., object], make_trainer: Callable[..., Trainer]
) -> None:
    data = BertDataModule(str(text), vocab_size=120, block_size=600)
    with pytest.raises(UserError, match="the data's block_size 600 exceeds the model's, 512"):
        make_trainer(max_steps=1).fit(recorder(512), datamodule=data)  # type: ignore[arg-type]


def test_another_tokenizer_of_a_file_is_refused(make: Callable[..., BertDataModule], tmp_path: Path) -> None:
    from datamodules.tokenizers import ByteTokenizer, save_tokenizer

    save_tokenizer(ByteTokenizer(eos=True), tmp_path / "bytes.json")
    with pytest.raises(UserError, match=r"need a WordPiece tokenizer, and .*bytes\.json is a ByteTokenizer"):
        make(tokenizer=str(tmp_path / "bytes.json"), vocab_size=None)


def test_a_split_without_a_token_is_one_sentence(make: Callable[..., BertDataModule], tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n" * 50)
    with pytest.raises(UserError, match=r"the val split of .* has no token: give a text with words"):
        make(val_source=str(tmp_path / "blank.txt"))


def test_words_that_the_vocabulary_does_not_know_are_named(
    make: Callable[..., BertDataModule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = make().tokenizer
    (tmp_path / "vocab.txt").write_text("\n".join(trained.vocab))  # type: ignore[attr-defined]
    known, source = " ".join(WORDS) + ". ", tmp_path / "mixed.txt"
    for unknown, lines in ((0, 0), (1, 1)):
        source.write_text((known + "ᚠᛇᚻ " * unknown) * 300)
        data = BertDataModule(str(source), tokenizer=str(tmp_path / "vocab.txt"), block_size=32)
        data.setup("fit")
        said = capsys.readouterr().err
        assert said.count("mixed.txt, 7% are [UNK], which is not trained on: check --data.uncased") == lines
        assert data.text_facts.splits["train"]["documents"] == 1
    source.write_text("ᚠᛇᚻ " * 300)
    with pytest.raises(UserError, match=r"mixed.txt, 100% are \[UNK\], which is not trained on: check --data.uncased"):
        BertDataModule(str(source), tokenizer=str(tmp_path / "vocab.txt"), block_size=32).setup()


def test_batches_from_storage_are_built_ahead(make: Callable[..., BertDataModule]) -> None:
    local, remote = make(), make(cache_dir="memory://ahead", max_cache_size=1)
    loader = remote.train_dataloader()
    assert loader.remote
    assert not local.train_dataloader().remote
    for one, other in zip(islice(loader, 3), islice(local.train_dataloader(), 3), strict=True):
        assert equal(one, other)


def test_a_plan_knows_the_vocabulary() -> None:
    assert vocab_size_of_options(BertDataModule(vocab_size=2000)) == (2000, None)
    assert vocab_size_of_options(BertDataModule()) == (30_522, None)
