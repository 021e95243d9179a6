"""Every shipped config is sound as it stands, and `--shrink` runs it to its end."""

import json
from pathlib import Path

import pytest

from lit_gpt.cli import shrink
from lit_gpt.cli.lightning_cli import LitCLI

CONFIGS_FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(CONFIGS_FOLDER.rglob("*.yaml"))

QUICK = ("char", "gpt2_124m")  # the others in the slow tests alone


class BuildOnly(LitCLI):
    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing: the objects are all that is asked for."""


def arguments(path: Path) -> list[str]:
    """The command line of a config. Those for debugging come after another one."""
    below = ["--config", str(CONFIGS_FOLDER / "char.yaml")] if path.parent.name == "debug" else []
    return [*below, "--config", str(path)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    on_cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    cli = BuildOnly("fit", [*arguments(path), *on_cpu])
    assert cli.config.fit.name != "run", "a config names its folder below logs"
    assert cli.model.config.block_size > 0
    assert cli.datamodule is not None
    given = cli.config.fit.data.init_args
    rows, left = divmod(given.tokens_per_step, cli.model.config.block_size)
    assert not left, "fit would refuse a step that is no whole number of rows"
    assert given.micro_batch_size is None or rows % given.micro_batch_size == 0
    before = str(cli.config.fit)
    smaller = shrink.shrunk(cli.config.fit)
    assert str(cli.config.fit) == before != str(smaller)
    assert shrink.shrunk(smaller) == smaller


@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule", "ignore::UserWarning:torch.*profiler")
@pytest.mark.parametrize(
    ("path", "steps"),
    [pytest.param(path, 2, id=path.stem) for path in CONFIGS if path.stem in QUICK]
    + [pytest.param(path, 20, id=f"{path.stem}-20", marks=pytest.mark.slow) for path in CONFIGS],
)
def test_config_runs_when_shrunk(path: Path, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if steps == 2:  # the time goes into tokenizers
        monkeypatch.setattr(shrink, "MAX_BYTES", 50_000)
    Path("configs").symlink_to(CONFIGS_FOLDER)  # where memorize.yaml finds its sentence
    LitCLI("fit", [*arguments(path), "--shrink", *(["--trainer.max_steps", "2"] if steps == 2 else [])])
    (summary,) = tmp_path.glob("logs/*-shrink/version_0/summary.json")
    facts = json.loads(summary.read_text())
    assert facts["steps"] == steps
    assert facts["final"]["val/loss"] < 20
