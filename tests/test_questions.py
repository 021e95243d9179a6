"""The experiments of docs/questions.md run, and the page says what they found."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.questions.__main__ import DOCS, main, render
from benchmarks.questions.experiments import EXPERIMENTS
from benchmarks.questions.runs import Sample

RESULTS = json.loads((DOCS / "questions.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_quick_runs_every_experiment_and_fills_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--out", str(tmp_path)])
    page = (tmp_path / "questions.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert page.count("\n## ") == len(EXPERIMENTS)
    for name in EXPERIMENTS:
        table = json.loads((tmp_path / "questions.json").read_text(encoding="utf-8"))[name]["table"]
        assert table in page
        assert all(row in printed for row in table.splitlines()), "rows are printed as they come"
    assert not re.search(r"[{}]|<!--", page), "every figure is filled in"


def test_one_experiment_alone_keeps_the_results_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    main(["--quick", "--only", "residual", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "questions.json").read_text(encoding="utf-8"))
    assert written.pop("residual")["figures"]["steps"] == 2
    assert written == {name: result for name, result in RESULTS.items() if name != "residual"}


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    assert (DOCS / "questions.md").read_text(encoding="utf-8") == render(RESULTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_the_page_claims_was_seen(name: str) -> None:
    assert all(RESULTS[name]["claims"].values())


def test_a_claim_that_was_not_seen_is_named_in_the_page() -> None:
    doubtful = {**RESULTS["width"], "claims": {"Pigs fly.": False, "Water is wet.": True}}
    page = render({"width": doubtful})
    assert "**Not seen in this measurement:** Pigs fly.\n" in page
    assert "Not measured yet: `python -m benchmarks.questions --only scale`." in page


def test_below_wants_every_run_below_every_other() -> None:
    assert Sample([1.0, 2.0]).below(Sample([2.1, 3.0]))
    assert not Sample([1.0, 2.5]).below(Sample([2.1, 3.0]))
