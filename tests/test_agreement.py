"""Two machines without a common disk: they go on from one checkpoint, and what differs is refused by name."""

import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_gpt import LitGPT, __main__, sending
from lit_gpt.cli import run_facts
from tests.conftest import TINY
from tests.forking import assert_equal, forked

Typed = Callable[..., int]
LAST = Path("logs", "run", "version_0", "checkpoints", "last.ckpt")
TWO = [
    *("--trainer.num_nodes", "2", "--trainer.strategy", "ddp", "--trainer.logger", "false", "--trainer.max_steps", "4"),
    *("--model.config.dropout", "0.2", "--model.optimizer.kind", "muon", "--data.micro_batch_size", "2"),
    *("--checkpoint.every_n_steps", "2", "--trainer.val_check_interval", "2", "--data.cache_dir", "cache"),
]


@pytest.fixture
def typed(text: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Runs ``python -m lit_gpt fit`` in this process and returns its exit status."""
    monkeypatch.setattr(__main__, "SECONDS_TO_BE_SAID", 0.1)
    monkeypatch.setattr(sending, "PIECE", 10_000)  # so that a small file has several

    def call(*flags: str) -> int:
        sys.argv = ["lit_gpt", "fit", *TINY, *TWO, "--data.source", str(text), *flags]
        try:
            __main__.main()
        except SystemExit as left:
            return int(left.code or 0)
        return 0

    return call


def go_on(typed: Typed, strategy: str) -> int:
    """A run of 4 steps; one that ends after step 2; and that one again with --resume auto."""
    tempfile.tempdir = str(Path.cwd())
    learn, flags = LitGPT.training_step, ["--trainer.strategy", strategy]
    assert typed("--name", "straight", *flags) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LitGPT, "training_step", lambda net, *given: learn(net, *given) if net.global_step < 2 else 1 // 0
        )
        with pytest.raises(ZeroDivisionError):
            typed("--resume", "auto", *flags)
    return typed("--resume", "auto", *flags)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_run_goes_on_where_only_one_machine_has_its_checkpoint(strategy: str, typed: Typed, tmp_path: Path) -> None:
    (status, first), (other, second) = forked(lambda rank: go_on(typed, strategy), tmp_path)
    assert (status, other) == (0, 0), first + second
    assert "resuming logs/run/version_0\n" in first
    runs = (
        tmp_path / "rank0" / "logs" / name / "version_0" / "checkpoints" / "last.ckpt" for name in ("run", "straight")
    )
    resumed, straight = (torch.load(path, weights_only=True) for path in runs)
    assert resumed["global_step"] == 4
    for part in ("state_dict", "optimizer_states", "loops", "lr_schedulers"):
        assert_equal(resumed[part], straight[part])
    assert {path.name for path in (tmp_path / "rank1").iterdir()} == {"cache", "output"}


Patch = pytest.MonkeyPatch
#: What differs in process 1 (its flags, after an act), what the sentence says of both processes, and its advice.
DIFFERENCES: dict[str, tuple[Callable[[Patch], Any], list[str], str, str, str]] = {
    "version of lit_gpt": (
        lambda patch: patch.setattr(run_facts, "_sources", lambda: "0123abcd"),
        [],
        r"0\.1\.0 \(commit \S+, SHA-256 of its files 0123abcd\)",
        r"0\.1\.0 \(commit \S+, SHA-256 of its files [0-9a-f]{8}\)",
        "install the same version everywhere, or check out the same commit",
    ),
    "version of torch": (
        lambda patch: patch.setattr(torch, "__version__", "2.9.1"),
        [],
        r"2\.9\.1",
        r"\S+",
        "install the same version everywhere",
    ),
    "code of own_net": (
        lambda _: Path("own_net.py").write_text(OWN + "# changed\n"),
        ["--model", "own_net.Own"],
        r"SHA-256 \w{8} of \S+/rank1/own_net\.py",
        r"SHA-256 \w{8} of \S+/rank0/own_net\.py",
        "start all processes with the same command line and the same files",
    ),
    "option --model.optimizer.lr": (
        lambda _: None,
        ["--model.optimizer.lr", "0.5"],
        r"0\.5",
        r"[\d.e-]+",
        "start all processes with the same command line and the same files",
    ),
    "option --trainer.strategy": (
        lambda _: None,
        ["--trainer.strategy", "fsdp2"],
        '"fsdp2"',
        '"ddp"',
        "start all processes with the same command line and the same files",
    ),
    "text": (
        lambda _: Path("other.txt").write_text("other words " * 50),
        ["--data.source", "other.txt"],
        r"540 bytes of train, 60 bytes of val \(SHA-256 \w{8}\)",
        r"[\d,]+ bytes of train, [\d,]+ bytes of val \(SHA-256 \w{8}\)",
        "give all processes the same files and the same splits .*",
    ),
    "tokenizer": (
        lambda _: None,
        ["--data.tokenizer", "char"],
        r"one of \d\d tokens \(SHA-256 \w{8}\)",
        r"one of \d+ tokens \(SHA-256 \w{8}\)",
        "training may give another tokenizer each time, so share one --data.cache_dir, or give a file .*",
    ),
    "step to resume from": (
        lambda _: None,
        ["--ckpt_path", "step.ckpt"],
        r"2, of step\.ckpt,",
        r"4, of \S+/rank0/\S+/last\.ckpt,",
        "let the machine with the right checkpoint have process 0, which sends it to the others, and move the .*",
    ),
    "checkpoint to resume from": (
        lambda _: None,
        ["--ckpt_path", "other.ckpt"],
        r"other\.ckpt \(step 4, checksum \w{8}\)",
        r"\S+/last\.ckpt \(step 4, checksum \w{8}\)",
        "let the machine with the right checkpoint have process 0, .*",
    ),
}


def differ_in_strategy(typed: Typed, rank: int) -> int:
    return typed("--trainer.strategy", ("ddp", "fsdp2")[rank])


def test_a_process_of_another_strategy_is_refused(typed: Typed, tmp_path: Path) -> None:
    results = forked(lambda rank: differ_in_strategy(typed, rank), tmp_path, "host{}".format)
    assert [status for status, _ in results] == [2, 2]
    wanted = r'^lit_gpt: .* --trainer\.strategy: it is "fsdp2" in process 1 .* and "ddp" in process 0'
    assert re.search(wanted, results[0][1], re.MULTILINE)


OWN = "from lit_gpt import LitGPT\n\n\nclass Own(LitGPT):\n    pass\n"
BYTES = ["--data", "BPEDataModule", "--data.tokenizer", "byte"]


def differ(typed: Typed, rank: int) -> int:
    """A run, and then one attempt to resume it for each of `DIFFERENCES`. Prints each status."""
    sys.path.insert(0, str(Path.cwd()))
    Path("own_net.py").write_text(OWN)
    own = ["--model", "own_net.Own"]
    assert typed(*BYTES, *own, "--checkpoint.keep_every_n_steps", "2") == 0
    saved = Path.cwd().parent / "rank0" / LAST
    if rank == 1:
        shutil.copy(saved.with_name("step_000002.ckpt"), "step.ckpt")
        changed = torch.load(saved, weights_only=True)
        next(iter(changed["state_dict"].values())).neg_()
        torch.save(changed, "other.ckpt")
    for name, (act, flags, *_) in DIFFERENCES.items():
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                act(patch)
            status = typed(*BYTES, *own, "--ckpt_path", str(saved), *(flags if rank == 1 else []))
        print(f"\n{name}: {status}", flush=True)
        Path("own_net.py").write_text(OWN)
    return 0


@pytest.mark.slow  # 7 CPU-seconds; each sentence is also tested without processes
def test_each_difference_is_refused_in_a_sentence_that_names_it(typed: Typed, tmp_path: Path) -> None:
    (status, first), (other, second) = forked(lambda rank: differ(typed, rank), tmp_path, "host{}".format)
    assert (status, other) == (0, 0), first + second
    for name, (_, _, here, there, advice) in DIFFERENCES.items():
        assert f"\n{name}: 2\n" in first, name
        assert f"\n{name}: 2\n" in second, name
        wanted = (
            f"lit_gpt: the processes of this run do not have the same {re.escape(name)}: it is {here} in process 1 "
        )
        wanted += f"on host1 and {there} in process 0 on host0: {advice}\\.\n"
        assert len(re.findall(wanted, first)) == 1, (name, first)
    assert "\nlit_gpt: " not in second
