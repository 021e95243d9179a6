"""The search on Hacker News titles: what it trains on and is judged by, a trial from end to end, the page."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.headlines import __main__ as search
from benchmarks.headlines import others, story
from benchmarks.reproductions.headlines import draw
from datamodules.synthetic import headlines
from lit_gpt import load
from lit_gpt.callbacks.run_folder import LAST, SUMMARY

DESCRIBED = {
    "baseline": {"loss": 1.8, "whose": "somebody's"},
    "about": "Changes of a config.\n",
    "scales": {
        "tiny": {
            "titles": 300,
            "about": "Very small.",
            "flags": {
                "data.vocab_size": 400,
                "data.tokens_per_step": 512,
                "model.config.n_embd": 32,
                "model.config.n_layer": 1,
                "trainer.max_epochs": 1,
                "trainer.accelerator": "cpu",
            },
        }
    },
    "trials": [
        {"name": "base", "scale": "tiny", "about": "as it is", "seeds": [1, 2]},
        {"name": "wide", "scale": "tiny", "about": "wider", "flags": {"model.config.n_embd": 64}, "verdict": "kept"},
    ],
}


@pytest.fixture
def titles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """440 titles, of which the first 400 are training titles and the last 40 the challenge's validation."""
    monkeypatch.setattr(search, "TRAINING", 400)
    monkeypatch.setattr(search, "HELD_OUT", 50)
    monkeypatch.setattr(search, "RESULTS", tmp_path / "docs" / "headlines.json")
    monkeypatch.setattr(search, "PAGE", tmp_path / "docs" / "headlines.md")
    monkeypatch.setattr(search, "TRIALS", tmp_path / "trials.yaml")
    (tmp_path / "docs").mkdir()
    (tmp_path / "trials.yaml").write_text(yaml.safe_dump(DESCRIBED))
    path = tmp_path / "titles.txt"
    path.write_text("".join(f"{i} {title}\n" for i, title in enumerate(headlines(440, seed=0))))
    return path


@pytest.mark.slow
def test_trials_run_once_each_and_never_see_the_validation_titles(titles: Path, tmp_path: Path) -> None:
    given = ["--titles", str(titles), "--jobs", "2", "--logs_dir", str(tmp_path / "logs" / "headlines")]
    search.main(given)
    read = {path.name: path.read_text().splitlines() for path in (tmp_path / "logs" / "headlines").glob("*.txt")}
    numbers = {name: [int(line.split()[0]) for line in lines] for name, lines in read.items()}
    assert numbers == {"first_300.txt": list(range(300)), "held_out.txt": list(range(350, 400))}
    kept = json.loads(search.RESULTS.read_text())["trials"]
    assert set(kept) == {"tiny-base-1", "tiny-base-2", "tiny-wide-1337"}
    assert kept["tiny-base-1"]["loss"] != kept["tiny-base-2"]["loss"]
    assert kept["tiny-wide-1337"]["parameters"] > kept["tiny-base-1"]["parameters"]
    page = search.PAGE.read_text()
    assert re.search(
        r"Trained 3 times .* it takes \d+\.\d+, \d+\.\d+, \d+\.\d+ tokens a held-out title, and \d+\.\d% and", page
    )
    mean = (kept["tiny-base-1"]["loss"] + kept["tiny-base-2"]["loss"]) / 2
    assert f"| `base` | as it is | 2 | {mean:.4f} |" in page
    assert f"| {kept['tiny-wide-1337']['loss'] - mean:+.4f} |" in page
    search.RESULTS.write_text(
        search.RESULTS.read_text().replace(f'"loss": {kept["tiny-base-1"]["loss"]}', '"loss": 0.5')
    )
    search.main(given)
    assert json.loads(search.RESULTS.read_text())["trials"]["tiny-base-1"]["loss"] == 0.5  # not run again

    folder = shutil.copytree(tmp_path / "logs" / "headlines" / "tiny-wide-1337", tmp_path / "logs" / "headlines_cpu")
    search.main(given[2:])
    assert_told(folder / "version_0", kept["tiny-wide-1337"]["loss"], read["held_out.txt"])
    told = search.RESULTS.read_text()
    search.main(given[2:])  # that run now looks like one under way
    assert search.RESULTS.read_text() == told


def assert_told(folder: Path, loss: float, judged: list[str]) -> None:
    """The page has the record's figure; titles scored one by one add up to it, but for those that rows cut in two."""
    told, page = json.loads(search.RESULTS.read_text())["records"]["headlines_cpu"], search.PAGE.read_text()
    assert told["losses"] == [loss]
    assert f"| **{loss:.4f}** | **{loss / 1.8:.3f}** |" in page
    assert "`headlines_cpu` has learned" in page
    assert told["generated"][0].replace("`", "'").replace("|", "\\|") in page
    assert (search.PAGE.parent / "headlines_record_curves.png").stat().st_size > 1000
    assert_drawn(folder)
    nats = story.nats_of_titles(load(folder / LAST), judged)
    characters = sum(len(title) + story.EOS_TOKEN for title in judged)
    assert sum(nats) / characters == pytest.approx(loss, rel=0.02)


def assert_drawn(folder: Path) -> None:
    """Pictures of another page do not mix with the records'; a run that was cut says so."""
    summary = json.loads((folder / SUMMARY).read_text())
    (folder / SUMMARY).write_text(json.dumps(summary | {"finished": False}))
    others = draw({"headlines_cpu": folder}, search.PAGE.with_name("headlines"))
    parts = ("curves", "frequencies", "next_tokens")
    assert set(others["pictures"].values()) == {f"headlines_{part}.png" for part in parts}
    assert others["table"][0][0] == f"`headlines_cpu`, cut at step {summary['steps']}"


def test_the_trials_of_the_search_are_told_apart() -> None:
    found = search.runs(yaml.safe_load(search.TRIALS.read_text()))
    assert len({run.key for run in found}) == len(found)


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    assert search.PAGE.read_text() == search.written()


def test_character_ngrams_score_each_title_as_if_it_were_alone() -> None:
    """Against one prediction at a time, each of which sums to 1; a character that was never counted has a share too."""
    ngrams = others.CharacterNgrams(list(headlines(200, seed=0)), order=3)
    titles = ["A title", "Another Ω", "", *headlines(1, seed=5)]
    together = ngrams.nats_of_titles(titles)
    for title, nats in zip(titles, together, strict=True):
        ids = [ngrams.eos, *(ngrams.ids.get(character, ngrams.unknown) for character in title), ngrams.eos]
        expected = 0.0
        for end in range(1, len(ids)):
            p = ngrams.counts(ngrams.counts.contexts(torch.tensor([ids[:end]]))[:, -1])[0]
            assert float(p.sum()) == pytest.approx(1, abs=1e-5)
            expected -= float(p[ids[end]].log())
        assert nats == pytest.approx(expected, rel=1e-5)


def test_other_titles_that_the_run_has_read_are_left_out() -> None:
    read = ["Show HN: A  clock", "Ask HN: Why?"]
    assert others.not_among(read, ["show hn: a clock", "Ask HN: Why not?", " Ask HN:  why? "]) == ["Ask HN: Why not?"]


def test_other_titles_of_which_none_is_left_have_no_figure(tmp_path: Path) -> None:
    titles = tmp_path / "titles.txt"
    titles.write_text("".join(f"{title}\n" for title in headlines(20, seed=0)))
    with pytest.raises(SystemExit, match="no title that is not among those of"):
        others.compared(tmp_path / "last.ckpt", titles, titles)


def test_the_loss_of_titles_counts_an_eos_token_as_five_characters() -> None:
    """With its standard error: that of a ratio of sums, by the deviations of each title."""
    found = others.loss([10.0, 30.0], ["abcde", "f" * 15])  # 10 and 20 characters
    assert found["loss"] == pytest.approx(40 / 30, abs=1e-5)
    assert found["error"] == pytest.approx(((10 - 40 / 3) ** 2 + (30 - 80 / 3) ** 2) ** 0.5 / 30, abs=1e-5)
