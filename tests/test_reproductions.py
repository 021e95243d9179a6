"""The shipped reproductions: sizes as published, first losses near ln V, runs, figures and page by one command."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

import lit_gpt
from benchmarks.reproductions import __main__ as reproductions
from benchmarks.reproductions.figures import FIGURES
from benchmarks.reproductions.networks import NoEmbeddingDropout
from benchmarks.reproductions.page import page
from benchmarks.reproductions.rows import PROJECTS, ROWS
from lit_gpt.baselines.bigram import BigramConfig, NeuralBigram
from lit_gpt.callbacks.run_folder import LAST
from lit_gpt.config import GPTConfig
from lit_gpt.model import GPT
from lit_gpt.module import LitGPT
from lit_gpt.optim import OptimizerConfig, build_optimizer
from tests.conftest import SHARED

FOLDER = Path(__file__).parents[1] / "configs" / "reproductions"
VOCABULARY = {"memorize": 50257, "taylor": 276, "headlines_rope": 32000, "headlines": 16000, "novel": 84, "diary": 512}
PUBLISHED = {
    "memorize": 45_714_432 + 2_304,
    "memorize_masked": 45_714_432 + 2_304,
    "headlines_sgd": 27_172_864,
    "headlines_adamw": 27_172_864,
    "headlines_rope": 37_452_288,
    "novel_1x1": 1_938_132,
    "novel_1x6": 1_938_132,
    "novel_2x6": 3_712_596,
}


def values(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def config(name: str, **changed: Any) -> GPTConfig:
    size = next(v for start, v in VOCABULARY.items() if name.startswith(start))
    return GPTConfig(**{**values(name)["model"]["init_args"]["config"], "vocab_size": size, **changed})


def on_meta(name: str, **changed: Any) -> GPT:
    with torch.device("meta"):
        return GPT(config(name, **changed))


GPTS = sorted(p.stem for p in FOLDER.glob("*.yaml") if values(p.stem)["model"]["class_path"].endswith("GPT"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_published(name: str) -> None:
    assert on_meta(name).num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize(("width", "published"), [(128, 1.27), (384, 10.88)])
def test_sizes_published_in_millions(width: int, published: float) -> None:
    net = on_meta(f"taylor_swift_{width}", vocab_size=275)  # the original has no end mark
    assert round(net.num_parameters() / 1e6, 2) == published


def test_parts_of_the_novel_are_those_published() -> None:
    net = on_meta("novel_2x6")
    block = net.blocks[0]
    parts = {"attn": 591_360, "mlp": 1_181_568, "norm1": 768, "norm2": 768}
    assert {n: sum(p.numel() for p in m.parameters()) for n, m in block.named_children()} == parts
    assert net.lm_head is not None
    assert sum(p.numel() for p in net.lm_head.parameters()) == 32_340
    table = NeuralBigram(BigramConfig(**values("novel_bigram")["model"]["init_args"]["config"], vocab_size=84))
    assert sum(p.numel() for p in table.parameters()) == 7_056


@pytest.mark.parametrize("name", ["memorize", "memorize_masked"])
def test_groups_of_memorize_are_those_published(name: str) -> None:
    net = on_meta(name)
    assert round(net.num_parameters(positions=False) / 1e6, 2) == 45.71
    optimizer = build_optimizer(net, OptimizerConfig(**values(name)["model"]["init_args"]["optimizer"]))
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for group in optimizer.param_groups:
        sizes[bool(group["weight_decay"])] += [p.numel() for p in group["params"]]
    assert [(len(one), sum(one)) for one in sizes.values()] == [(6, 45_714_432), (3, 2_304)]


@pytest.mark.parametrize("name", GPTS)
def test_the_first_loss_is_near_ln_v(name: str) -> None:
    torch.manual_seed(0)
    wide = config(name).n_embd > 512
    net = GPT(config(name, **({"vocab_size": 5000} if wide else {}))).eval()
    V = net.config.vocab_size
    assert V is not None
    ids, targets = torch.randint(V, (2, 4, 16 if net.config.block_size >= 16 else 4))
    with torch.no_grad():
        loss = F.cross_entropy(net(ids).flatten(0, 1), targets.flatten())
    assert float(loss) == pytest.approx(math.log(V), rel=0.03)


@pytest.mark.parametrize("row", [row for row in ROWS.values() if not row.choice], ids=lambda row: row.name)
def test_a_row_states_the_length_of_its_config(row: Any) -> None:
    trainer = values(row.config or row.name)["trainer"]
    if "max_steps" in trainer:
        assert row.steps == trainer["max_steps"]
    elif trainer["max_epochs"] > 1:  # a step is an epoch
        assert row.steps == trainer["max_epochs"]


def test_every_config_has_its_row_and_every_row_its_config() -> None:
    assert {row.config or row.name for row in ROWS.values()} == {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.slow
def test_quick_runs_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproductions.main(["--quick"])
    shown = capsys.readouterr().out
    for project in PROJECTS:
        assert f"## {project.title}" in shown
    for row in ROWS.values():
        if row.choice:
            assert f"| {row.choice} | 2 |" in shown
            continue
        line = next(line for line in shown.splitlines() if line.startswith("| `") and f"`{row.name}` |" in line)
        assert f"| 2 of {row.steps:,} |" in line
    for found in ("| `novel_1x1` | leaking | 2 |", "| the counts plus one | 0.0000 |", "headlines_frequencies.png"):
        assert found in shown
    assert str(tmp_path.parent) not in shown


def test_the_page_holds_the_kept_numbers_and_compares_at_reached_steps() -> None:
    scores = {f"{split}/{name}": 0.5 for split in ("val", "train_eval") for name in ("top1", "top5", "bpb")}
    losses = {0: 4.431, 100: 2.55, 1100: 1.805, 1200: 1.782}
    found = [{"step": s, "val/loss": v, "train_eval/loss": v - 0.1, **scores} for s, v in losses.items()]
    run = {"finished": False, "steps": 1234, "parameters": 1_938_132, "training_seconds": 99.0, "evaluations": found}
    run |= {"validation_seconds": 11.0, "device": "a machine", "precision": "32-true", "texts": {}}
    text = page({"runs": {"novel_1x1": run, "novel_1x6": run}})
    assert "| `novel_1x1` | 1,938,132 | 1,234 of 5,000 | `val/loss`, step 1100 | 1.762 | 1.8050 | 99 + 11 s |" in text
    assert "| `novel_1x1` | 1,100 | `val/loss` | 1.762 |  | 1.8050 | 1.0244 |" in text
    assert "| `novel_1x6` | 2,200 | `val/loss` | 1.574 |  | cut at 1,234 |  |" in text
    assert "| `novel_1x1` | 1,200 | 1.6820 | 1.7820 | +0.1000 |" in text
    assert "| `novel_2x6` |  | 0 of 5,000 |" in text
    assert "| `novel_1x1` | 100 |" not in text
    cut = run | {"steps": 100, "evaluations": found[:2]}
    assert "| `novel_1x1` | 100 | 2.4500 | 2.5500 |" in page({"runs": {"novel_1x1": run, "novel_2x6": cut}})


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    docs = FOLDER.parents[1] / "docs"
    if not (docs / reproductions.RESULTS).exists():
        pytest.skip("nothing has been run yet")
    assert (docs / reproductions.PAGE).read_text() == page(json.loads((docs / reproductions.RESULTS).read_text()))


def test_figures_of_losses_outlive_the_folders_of_their_runs(tmp_path: Path) -> None:
    """The headline runs are compared after as many epochs: 987 steps of one are 924 of another."""
    challenge = dict.fromkeys(("challenge_loss", "challenge_coverage", "nats_per_char", "bpb"), 1.0)
    runs = {}
    for name, step, uncovered in (
        ("novel_bigram", 7, 2.0),
        ("novel_bigram_leak", 7, 2.0),
        ("headlines_sgd", 987, 2.0),
        ("headlines_adamw", 470, 1.6),
        ("headlines_rope", 924, 1.5),
    ):
        scores = {
            f"val/{metric}": value for metric, value in {**challenge, "challenge_loss_uncovered": uncovered}.items()
        }
        runs[name] = {"evaluations": [{"step": step, "val/loss": 3.5, "train_eval/loss": 3.4, **scores}]}
    (tmp_path / reproductions.RESULTS).write_text(json.dumps({"runs": runs}))
    gaps, losses = (FIGURES[name](tmp_path / "logs", tmp_path) for name in ("novel_gaps", "headlines_losses"))
    assert gaps
    assert gaps["table"] == [
        ["`novel_bigram`", s, "7", "3.4000", "3.5000", "+0.1000"] for s in ("contiguous", "leaking")
    ]
    assert losses
    assert [[line[0], line[1], line[-1]] for line in losses["table"]] == [
        ["`headlines_sgd`", "987", "1.0000"],
        ["`headlines_adamw`", "470", ""],  # the other was not evaluated there
        ["`headlines_rope`", "924", "0.7500"],
    ]


def test_a_figure_of_networks_stays_when_some_of_them_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {name: {"evaluations": []} for name in ("headlines_sgd", "headlines_adamw")}
    (tmp_path / reproductions.RESULTS).write_text(json.dumps({"runs": runs}))
    checkpoint = tmp_path / "logs" / "headlines_sgd" / "version_0" / LAST
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()  # a picture of this one alone would fail
    assert FIGURES["headlines_pictures"](tmp_path / "logs", tmp_path) is None
    assert "stays as it was: headlines_adamw left no weights in" in capsys.readouterr().out


def test_the_batches_of_memorize_are_those_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_gpt.commands.data import main

    if not (SHARED / "tiktoken_cache").exists():
        pytest.skip("gpt2's ranks are not in ../shared/tiktoken_cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    main(["--config", str(FOLDER / "memorize_masked.yaml"), "--data.source", str(FOLDER / "sentence.txt")])
    shown = capsys.readouterr().out
    assert "input_ids (3, 4), targets (3, 4), attention_mask (3, 4)" in shown
    for ids, target in (("50256 40 1842 4572", 4673), ("40 1842 4572 4673", 13), ("1842 4572 4673 13", 50256)):
        assert f"ids     {ids}\n    targets -100 -100 -100 {target}\n    mask    ####" in shown
    assert "input   <|endoftext|>|I| love| machine\n    target  ·|·|·| learning" in shown


@pytest.mark.slow
def test_a_run_is_cut_goes_on_and_writes_text_from_its_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    same = ["--only", "diary_bigram", "--source", f"tiny_shakespeare={text}"]
    same += ["--out", str(tmp_path / "docs"), "--logs_dir", str(tmp_path / "logs")]
    kept = tmp_path / "docs" / reproductions.RESULTS
    reproductions.main([*same, "--steps", "500"])
    first = json.loads(kept.read_text())["runs"]["diary_bigram"]
    assert not first["finished"]
    assert 500 <= first["steps"] < 3000
    reproductions.main(same)
    second = json.loads(kept.read_text())["runs"]["diary_bigram"]
    assert second["finished"]
    assert [e["step"] for e in second["evaluations"]] == list(range(0, 3001, 500))
    assert second["evaluations"][: len(first["evaluations"])] == first["evaluations"]
    assert [folder.name for folder in (tmp_path / "logs" / "diary_bigram").iterdir()] == ["version_0"]
    (tmp_path / "elsewhere").mkdir()
    checkpoint = (tmp_path / "logs" / "diary_bigram" / "version_0" / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "elsewhere" / "only.ckpt").write_bytes(checkpoint)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert lit_gpt.load("only.ckpt").generate("the", seed=1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memorize", "memorize_masked"])
def test_a_narrow_memorize_says_the_sentence_and_stops(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_gpt.cli.lightning_cli import run

    if not (SHARED / "tiktoken_cache").exists():
        pytest.skip("gpt2's ranks are not in ../shared/tiktoken_cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    flags = ["--config", str(FOLDER / f"{name}.yaml"), "--logs_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    for source in ("source", "val_source"):
        flags += [f"--data.{source}", str(FOLDER / "sentence.txt")]
    run("fit", [*flags, "--model.config.n_embd", "48", "--model.optimizer.lr", "0.003"])
    folder = tmp_path / name / "version_0" / "checkpoints"
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"best.ckpt", "last.ckpt", "epoch_0100.ckpt", "epoch_0200.ckpt", "epoch_0300.ckpt"}
    model = lit_gpt.load(folder / "last.ckpt")
    whole = model.generate(temperature=0, max_new_tokens=12)[0]
    rest = model.generate("I love machine", temperature=0, max_new_tokens=12, new_document=True)[0]
    assert (whole == "I love machine learning.") == (name == "memorize")
    assert rest == " learning."


def left_by_a_run(logs: Path, name: str, source: str) -> None:
    folder = logs / name / "version_0"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"finished": true}')
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"source": source}}}))
    (folder / "metrics.csv").write_text("step,val/loss\n0,4.0\n")


def test_a_row_whose_text_has_no_download_wants_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproductions, "_run", lambda row, options: pytest.fail(f"{row.name} was run"))
    where = ["--out", str(tmp_path / "docs"), "--logs_dir", str(tmp_path / "logs")]
    with pytest.raises(SystemExit, match="titles cannot be downloaded by name: add --source titles=FILE"):
        reproductions.main([*where, "--only", "diary_bigram", "headlines_sgd"])
    assert not list(tmp_path.iterdir())


def test_a_run_on_the_stand_in_for_titles_is_kept_out_of_the_page(tmp_path: Path) -> None:
    left_by_a_run(tmp_path / "logs", "headlines_rope", "embedded_headlines")
    where = ["--out", str(tmp_path / "docs"), "--logs_dir", str(tmp_path / "logs")]
    reproductions.main([*where, "--only", "headlines_rope", "--steps", "0"])
    assert not (tmp_path / "docs" / reproductions.RESULTS).exists()
    assert "| `headlines_rope` |  | 0 of 924 |" in (tmp_path / "docs" / reproductions.PAGE).read_text()


@pytest.mark.parametrize(
    ("read", "given", "again"),
    [
        ("tiny_shakespeare", [], False),
        ("some.txt", [], True),
        ("tiny_shakespeare", ["--source", "tiny_shakespeare=some.txt"], True),
        ("some.txt", ["--source", "tiny_shakespeare=./some.txt"], False),
    ],
)
def test_a_finished_run_on_another_text_does_not_count(
    read: str, given: list[str], again: bool, tmp_path: Path
) -> None:
    left_by_a_run(tmp_path, "diary_bigram", read)
    options = reproductions._options(["--logs_dir", str(tmp_path), *given])
    assert reproductions._finished(ROWS["diary_bigram"], options) != again


@pytest.mark.parametrize(("module", "same"), [(LitGPT, False), (NoEmbeddingDropout, True)])
def test_embeddings_without_dropout(module: type[LitGPT], same: bool) -> None:
    """With blocks that add nothing, what training reads is what evaluation reads, unless embeddings are dropped."""
    net = module(GPTConfig(block_size=8, n_layer=1, n_head=2, n_embd=16, vocab_size=9, dropout=0.5)).build_network()
    for block in net.blocks:
        for part in (block.attn, block.mlp):
            torch.nn.init.zeros_(part.proj.weight)
    ids = torch.arange(8).view(1, 8)
    assert torch.equal(net.train().hidden(ids), net.eval().hidden(ids)) is same
    assert {block.dropout for block in net.blocks} == {0.5}


def test_the_page_shows_choices_at_their_last_step() -> None:
    row = next(row for project in PROJECTS for row in project.choices)
    shown = page({"runs": {row.name: {"evaluations": [{"step": 1000, "train_eval/loss": 1.25, "val/loss": 1.5}]}}})
    assert f"| {row.choice} | 1,000 | 1.2500 | 1.5000 |" in shown
    assert f"`{row.name}`" not in shown.split("##")[1]  # the first table is of what was published
