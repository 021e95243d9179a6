"""The benchmark commands explain themselves, and what they record becomes a page without paths of the machine."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import data, evaluation, generate, muon, recipes, report, time_to_loss, train_speed, turns
from benchmarks.meanings import MEANINGS
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.optim import OptimizerConfig

COMMANDS: tuple[str, ...] = (
    "callbacks",
    "data",
    "evaluation",
    "generate",
    "gpu",
    "memory",
    "muon",
    "overhead",
    "scaling",
)
COMMANDS += ("shakespeare_char", "shards", "startup", "time_to_loss", "train_speed")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_command_to_type(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[argparse.Action] = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda parser: options.extend(parser._actions) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(f"benchmarks.{name}").main()
    assert not [option.dest for option in options if not option.help]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["train_speed", "--rounds", "0"], "argument --rounds: it cannot be '0': give an integer, at least 1"),
        (["train_speed", "--only", "fti"], "invalid choice: 'fti' (choose from 'fit'"),
        (["train_speed", "--only", "nanogpt"], "add --nanogpt with the folder of a clone of it"),
        (["time_to_loss", "--nanogpt", "nowhere"], "'nowhere' has no model.py: give the folder of a clone of nanoGPT"),
    ],
)
def test_a_mistyped_value_is_one_sentence(
    typed: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", typed)
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"benchmarks.{typed[0]}").main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_package_that_is_missing_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    made = report.parser(None)
    report.require(made, "json")
    with pytest.raises(SystemExit, match="2"):
        report.require(made, "a_package_that_nobody_has")
    assert "a_package_that_nobody_has is missing: pip install -e '.[bench]'" in capsys.readouterr().err


def test_a_race_without_contestants_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_speed, "measure", lambda *_: {})
    monkeypatch.setattr(sys, "argv", ["train_speed", "--cases", "a", "--record"])
    with pytest.raises(SystemExit, match="case a: no contestant could be timed"):
        train_speed.main()
    assert not list(tmp_path.iterdir())


def test_the_page_explains_what_was_recorded() -> None:
    kept = json.loads(report.FIGURES.read_text())
    assert {name.split()[0] for name in kept} <= MEANINGS.keys() <= {*COMMANDS}
    batches = {name: found for name, found in kept["generate"]["figures"].items() if name != "threads"}
    assert kept["generate"]["lines"] == [generate.line(*batch) for batch in batches.items()]
    cases = kept["evaluation"]["figures"].items()
    assert set(kept["evaluation"]["lines"]) == {evaluation.line(*case) for case in cases}
    assert kept["data"]["lines"] == data.lines(kept["data"]["figures"])


def test_recorded_figures_become_a_page_and_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for name, ratio in (("one", 1.5), ("two", 2.5), ("one", 3.5)):
        monkeypatch.setattr(sys, "argv", [name, "--nanogpt", str(tmp_path / "clone"), "--record"])
        options = report.parser(None).parse_args(["--record"])
        report.finish(name, {"ratio": ratio}, [f"- ratio {ratio}"], options)
    page = Path("docs/benchmarks.md").read_text()
    assert "- ratio 3.5" in page
    assert "- ratio 2.5" in page
    assert "- ratio 1.5" not in page
    assert "`python -m benchmarks.one --nanogpt PATH`" in page
    assert str(tmp_path) not in page + Path("docs/benchmarks.json").read_text()
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {"benchmark": "one", "ratio": 3.5}


def test_the_committed_page_is_what_the_committed_figures_give() -> None:
    assert report.PAGE.read_text() == report.page(json.loads(report.FIGURES.read_text()))


def test_the_documented_counts_of_muon_are_what_the_command_prints() -> None:
    assert "\n".join(muon.table(muon.counted("gpt2"))) in Path("docs/scale.md").read_text()


def test_without_record_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report.finish("one", {"ratio": 1.5}, [], report.parser(None).parse_args([]))
    assert not list(tmp_path.iterdir())


def test_a_record_names_the_processor_that_its_figures_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert report.machine("cuda").startswith("a GPU, ")
    assert "a GPU" not in report.machine("cpu")


COUNTER = """
import time
from benchmarks.turns import Turns
turns = Turns()
while True:
    time.sleep(%s)
    turns.step_done()
"""


@pytest.mark.slow  # two processes that import Lightning
def test_contestants_take_turns_in_processes_of_their_own() -> None:
    commands = {name: [sys.executable, "-c", COUNTER % seconds] for name, seconds in (("fast", 0.01), ("slow", 0.03))}
    *_, found = turns.race(commands, rounds=2, steps=2, seconds=0.05, threads=1)
    assert [len(each) for each in found.values()] == [2, 2]
    assert all(turn.seconds >= 0.01 and turn.cpu_seconds < turn.seconds for turn in found["fast"])
    spread = turns.ratio(found["fast"], found["slow"])
    assert 1 < spread.least <= spread.median <= spread.most


@pytest.mark.slow  # with the one before
def test_a_contestant_that_fails_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    commands = {"broken": [sys.executable, "-c", "1"], "fast": [sys.executable, "-c", COUNTER % 0.01]}
    for together in (True, False):
        *_, found = turns.race(commands, rounds=1, steps=1, seconds=0, threads=1, together=together)
        assert list(found) == ["fast"]
        assert "broken failed" in capfd.readouterr().err


def test_seeds_of_the_race_differ_in_the_order_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[str] = []

    def pretend(command: list[str], folder: Path, threads: int) -> float:
        typed.extend(command)
        run = tmp_path / "logs_1" / "run" / "version_0"
        run.mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps({"final": {"val/nats_per_char": 1.5}}))
        return 1.0

    monkeypatch.setattr(time_to_loss, "seconds_of", pretend)
    recipe = recipes.recipes("rows")[0]
    time_to_loss.Ours(tmp_path, tmp_path / "text.txt", 1).fit(recipe, 3, seed=7)
    config = yaml.safe_load(Path(typed[-1]).read_text())
    assert (config["seed_everything"], config["data"]["init_args"]["seed"]) == (7, 7)


@pytest.mark.parametrize("part", ["rows", "without_counts"])
def test_every_recipe_of_the_race_is_a_config_that_runs(part: str, tmp_path: Path) -> None:
    rows = recipes.recipes(part)
    limits = [row.at_most for row in rows]
    assert limits == sorted(limits)
    for row in rows:
        config = row.config(7, {"data.source": "embedded"})
        ExtendedGPTConfig(**config["model"]["init_args"]["config"])
        OptimizerConfig(**config["model"]["init_args"]["optimizer"])
        assert config["trainer"]["max_steps"] == config["trainer"]["val_check_interval"] == 7


@pytest.mark.parametrize(
    ("seconds", "steps", "name"),
    [(10, 45, "short"), (20, 140, "middle"), (40, 300, "middle"), (60, 468, "long"), (100, 600, "long"), (4, 0, "")],
)
def test_the_recipe_with_the_most_steps_is_taken(
    seconds: float, steps: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 40 s: 240 steps of the last row, 330 of the one before it, which may have 300
    paces = {"short": 0.1, "middle": 0.1, "long": 0.111}
    race = time_to_loss.Ours(tmp_path, tmp_path / "text.txt", 1)
    monkeypatch.setattr(race, "pace", lambda recipe: time_to_loss.Pace(5, paces[recipe.name]))
    monkeypatch.setattr(race, "fit", lambda recipe, n, seed: (recipe.name, n, seed))
    found = race.within(seconds, recipes.recipes("rows"), [0, 1])
    assert found == ([(name, steps, 0), (name, steps, 1)] if steps else [])


def test_as_many_steps_as_fit_into_the_time() -> None:
    pace = time_to_loss.Pace(around=5, step=0.1)
    for budget in (10, 50, 100):
        seconds = pace.around + pace.step * pace.steps(budget)
        assert 0.93 * budget < seconds <= 0.95 * budget
    assert pace.steps(4) <= 0


def test_equal_tokens_are_demanded_on_a_cpu_and_counted_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "DEVICE", "cpu")
    ours, theirs = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 5]])
    assert generate.equal_share(ours, ours) == 1
    with pytest.raises(AssertionError, match="other tokens"):
        generate.equal_share(ours, theirs)
    monkeypatch.setattr(generate, "DEVICE", "cuda")
    assert generate.equal_share(ours, theirs) == 0.75
