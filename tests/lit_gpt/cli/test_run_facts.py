"""What the processes of a run compare before its data is known."""

import shutil
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

import datamodules
import lit_gpt
from datamodules.agreement import Fact, check_agreement
from datamodules.errors import UserError
from lit_gpt import LitGPT
from lit_gpt.callbacks import run_folder
from lit_gpt.callbacks.resume import CHECKPOINT_FIXES, facts_of_checkpoint
from lit_gpt.cli.run_facts import FIXES, options_to_compare, run_facts


def config(**changes: object) -> Namespace:
    """Options of two processes that differ where they may."""
    options = {
        "model.class_path": "lit_gpt.module.LitGPT",
        "model.init_args.optimizer.lr": 0.1,
        "data.init_args.source": "my.txt",
        "data.init_args.tokenizer": "char",
        "data.init_args.micro_batch_size": 4,
        "trainer.max_steps": 10,
        "trainer.logger.init_args.save_dir": "logs",
        "logs_dir": "logs",
        "ckpt_path": None,
    }
    result = Namespace()
    for name, value in (options | changes).items():
        result[name] = value
    return result


def difference(one: dict[str, Fact], other: dict[str, Fact], fixes: dict[str, str]) -> str | None:
    try:
        check_agreement({}, fixes, lambda _: [("a", one), ("b", other)])
    except UserError as error:
        return str(error)
    return None


def test_options_that_change_a_step_must_be_equal_and_paths_may_differ() -> None:
    assert options_to_compare(config()) == {
        "model.class_path": '"lit_gpt.module.LitGPT"',
        "model.optimizer.lr": "0.1",
        "data.micro_batch_size": "4",
        "trainer.max_steps": "10",
    }
    own = {"data.init_args.source": "/mnt/my.txt", "data.init_args.tokenizer": "t.json", "ckpt_path": "last.ckpt"}
    same = run_facts(config(), [LitGPT])
    assert difference(same, run_facts(config(**own), [LitGPT]), FIXES) is None
    assert difference(same, run_facts(config(**{"trainer.max_steps": 11}), [LitGPT]), FIXES) == (
        "the processes of this run do not have the same option --trainer.max_steps: it is 11 in process 1 on b and 10 "
        "in process 0 on a: start all processes with the same command line and the same files."
    )


def test_a_change_of_the_code_without_a_commit_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_facts(config(), [LitGPT])
    for package in (lit_gpt, datamodules):
        copy = tmp_path / package.__name__
        shutil.copytree(Path(package.__file__ or "").parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(package, "__file__", str(copy / "__init__.py"))
    assert difference(before, run_facts(config(), [LitGPT]), FIXES) is None  # the same code, with no commit
    with (tmp_path / "datamodules" / "batches.py").open("a") as file:
        file.write("# changed\n")
    sentence = difference(before, run_facts(config(), [LitGPT]), FIXES) or ""
    assert sentence.startswith(
        "the processes of this run do not have the same version of lit_gpt: it is 0.1.0 (commit "
    )
    assert sentence.endswith("on a: install the same version everywhere, or check out the same commit.")
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert "version of torch: it is 2.9.1 in" in str(difference(before, run_facts(config(), [LitGPT]), FIXES))


def test_checkpoints_differ_by_their_steps_or_else_by_their_content(tmp_path: Path) -> None:
    for name, number, weight in (("one", 4, 1.0), ("step", 2, 1.0), ("weights", 4, 2.0)):
        torch.save({"global_step": number, "state_dict": {"w": torch.tensor(weight)}}, tmp_path / name)
    shutil.copy(tmp_path / "one", tmp_path / "copy")
    one, copy, step, weights = (facts_of_checkpoint(tmp_path / name) for name in ("one", "copy", "step", "weights"))
    assert difference(one, copy, CHECKPOINT_FIXES) is None
    assert f"step to resume from: it is 2, of {tmp_path}/step, in" in str(difference(one, step, CHECKPOINT_FIXES))
    assert f"checkpoint to resume from: it is {tmp_path}/weights (step 4" in str(
        difference(one, weights, CHECKPOINT_FIXES)
    )
    nothing = difference(facts_of_checkpoint(None), one, CHECKPOINT_FIXES)
    assert f"it is 4, of {tmp_path}/one, in process 1 on b and none (a new run) in process 0 on a: let" in str(nothing)


@pytest.mark.parametrize(
    ("variables", "is_first"),
    [
        ({"NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1"}, False),  # by hand, one process on each machine
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),  # by hand, several
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),  # torchrun
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_the_first_process_is_known_before_the_trainer_is_built(
    variables: dict[str, str], is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run_folder.rank_zero_only, "rank", 0)
    run_folder.set_rank()
    assert (run_folder.rank() == 0) == is_first
