"""What only whole processes show: exit status, start-up, signals, kills, two ranks."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gpt.__main__ import TRAINER_VERBS, usage
from lit_gpt.cli.lightning_cli import run
from lit_gpt.language_model import LitLanguageModel
from tests.conftest import TINY


def lit_gpt(*arguments: str, cwd: Path, **options: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "lit_gpt", *arguments]
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_help_names_every_verb_and_imports_nothing_heavy(tmp_path: Path) -> None:
    started = time.monotonic()
    status, out, _ = finish(lit_gpt("--help", cwd=tmp_path))
    assert status == 0
    assert all(f"\n  {verb} " in out for verb in TRAINER_VERBS)
    assert time.monotonic() - started < 3  # a busy machine; 0.05 s on an idle one
    assert out == usage()


def test_the_help_of_fit_says_where_the_options_of_network_and_data_are(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, found in (
        (("--help",), "--model.help LitGPT (or LitExtendedGPT, LitBigram, LitBERT)."),
        (("--model.help", "LitGPT"), "Normalise queries and keys"),
        (("--data.help", "CharDataModule"), "--data.tokens_per_step"),
    ):
        with pytest.raises(SystemExit) as left:
            run("fit", [*arguments])
        assert left.value.code == 0
        assert found in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "typed", ["fitt", "fit --model.config.n_layr 1", pytest.param("validate", marks=pytest.mark.slow)]
)
def test_a_mistake_exits_with_2_and_no_traceback(typed: str, tmp_path: Path) -> None:
    status, _, err = finish(lit_gpt(*typed.split(), cwd=tmp_path))
    assert status == 2
    assert err.startswith("lit_gpt: ")
    assert "Traceback" not in err
    assert err.count("\n") == 1


STEPS = """
import resource, sys
from lit_gpt.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(10):
    step = [b"x" * (30 << 20) for _ in range(3)]
    del step
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_a_step_frees_serves_the_next() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", STEPS, kind], capture_output=True, check=True, text=True).stdout)
        for kind in ("kept", "default")
    ]
    assert faults[0] < faults[1] / 3


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.mark.slow
def test_processes_do_not_validate_each_by_its_own_clock(tmp_path: Path, text: Path) -> None:
    clock = ["--trainer.val_check_interval", "00:00:00:01"]
    status, _, err = finish(lit_gpt("fit", *TINY, *TWO, *clock, "--data.source", str(text), cwd=tmp_path))
    assert status == 2
    assert "val_check_interval by the clock may fall inside a step" in err


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_saves_and_leaves_with_its_status(tmp_path: Path, text: Path) -> None:
    number = signal.SIGTERM
    flags = [*TINY, *TWO, "--data.source", str(text), "--trainer.max_steps", "100000"]
    flags += ["--trainer.val_check_interval", "50000", "--checkpoint.every_n_steps", "5"]
    process = lit_gpt("fit", *flags, cwd=tmp_path)
    folder = tmp_path / "logs" / "run" / "version_0"
    wait_for(folder / "checkpoints" / "last.ckpt", process)
    process.send_signal(number)
    status, out, err = finish(process)
    assert status == 128 + number, err
    assert out.endswith("to resume: the same command with --resume auto\n")
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert f"saved step {stored['global_step']} " in out
    assert not json.loads((folder / "summary.json").read_text())["finished"]


RESUMED = [
    *("--trainer.max_steps", "600", "--trainer.val_check_interval", "100", "--checkpoint.every_n_steps", "20"),
    *("--model.config.dropout", "0.2", "--model.optimizer.kind", "muon", "--data.micro_batch_size", "4"),
]


BERT = ["--model", "LitBERT", "--data", "BertDataModule", "--data.vocab_size", "100"]
#: Dropout is drawn by each process.
BERT_WITHOUT_DROPOUT = [*BERT, "--model.config.dropout", "0"]


@pytest.mark.parametrize(  # a resume inside of one process is quick for both: tests/lit_gpt/test_language_model.py
    "network", [pytest.param([], id="gpt"), pytest.param(BERT, id="bert", marks=pytest.mark.slow)]
)
def test_killed_and_resumed_equals_straight(fit: Callable[..., Path], tmp_path: Path, network: list[str]) -> None:
    flags = [*network, *RESUMED, "--trainer.max_steps", "12", "--trainer.val_check_interval", "4"]
    flags += ["--checkpoint.every_n_steps", "2", "--resume", "auto", "--name"]
    fit(*flags, "straight", runs="straight")
    child = os.fork()
    if not child:
        learn = LitLanguageModel.training_step
        LitLanguageModel.training_step = lambda self, *given: (  # type: ignore[method-assign]
            os.kill(os.getpid(), signal.SIGKILL) if self.global_step == 7 else learn(self, *given)
        )
        try:
            fit(*flags, "killed", runs="killed")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    time.sleep(1)  # TensorBoard orders event files by the second in which they were made
    killed = fit(*flags, "killed", runs="killed")
    assert killed.name == "version_0"
    same_ends(tmp_path / "logs" / "straight" / "version_0", killed)


@pytest.mark.slow
def test_killed_three_times_and_resumed_equals_straight(tmp_path: Path, text: Path) -> None:
    flags = [*TINY, "--data.source", str(text), *RESUMED]
    assert finish(lit_gpt("fit", *flags, "--name", "straight", cwd=tmp_path))[0] == 0
    killed = tmp_path / "logs" / "killed" / "version_0"
    for lines in (150, 450, 750):  # of 1,200: a late kill must not find the run at its end
        process = lit_gpt("fit", *flags, "--name", "killed", "--resume", "auto", cwd=tmp_path)
        while process.poll() is None and lines_logged(killed) < lines:
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    status, out, err = finish(lit_gpt("fit", *flags, "--name", "killed", "--resume", "auto", cwd=tmp_path))
    assert status == 0, err
    assert "resuming " in out
    assert [path.name for path in killed.parent.iterdir()] == ["version_0"]
    same_ends(tmp_path / "logs" / "straight" / "version_0", killed)


def lines_logged(folder: Path) -> int:
    path = folder / "metrics.csv"
    return path.read_text().count("\n") if path.is_file() else 0


def same_ends(straight: Path, resumed: Path) -> None:
    one, two = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (straight, resumed))
    for key in one["state_dict"]:
        assert torch.equal(one["state_dict"][key], two["state_dict"][key]), key
    moments, others = (c["optimizer_states"][0]["state"] for c in (one, two))
    for index, state in moments.items():
        for key, value in state.items():
            assert torch.equal(value, others[index][key]), (index, key)
    assert logged(straight) == logged(resumed)
    assert curve(straight) == curve(resumed)


def curve(folder: Path) -> list[tuple[int, float]]:
    """The training loss as TensorBoard shows it."""
    events = EventAccumulator(str(folder / "train")).Reload()
    return [(event.step, event.value) for event in events.Scalars("metrics/loss")]


def logged(folder: Path) -> list[list[str]]:
    """metrics.csv without what depends on the clock."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    timed = ("tokens_per_second", "step_seconds", "data_wait", "peak_memory")
    keep = [i for i, name in enumerate(lines[0]) if not any(word in name for word in timed)]
    return [[line[i] for i in keep] for line in lines]


def fit_on(flags: list[str], more: list[str], folder: Path) -> None:
    """With more flags in processes of their own, which advise nothing; else in this one, which is faster."""
    if more:
        status, _, err = finish(lit_gpt("fit", *flags, *more, cwd=folder))
        assert status == 0, err
        assert "recommended" not in err
    else:
        with contextlib.chdir(folder):
            run("fit", [*flags, "--trainer.devices", "1"])


ONCE = [("one", "20", []), ("mixed", "7", TWO), ("mixed", "20", [])]
BOTH_WAYS = [*ONCE[:1], ("two", "20", TWO), *ONCE[1:2], ("mixed", "13", []), ("mixed", "20", TWO)]


@pytest.mark.parametrize(
    ("parts", "stops"),
    [(ONCE, {"7"}), (BOTH_WAYS, {"7", "13"})],
    ids=["once", "both"],
)
@pytest.mark.slow  # quick ones: forked processes in test_language_model, test_fsdp2 and test_agreement
def test_two_processes_equal_one_and_hand_over(
    parts: list[tuple[str, str, list[str]]], stops: set[str], tmp_path: Path, text: Path
) -> None:
    """A run on one process; on two; and one that goes from two processes to one (twice the accumulation) and back."""
    flags = [*TINY, "--data.source", str(text), "--trainer.val_check_interval", "10", "--data.micro_batch_size", "4"]
    flags += ["--model.optimizer.schedule", "constant", "--trainer.max_steps"]
    for name, steps, more in parts:
        folder = tmp_path / "logs" / name / "version_0"
        resume = ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt")] if folder.exists() else []
        fit_on([*flags, steps, "--name", name, *resume], more, tmp_path)
    names = {name for name, *_ in parts}
    found = {name: losses(tmp_path / "logs" / name / "version_0") for name in names}
    for name in names - {"one"}:
        ended = {key.split()[0] for key in found[name].keys() - found["one"].keys()}
        assert ended == (stops if name == "mixed" else set())  # the last step of a part is validated
        for key, value in found["one"].items():
            assert value == pytest.approx(found[name][key], abs=1e-5), key
    for name in names:
        summary = json.loads((tmp_path / "logs" / name / "version_0" / "summary.json").read_text())
        assert summary["tokens"] == 20 * 128, name


@pytest.mark.slow
def test_two_processes_count_the_pairs_that_one_counts(tmp_path: Path, text: Path) -> None:
    flags = ["--model", "LitBigram", "--model.config.kind", "counts", "--data.source", str(text), "--name"]
    flags = ["--data.tokens_per_step", "128", "--trainer.accelerator", "cpu", "--trainer.max_steps", "5", *flags]
    tables = []
    for name, more in (("one", []), ("two", TWO)):
        fit_on([*flags, name], more, tmp_path)
        saved = torch.load(tmp_path / "logs" / name / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
        tables.append(saved["state_dict"]["net.counts"])
    assert tables[0].sum() == int(0.9 * len(text.read_text())) - 1  # every pair of the training text, once
    assert torch.equal(*tables)


MEMBERS = [
    *("--model", "LitExtendedGPT", "--model.config.members", "2", "--model.activation_checkpointing", "true"),
    *("--trainer.gradient_clip_val", "0.1", "--model.optimizer.kind", "muon"),
    # Where hardware has bfloat16, Muon rounds to it, and turns gradients apart by 1e-8 into losses apart by 1e-5.
    *("--trainer.precision", "64-true"),
]


TITLES = ["--data", "HeadlinesDataModule", "--data.tokenizer", "char", "--data.rows"]
ON_DOCUMENTS = {
    "padded": [*TITLES, "padded"],
    "packed": [*TITLES, "packed"],
    "members": [*TITLES, "packed", *MEMBERS],
    "pairs": [*BERT_WITHOUT_DROPOUT, "--data.micro_batch_size", "2"],
    "masked": [*BERT_WITHOUT_DROPOUT, "--data.rows", "packed", "--model.config.next_sentence", "false"],
}


@pytest.mark.slow
@pytest.mark.parametrize("options", ON_DOCUMENTS.values(), ids=ON_DOCUMENTS)
def test_two_processes_equal_one_on_documents(tmp_path: Path, text: Path, options: list[str]) -> None:
    flags = [*TINY, "--data.source", str(text), "--trainer.max_steps", "20", "--trainer.val_check_interval", "10"]
    flags += options
    for name, more in (("one", []), ("two", TWO)):
        status, _, err = finish(lit_gpt("fit", *flags, "--name", name, *more, cwd=tmp_path))
        assert status == 0, err
    one, two = (losses(tmp_path / "logs" / name / "version_0") for name in ("one", "two"))
    assert one == pytest.approx(two, rel=2e-6, abs=1e-5)  # a perplexity is large
    keys = [keys_of(tmp_path / "logs" / name / "version_0") for name in ("one", "two")]
    assert keys[0] == keys[1]


@pytest.mark.slow
def test_compiled_checkpoints_have_the_same_keys(tmp_path: Path, text: Path) -> None:
    for name, more in (("eager", []), ("compiled", ["--model.compile", "true"])):
        flags = [*TINY, "--data.source", str(text), "--name", name, *more]
        status, _, err = finish(lit_gpt("fit", *flags, cwd=tmp_path))
        assert status == 0, err
    eager, compiled = (tmp_path / "logs" / name / "version_0" for name in ("eager", "compiled"))
    assert keys_of(eager) == keys_of(compiled)
    assert losses(eager) == pytest.approx(losses(compiled), abs=1e-3)


def keys_of(folder: Path) -> list[str]:
    return list(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])


def losses(folder: Path) -> dict[str, float]:
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    names = lines[0]
    wanted = [n for n in names if n.startswith(("train/loss", "val/", "train_eval/", "grad_norm"))]
    return {f"{row[0]} {n}": float(row[names.index(n)]) for row in lines[1:] for n in wanted if row[names.index(n)]}


@pytest.mark.slow
def test_torchrun_equals_one_process(tmp_path: Path, text: Path) -> None:
    flags = ["fit", *TINY, "--data.source", str(text)]
    assert finish(lit_gpt(*flags, "--name", "one", cwd=tmp_path))[0] == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lit_gpt"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*command, *flags, "--name", "two", *TWO], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    one, two = (losses(tmp_path / "logs" / name / "version_0") for name in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-5)
