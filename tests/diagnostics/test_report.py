"""The verb report: what it reads from runs, whole and broken, and the page that it writes."""

import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import UserError
from lit_gpt import LitGPT
from lit_gpt.checkpoint import KEY
from lit_gpt.commands import run
from lit_gpt.diagnostics.report import data_wait
from lit_gpt.diagnostics.runs import Run, find_runs
from lit_gpt.diagnostics.settings import best_step, differences, settings_of
from lit_gpt.model import GPT
from tests.diagnostics.conftest import Write, csv_of

Capture = pytest.CaptureFixture[str]


def one(folder: Path) -> Run:
    (found,) = find_runs([str(folder)])
    return found


def page_of(*arguments: str | Path, out: Path) -> dict[str, Any]:
    """The data of the page that the verb writes."""
    run("report", [*map(str, arguments), "--out", str(out)])
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', out.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def test_seeds_are_folded_and_other_settings_are_not(write: Write, tmp_path: Path) -> None:
    for seed in (1, 2, 4):
        write(f"a/version_{seed}", seed)
    write("b/version_0", 1, width=64)
    write("c/version_0", 1, hashes={"data": "another text", "tokenizer": "t" * 64})
    data = page_of(tmp_path / "logs", out=tmp_path / "page.html")
    assert [setting["name"] for setting in data["settings"]] == ["a (seeds 1, 2, 4)", "b", "c"]
    losses = [3.9, 4.0, 4.2]
    mean, deviation = statistics.fmean(losses), statistics.stdev(losses)
    last, place = data["rows"][1], data["rows"][0][:3]
    assert (place, last[:3]) == ([0, "last 20", "train"], [0, "", "val"])
    assert last[3] == f"{mean:.4f} ± {deviation:.4f}"
    folded = next(line for line in data["lines"] if line["run"] is None)
    curve = next(curve for curve in folded["curves"] if "val/loss" in curve["values"])
    assert curve["steps"] == [10, 20]
    assert curve["values"]["val/loss"] == pytest.approx([mean + 0.1, mean], rel=1e-4)
    assert curve["spread"]["val/loss"] == pytest.approx([deviation] * 2, rel=1e-4)
    assert {row[0]: row[1:] for row in data["differences"]} == {
        "model.config.n_embd": ["32", "64", "32"],
        "text and splits (hash)": ["d" * 12, "d" * 12, "another text"],
    }


def test_a_repeated_seed_and_an_unfinished_run_are_not_in_the_mean(write: Write, capsys: Capture) -> None:
    folders = [write("a/version_0", 1), write("a/version_1", 1), write("a/version_2", 2)]
    folders += [write("a/version_3", 3, 10, finished=False), write("a/version_4", 4, 10)]  # the last one stopped early
    (setting,) = settings_of([one(folder) for folder in folders])
    assert [run.name for run in setting.runs] == ["a/version_1", "a/version_2", "a/version_4"]
    assert [run.name for run in setting.others] == ["a/version_0", "a/version_3"]
    run("report", [str(folders[0].parents[1]), "--table"])
    remarks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a/version")]
    assert remarks == [
        "a/version_0: not in the mean: a later run has its seed",
        "a/version_3: unfinished, step 10; not in the mean: other runs came further",
    ]


def test_runs_of_the_same_name_have_longer_names(write: Write, tmp_path: Path) -> None:
    folders = [write("x/a/version_0"), write("y/a/version_0"), write("y/a/version_1")]
    assert [found.name for found in find_runs([str(tmp_path / "logs")])] == [
        *(str(folder) for folder in folders[:2]),
        "a/version_1",
    ]


def test_of_unfinished_runs_those_that_came_as_far_are_folded(write: Write) -> None:
    folders = [write(f"a/version_{seed}", seed, steps, finished=False) for seed, steps in ((1, 20), (2, 20), (3, 10))]
    (setting,) = settings_of([one(folder) for folder in folders])
    assert [run.seed for run in setting.runs] == ["1", "2"]


def test_a_run_that_diverged_is_counted_as_missing(write: Write, capsys: Capture) -> None:
    folders = [write(f"a/version_{seed}", seed) for seed in (1, 2, 3)]
    (folders[1] / "metrics.csv").write_text("step,val/loss\n10,4.1\n20,nan\n")
    run("report", [str(folders[0].parents[1]), "--table", "--steps", "20"])
    mean, deviation = statistics.fmean([3.9, 4.1]), statistics.stdev([3.9, 4.1])
    assert f"{mean:.4f} ± {deviation:.4f} (2 of 3)" in " ".join(capsys.readouterr().out.split())


def test_options_that_only_one_class_has_do_not_differ(write: Write) -> None:
    bigram = {"model": {"class_path": "lit_gpt.LitBigram", "init_args": {"config": {"add_k": 1.0}}}}
    runs = [one(write("a/version_0")), one(write("b/version_0", config=bigram))]
    assert differences(settings_of(runs)) == {"model.class_path": ["lit_gpt.LitGPT", "lit_gpt.LitBigram"]}


def test_the_axes_count_tokens_and_seconds(write: Write, tmp_path: Path) -> None:
    folder = write(steps=25)  # logged at 10 and 20; the summary tells of 25 steps in 12.5 s
    found = one(folder)
    assert [found.tokens_at(step) for step in (0, 10, 25)] == [0, 640, 1600]
    assert [found.seconds_at(step) for step in (0, 5, 10, 25)] == [0, 2.5, 5, 12.5]
    assert data_wait(found) == pytest.approx(0.25)
    (line,) = page_of(folder, out=tmp_path / "p.html")["lines"]
    assert all(curve["tokens"] == [640, 1280] and curve["seconds"] == [5, 10] for curve in line["curves"])


def test_the_share_of_waiting_is_weighted_by_time(write: Write) -> None:
    folder = write()
    (folder / "metrics.csv").write_text("step,train/step_seconds,train/data_wait\n10,1,0.5\n20,3,0.1\n")
    assert data_wait(one(folder)) == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)


def test_what_only_interrupts_or_prints_makes_no_other_setting(write: Write) -> None:
    trainer = {"logger": False, "log_every_n_steps": 5, "enable_progress_bar": False, "max_time": "00:01"}
    runs = [one(write("a/version_0", 1)), one(write("a/version_1", 2, config={"trainer": trainer}))]
    assert len(settings_of(runs)) == 1
    assert len(settings_of([*runs, one(write("a/version_2", 3, config={"trainer": {"precision": "bf16"}}))])) == 2


def test_numbers_in_names_are_in_their_order(write: Write, tmp_path: Path) -> None:
    for name in ("a-n_embd128/version_0", "a-n_embd64/version_10", "a-n_embd64/version_9", "b/version_0"):
        write(name)
    names = [found.name for found in find_runs([str(tmp_path / "logs")])]
    assert names == ["a-n_embd64/version_9", "a-n_embd64/version_10", "a-n_embd128/version_0", "b/version_0"]


def test_folders_may_stand_on_both_sides_of_an_option(write: Write, tmp_path: Path) -> None:
    folders = [str(write(f"{name}/version_0", width=i)) for i, name in enumerate("abc")]
    page = tmp_path / "p.html"
    run("report", [folders[0], "--out", str(page), folders[1], "--table", "--steps=20", folders[2]])
    assert all(json.dumps(folder) in page.read_text(encoding="utf-8") for folder in folders)


def test_a_metric_of_any_value_is_no_error(write: Write, tmp_path: Path) -> None:
    folder = write("a/version_0", 1)
    rows = [f"{step},{value},{value},{value}" for step, value in enumerate(["nan", "-inf", *["1.5e308"] * 3, "0.5"])]
    (folder / "metrics.csv").write_text("\n".join(["step,val/loss,train/step_seconds,train/data_wait", *rows, ""]))
    (write("a/version_1", 2) / "metrics.csv").write_text("step,val/loss\n2,1.5e308\n5,1.5e308\n")
    run("report", [str(tmp_path / "logs"), "--table"])
    (setting,) = page_of(tmp_path / "logs", out=tmp_path / "p.html")["settings"]
    assert setting["data_wait"] == pytest.approx(0.5)


def test_a_name_cannot_act_on_the_terminal(write: Write, tmp_path: Path, capsys: Capture) -> None:
    write("a\x1b[31m/version_0", finished=False, config={"seed_everything": "\x1b[32m"})
    write("a\x1b[31m/version_1", finished=False, config={"seed_everything": "\x1b[33m"})
    run("report", [str(tmp_path / "logs"), "--table"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a\\x1b[31m" in out


def test_curves_of_many_points_are_thinned_by_means(write: Write, tmp_path: Path) -> None:
    folder = write(steps=4000)
    (folder / "metrics.csv").write_text(csv_of(1, 4000, every=1))
    (line,) = page_of(folder, out=tmp_path / "p.html")["lines"]
    curve = next(curve for curve in line["curves"] if "train/loss" in curve["values"])
    assert len(curve["steps"]) == 400
    assert (curve["steps"][0], curve["steps"][-1]) == (10, 4000)
    assert curve["values"]["train/loss"][0] == pytest.approx(4.1 - 5.5 / 100, rel=1e-4)


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
BROKEN = {
    "no config": (lambda folder: (folder / "config.yaml").unlink(), "no config.yaml"),
    "no summary": (lambda folder: (folder / "summary.json").unlink(), "no summary.json"),
    "no metrics": (lambda folder: (folder / "metrics.csv").unlink(), "no metrics.csv"),
    "cut config": (text("config.yaml", "model: [1, 2"), "config.yaml cannot be read"),
    "list as config": (text("config.yaml", "[1, 2]"), "config.yaml cannot be read (it holds no names with values)"),
    "config with an object": (text("config.yaml", "a: !!python/object/apply:os.getcwd []"), "config.yaml cannot be"),
    "config in latin-1": (
        lambda folder: (folder / "config.yaml").write_bytes(b"a: \xe9"),
        "config.yaml cannot be read ('utf-8'",
    ),
    "recursive config": (text("config.yaml", "a: &a [*a]"), "config.yaml cannot be read"),
    "config as a folder": (
        lambda folder: ((folder / "config.yaml").unlink(), (folder / "config.yaml").mkdir()),
        "config.yaml cannot be read",
    ),
    "cut summary": (cut("summary.json", 30), "summary.json cannot be read"),
    "summary of another kind": (
        text("summary.json", "[]"),
        "summary.json cannot be read (it holds no names with values)",
    ),
    "empty metrics": (cut("metrics.csv", 0), "metrics.csv cannot be read (it is empty)"),
    "metrics without step": (text("metrics.csv", "epoch,loss\n1,2\n"), "it has no column step"),
    "metrics without rows": (text("metrics.csv", "step,val/loss\n"), "metrics.csv has no rows"),
    "cut metrics": (cut("metrics.csv", -3), "metrics.csv: damaged rows left out: 1"),
    "damaged metrics": (
        text("metrics.csv", "step,val/loss\n10,3.5\nx,2\n20\n-1,2\n\0,1\n20,abc\n9e99,1\n30,3.25\n"),
        "metrics.csv: damaged rows left out: 6",
    ),
    "damaged samples": (text("samples.jsonl", '{"step": 1, "text": "a"}\n{"step": null, "text": 1}\n{'), "samples."),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_run_is_shown_as_what_it_is(case: str, write: Write, tmp_path: Path, capsys: Capture) -> None:
    change, note = BROKEN[case]
    whole, broken = write("a/version_0", 1), write("a/version_1", 2)
    change(broken)
    run("report", [str(tmp_path / "logs"), "--table"])
    data = page_of(tmp_path / "logs", out=tmp_path / "p.html")
    runs = {row[1]: row for setting in data["settings"] for row in setting["runs"]}
    assert set(runs) == {str(whole), str(broken)}
    assert not runs[str(whole)][4]
    assert any(note in one for one in runs[str(broken)][4]), runs[str(broken)][4]


def test_odd_values_are_no_error(write: Write, tmp_path: Path) -> None:
    folder = write("a/version_0")
    odd = '{"finished": "yes", "steps": "x", "tokens": 1e400, "parameters": true, "versions": [1], "hashes": "h"}'
    (folder / "summary.json").write_text(odd)
    (folder / "metrics.csv").write_text("step,val/loss,mine\n0,nan,1\n10,inf,2\n20,3.5,\n")
    (folder / "config.yaml").write_text(BOMB)
    (tmp_path / "logs" / "b" / "version_0").mkdir(parents=True)
    start = time.process_time()
    data = page_of(tmp_path / "logs", out=tmp_path / "p.html")
    assert time.process_time() - start < 2
    assert [setting["runs"][0][2] for setting in data["settings"]] == ["unfinished, step 20", "unknown"]
    (curve,) = [c for c in data["lines"][0]["curves"] if "val/loss" in c["values"]]
    assert curve["values"]["val/loss"] == [None, None, 3.5]
    assert best_step(find_runs([str(folder)])[0]) == 20


def test_a_users_own_module_is_not_imported(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = write(config={"model": {"class_path": "mine.LitGRU", "init_args": {"config": {"width": 8}}}})
    data = page_of(folder, "--from_checkpoints", out=tmp_path / "p.html")
    assert any("no predictions: " in note for note in data["settings"][0]["runs"][0][4])


def test_ten_runs_are_one_small_page_in_seconds(write: Write, tmp_path: Path) -> None:
    names = [f"val/m{i}" for i in range(20)]
    lines = ["step," + ",".join(names)]
    lines += [f"{step}," + ",".join(f"{math.sin(step * i):.12f}" for i in range(20)) for step in range(1, 1001)]
    for i in range(10):
        (write(f"run{i}/version_0", i, 1000, width=i) / "metrics.csv").write_text("\n".join(lines) + "\n")
    start = time.process_time()
    page_of(tmp_path / "logs", out=tmp_path / "p.html")
    assert time.process_time() - start < 5
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 2e6
    assert not re.search(r"<(link|img|iframe)|\ssrc=|\bhref=|@import|url\(|fetch\(|XMLHttpRequest", page)


def test_text_cannot_leave_its_place(write: Write, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!--"
    folder = write(config={"optimizer": evil}, device=evil)
    write("b/version_0")
    (folder / "samples.jsonl").write_text(json.dumps({"step": 1, "text": evil}) + "\n")
    data = page_of(tmp_path / "logs", out=tmp_path / "p.html")
    assert evil not in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert data["samples"] == [["a/version_0", [[1, evil]]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' is no folder: give a run's"),
        (["empty"], "folder 'empty' holds no run"),
        (["logs", "--steps", "15"], "--steps '15' is no step that was evaluated: give some of 10, 20"),
        (["logs", "--steps", "10,"], "--steps '' is no step"),
        (["logs", "--out", "mine.html"], "mine.html is there already and is no page"),
        (["logs", "--tabel"], "--tabel is unknown: did you mean --table"),
        ([], "report needs a folder of runs: give one, such as logs"),
        ([""], "'' is no folder"),
        (["logs", "--model", "mine.LitGRU"], "--model mine.LitGRU is for what checkpoints predict: add --from_check"),
        (["logs", "--out"], "--out has no value"),
    ],
)
def test_a_wrong_call_is_one_sentence(
    arguments: list[str], message: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.html").write_text("<p>my notes")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run("report", arguments)


def test_a_page_is_written_again(write: Write, tmp_path: Path) -> None:
    folder = write()
    first = page_of(folder, out=tmp_path / "p.html")
    assert page_of(folder, out=tmp_path / "p.html") == first


def test_what_checkpoints_predict_is_on_a_page(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write()
    run("report", ["logs", "--table"])
    assert not Path("report.html").exists()
    run("report", ["logs", "--table", "--from_checkpoints"])
    assert "no predictions: " in Path("report.html").read_text(encoding="utf-8")


def test_the_report_imports_no_torch() -> None:
    code = "import sys, lit_gpt.commands, lit_gpt.diagnostics.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_predictions_are_those_of_an_evaluation(fit: Callable[..., Path], tmp_path: Path) -> None:
    ids = "the model reads a token and writes one\n" * 40
    (tmp_path / "val.txt").write_text(ids)
    folder = fit("--data.val_source", str(tmp_path / "val.txt"))
    (found,) = page_of(folder, "--from_checkpoints", out=tmp_path / "p.html")["predictions"]
    assert found["checkpoint"] == "best.ckpt"
    assert found["targets"] == len(ids) - 1
    places, nats = zip(*found["positions"], strict=True)
    assert places == (1, 2, 3, 4.5, 6.5, 9.5, 13.5, 16)  # windows of 16 side by side
    counts = [1, 1, 1, 2, 2, 4, 4, 1]
    loss = one(folder).metrics["val/loss"][6]
    assert sum(n * c for n, c in zip(nats, counts, strict=True)) / 16 == pytest.approx(loss, rel=2e-3)
    most = max(set(ids), key=ids[1:].count)
    name, share, probability = found["frequencies"][0]
    assert (name, share) == (most, pytest.approx(ids[1:].count(most) / (len(ids) - 1)))
    assert 0 < probability < 1
    assert sum(p for _, p in found["next"]["likeliest"]) <= 1 + 1e-4
    assert (found["next"]["after"] + found["next"]["truth"]).replace("\\n", "\n") == ids[:17]
    loaded = torch.load(path := folder / "checkpoints" / "best.ckpt", weights_only=True)
    loaded[KEY]["module"] = f"{__name__}.LitOwn"
    torch.save(loaded, path)
    arguments = (folder, "--from_checkpoints")
    (own,) = page_of(*arguments, "--model", f"{__name__}.LitOwn", out=tmp_path / "p.html")["predictions"]
    assert own == found
    (setting,) = page_of(*arguments, "--table", out=tmp_path / "p.html")["settings"]
    assert any(f"add --model {__name__}.LitOwn" in note for note in setting["runs"][0][4])


class LitOwn(LitGPT):
    """A class of the user's own."""

    def build_network(self) -> GPT:
        return GPT(self.config)
