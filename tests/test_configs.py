"""Every shipped config builds its model, data and trainer."""

from pathlib import Path

import pytest

from lit_gpt.cli.lightning_cli import LitCLI

CONFIGS_FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(CONFIGS_FOLDER.rglob("*.yaml"))


class BuildOnly(LitCLI):
    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing: the objects are all that is asked for."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    on_cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    below = ["--config", str(CONFIGS_FOLDER / "char.yaml")] if path.parent.name == "debug" else []
    cli = BuildOnly("fit", [*below, "--config", str(path), *on_cpu])
    assert cli.config.fit.name != "run", "a config names its folder below logs"
    assert cli.model.config.block_size > 0
    assert cli.datamodule is not None
    given = cli.config.fit.data.init_args
    rows, left = divmod(given.tokens_per_step, cli.model.config.block_size)
    assert not left, "fit would refuse a step that is no whole number of rows"
    assert given.micro_batch_size is None or rows % given.micro_batch_size == 0
