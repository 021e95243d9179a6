"""The files for SLURM start `fit` as SLURM's variables say, and add what the person types."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from lit_gpt.cli import early
from lit_gpt.cli.arguments import pairs

FOLDER = Path(__file__).parents[1] / "configs" / "slurm"


@pytest.mark.parametrize(("name", "nodes"), [("one_node", "1"), ("nodes", "4")])
def test_a_file_for_slurm_starts_fit_with_its_numbers_and_the_options_that_are_typed(
    name: str, nodes: str, tmp_path: Path
) -> None:
    program = tmp_path / "srun"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    numbers = {"SLURM_NNODES": nodes, "SLURM_NTASKS_PER_NODE": "8", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(FOLDER / f"{name}.sbatch"), "--config", "configs/char.yaml", "--data.source", "my text.txt"]
    done = subprocess.run(command, env=numbers, capture_output=True, text=True, check=True)
    option, *python, verb = done.stdout.splitlines()[:5]
    assert (option, python, verb) == ("--kill-on-bad-exit=1", ["python", "-m", "lit_gpt"], "fit")
    typed = dict(pairs(done.stdout.splitlines()[5:]))
    assert typed["--data.source"] == "my text.txt"
    assert (typed["--trainer.num_nodes"], typed["--trainer.devices"], typed["--resume"]) == (nodes, "8", "auto")
    early.check("fit", done.stdout.splitlines()[5:])
    asked = dict(re.findall(r"^#SBATCH (--[a-z-]+)=?(.*)$", (FOLDER / f"{name}.sbatch").read_text(), re.MULTILINE))
    assert (asked["--ntasks-per-node"], asked["--signal"]) == ("8", "SIGUSR1@90")
    assert "--requeue" in asked  # without it SLURM refuses to requeue
    assert (asked["--nodes"] == "1") == (nodes == "1")
