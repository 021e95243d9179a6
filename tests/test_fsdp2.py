"""``--trainer.strategy fsdp2`` computes what ddp and one process compute, and their checkpoints are the same files."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

import lit_gpt
from datamodules.errors import UserError
from lit_gpt import ExtendedGPTConfig, GPTConfig, LitBigram, LitExtendedGPT, LitGPT, OptimizerConfig
from lit_gpt.baselines.bigram import BigramConfig
from lit_gpt.deferred_init import DeferredInit
from lit_gpt.model import GPT
from lit_gpt.strategies import FSDP2
from tests.conftest import TINY
from tests.fsdp2_cases import in_processes, train
from tests.test_process import finish, lines_logged, same_ends
from tests.test_process import lit_gpt as command

MODERN = {
    **{"norm": "rmsnorm", "rope": True, "n_kv_head": 1, "activation": "swiglu", "qk_norm": True},
    **{"attention_gate": True, "layer_scale": 0.1, "softcap": 5.0, "tied_head": False},
}
#: What a run sets. In float64, one process, ddp and fsdp2 are to agree to 1e-9.
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon": {"optimizer": {"kind": "muon", "group_lr": {"matrices": 0.02}}},
    "muon, accumulated, clipped": {
        **{"optimizer": {"kind": "muon"}, "network": MODERN, "data": {"rows": "packed", "micro_batch_size": 2}},
        **{"trainer": {"gradient_clip_val": 0.1}},
    },
    "sgd": {"optimizer": {"kind": "sgd", "lr": 0.1}},
    "untied": {"network": {"tied_head": False, "bias_head": True}},
    "accumulated and clipped": {"data": {"micro_batch_size": 2}, "trainer": {"gradient_clip_val": 0.1}},
    "clipped by value": {"trainer": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}},
    "packed": {"data": {"rows": "packed"}, "network": {"tied_head": False}},
    "padded and accumulated": {"data": {"rows": "padded", "micro_batch_size": 2}},
    "modern": {"network": MODERN},
    "checkpointed": {"network": MODERN, "module": {"activation_checkpointing": True}},
    "torch's own initial weights": {"network": {"init": "torch"}},
    "averaged": {"callbacks": [{"kind": "ema", "decay": 0.9, "use_buffers": False}]},
    "averaged over the last half": {"callbacks": [{"kind": "tail", "share": 0.5}]},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(_text(tmp_path_factory.mktemp("text") / "text.txt"))


def _text(path: Path) -> Path:
    words = ["the", "model", "reads", "a", "token", "and", "writes", "another", "one", "before", "it", "stops"]
    pick = torch.randint(len(words), (240, 9), generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("\n".join(" ".join(words[i] for i in row) + "." for row in pick), encoding="utf-8")
    return path


def job(source: str, folder: Path, strategy: str, **case: Any) -> dict[str, Any]:
    data = {"source": source, **case.get("data", {})}
    devices = 1 if strategy == "auto" else 2
    data |= {"tokenizer": "char"} if "rows" in data else {}
    return {**case, "data": data, "folder": str(folder), "strategy": strategy, "devices": devices}


def saved(folder: str | Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)
    return state


def difference(one: Any, two: Any) -> float:
    """The largest difference between two equal structures of numbers."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        return max((difference(one[key], two[key]) for key in one), default=0.0)
    if isinstance(one, list | tuple):
        assert len(one) == len(two)
        return max((difference(*pair) for pair in zip(one, two, strict=True)), default=0.0)
    if isinstance(one, torch.Tensor):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
        return float((one.double() - two.double()).abs().max()) if one.numel() else 0.0
    return abs(one - two) if isinstance(one, float) else float(one != two)


def compared(
    one: dict[str, Any], two: dict[str, Any], jobs: tuple[dict[str, Any], dict[str, Any]]
) -> tuple[float, ...]:
    """Differences of losses, of gradient norms and validation, of weights, and of the optimizers' states."""
    files = [saved(job["folder"]) for job in jobs]
    weights = [[file["state_dict"], file.get("current_model_state", {})] for file in files]
    states = [file["optimizer_states"] for file in files]
    assert type(files[0]["state_dict"]) is type(files[1]["state_dict"])
    assert files[0].keys() == files[1].keys()
    return (
        difference(one["losses"], two["losses"]),
        difference([one["norms"], one["val"]], [two["norms"], two["val"]]),
        difference(*weights),
        difference(*states),
    )


def show(name: str, strategy: str, values: tuple[float, ...]) -> None:
    kinds = ("loss", "norm and val", "weights", "state")
    print(f"{name:28} {strategy:6}", ", ".join(f"{k} {v:.1e}" for k, v in zip(kinds, values, strict=True)))


def test_sharded_equals_one_process_in_short(source: str, tmp_path: Path) -> None:
    """Muon and AdamW, accumulated and clipped; and initial weights, which a learning rate of 0 keeps."""
    case = {"optimizer": {"kind": "muon"}, "network": {"n_layer": 1, "dropout": 0.0}, "data": {"micro_batch_size": 2}}
    case["trainer"] = {"max_steps": 3, "val_check_interval": 3, "gradient_clip_val": 0.1}
    still = {**case, "optimizer": {"kind": "sgd", "lr": 0.0}}
    jobs = [job(source, tmp_path / f"{name}2", "fsdp2", **c) for name, c in (("case", case), ("still", still))]
    results = in_processes(jobs, tmp_path)
    ones = [job(source, tmp_path / f"{name}1", "auto", **c) for name, c in (("case", case), ("still", still))]
    for one, sharded, result, limit in zip(ones, jobs, results, (1e-9, 1e-15), strict=True):
        assert max(compared(train(one), result, (one, sharded))) < limit
    assert difference(saved(ones[1]["folder"])["state_dict"], saved(jobs[1]["folder"])["state_dict"]) == 0.0
    assert lit_gpt.load(jobs[0]["folder"]).generate("the ", max_new_tokens=3)


INITS = [{}, {"init": "torch"}, {"init": "zero_proj"}, {"learned_positions": True, "bias": True}, MODERN]


@pytest.mark.parametrize("options", INITS, ids=lambda options: " ".join(options)[:20] or "default")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deferred_weights_are_those_of_a_network_built_as_a_whole(options: Any, dtype: torch.dtype) -> None:
    config = GPTConfig(n_layer=2, n_head=2, n_embd=20, block_size=8, vocab_size=11, **options)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        torch.manual_seed(3)
        expected, after = GPT(config), torch.rand(1)
        torch.manual_seed(3)
        with DeferredInit() as deferred:
            net = GPT(config)
        assert all(p.is_meta for p in net.parameters())
        deferred.note_names(net)
        deferred.fill(net.to_empty(device="cpu"))
        assert torch.equal(after, torch.rand(1))  # the random numbers that follow are the same too
    finally:
        torch.set_default_dtype(default)
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, net.state_dict()[name]), name


def test_what_deferring_does_not_know_is_refused() -> None:
    with DeferredInit(), pytest.raises(UserError, match=r"by aten\.copy_.* cannot defer"):
        torch.nn.Parameter(torch.empty(2, 2)).data.copy_(torch.empty(2, 2))
    with DeferredInit() as deferred:
        net = torch.nn.Module()
        net.weight = torch.nn.Parameter(torch.nn.init.trunc_normal_(torch.empty(2, 2)))  # torch skips it there
    deferred.note_names(net)
    with pytest.raises(UserError, match="weight is not initialised on the meta device"):
        deferred.fill(net.to_empty(device="cpu"))


OWN = "NAdam cannot be sharded: use --trainer.strategy ddp instead of fsdp2"
REFUSED = {
    "members": (lambda: LitExtendedGPT(ExtendedGPTConfig(members=2)), r"an ensemble \(config.members\) cannot be"),
    "counts": (lambda: LitExtendedGPT(ExtendedGPTConfig(kneser_ney=3)), r"a table of counts \(config.kneser_ney\)"),
    "parts": (lambda: LitExtendedGPT(ExtendedGPTConfig(token_parts=True)), r"a sum of embeddings"),
    "pairs": (lambda: LitBigram(BigramConfig(kind="counts")), "dummy of LitBigram, a parameter outside of `net`,"),
    "another optimizer": (lambda: LitGPT(GPTConfig(), OptimizerConfig(kind="torch.optim.NAdam")), OWN),
    "a module of anybody's": (LightningModule, "shards the `net` of a LitLanguageModel, and LightningModule is none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sharded_is_refused_before_data_is_prepared(name: str) -> None:
    build, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        FSDP2().connect(build())


def test_the_name_is_known_to_lightning() -> None:
    assert type(Trainer(strategy="fsdp2", accelerator="cpu", devices=1, logger=False).strategy) is FSDP2


@pytest.mark.slow
def test_sharded_equals_ddp_equals_one_process(source: str, tmp_path: Path) -> None:
    """Twenty steps of each case, in float64."""
    alone = {name: job(source, tmp_path / name / "one", "auto", **case) for name, case in CASES.items()}
    shared = {(n, s): job(source, tmp_path / n / s, s, **case) for n, case in CASES.items() for s in ("ddp", "fsdp2")}
    results = dict(zip(shared, in_processes([*shared.values()], tmp_path), strict=True))
    for name, one in alone.items():
        expected = train(one)
        for strategy in ("ddp", "fsdp2"):
            values = compared(expected, results[name, strategy], (one, shared[name, strategy]))
            show(name, strategy, values)
            assert max(values) < 1e-9, (name, strategy)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_is_handed_over_between_one_process_ddp_and_fsdp2(kind: str, source: str, tmp_path: Path) -> None:
    case = {"optimizer": {"kind": kind}, "network": {"tied_head": False}, "trainer": {"val_check_interval": 5}}
    parts = {"auto": 5, "fsdp2": 9, "ddp": 13, "fsdp2 again": 17, "auto again": 20}
    jobs, before = [], None
    for name, steps in parts.items():
        trainer = {**case["trainer"], "max_steps": steps}
        jobs.append(job(source, tmp_path / name, name.split()[0], **{**case, "trainer": trainer, "resume": before}))
        before = str(tmp_path / name / "checkpoints" / "last.ckpt")
    results = [train(jobs[0]), *in_processes(jobs[1:4], tmp_path), train(jobs[4])]
    one = job(source, tmp_path / "straight", "auto", **case)
    whole = {kind: {k: v for result in results for k, v in result[kind].items()} for kind in ("losses", "norms")}
    straight = train(one)
    whole["val"] = {step: value for result in results for step, value in result["val"].items() if step % 5 == 0}
    values = compared(straight, whole, (one, jobs[4]))
    show("handed over", kind, values)
    assert max(values) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_resumed_runs_are_equal_to_the_last_bit(kind: str, source: str, tmp_path: Path) -> None:
    """With dropout, in float32, from the middle of an epoch: also with a sample and an average."""
    case = {"optimizer": {"kind": kind}, "network": {"dropout": 0.1}}
    case |= {"callbacks": [{"kind": "ema", "decay": 0.9, "use_buffers": False}, {"kind": "samples"}]}
    parts = {"straight": (20, None), "first": (9, None), "second": (20, "first")}
    jobs = []
    for name, (steps, before) in parts.items():
        resume = before and str(tmp_path / before / "checkpoints" / "last.ckpt")
        trainer = {"max_steps": steps, "val_check_interval": 5, "precision": "32-true"}
        jobs.append(job(source, tmp_path / name, "fsdp2", **case, trainer=trainer, resume=resume))
    in_processes(jobs, tmp_path)
    one, two = saved(jobs[0]["folder"]), saved(jobs[2]["folder"])
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert difference(one[key], two[key]) == 0.0, key


#: Runs that differ from a single process by more than rounding in float64: by what, and how much at most.
COARSE: dict[str, tuple[dict[str, Any], float]] = {
    "float32": ({"trainer": {"precision": "32-true"}}, 1e-5),
    "muon in float32": ({"optimizer": {"kind": "muon"}, "trainer": {"precision": "32-true"}}, 1e-3),
    "bf16-mixed": ({"trainer": {"precision": "bf16-mixed"}}, 1e-2),
    "bf16-mixed, muon": ({"optimizer": {"kind": "muon"}, "trainer": {"precision": "bf16-mixed"}}, 1e-2),
    "16-mixed, clipped": ({"trainer": {"precision": None, "gradient_clip_val": 0.1}, "half": True}, 1e-2),
    "bf16-true": ({"trainer": {"precision": "bf16-true"}}, 5e-2),
}


@pytest.mark.slow
def test_losses_of_each_precision_are_near_those_of_one_process(source: str, tmp_path: Path) -> None:
    for name, (case, limit) in COARSE.items():
        jobs = [job(source, tmp_path / name / strategy, strategy, **case) for strategy in ("ddp", "fsdp2")]
        one = train(job(source, tmp_path / name / "one", "auto", **case))
        for strategy, result in zip(("ddp", "fsdp2"), in_processes(jobs, tmp_path / name), strict=True):
            apart = difference(one["losses"], result["losses"])
            print(f"{name:28} {strategy:6} loss {apart:.1e}")
            assert apart < limit, (name, strategy)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 4])
def test_rows_that_processes_do_not_divide(count: int, source: str, tmp_path: Path) -> None:
    """20 tokens, 2 gates and 20 channels on 3 or 4 processes: some of them have no row of a weight."""
    case = {"network": {**MODERN, "n_embd": 20, "pad_vocab_to": 1}, "data": {"tokens_per_step": count * 32}}
    for kind in ("adamw", "muon"):
        case["optimizer"] = {"kind": kind}
        jobs = [job(source, tmp_path / kind / s, s, **case) for s in ("auto", "fsdp2")]
        jobs[1]["devices"] = count
        values = compared(train(jobs[0]), in_processes(jobs[1:], tmp_path / kind, count)[0], (jobs[0], jobs[1]))
        show(f"{kind} on {count}", "fsdp2", values)
        assert max(values) < 1e-9


#: Runs whose random numbers differ from one process's: fsdp2 is to equal ddp.
RANDOM: dict[str, dict[str, Any]] = {
    "dropout": {"network": {"dropout": 0.1}},
    "r-drop": {"network": {"dropout": 0.1}, "extended": {"r_drop": 1.0}},
    "sampled softmax": {"extended": {"sampled_softmax": 4}},
}


@pytest.mark.slow
def test_random_numbers_are_those_of_ddp(source: str, tmp_path: Path) -> None:
    jobs = {(name, s): job(source, tmp_path / name / s, s, **RANDOM[name]) for name in RANDOM for s in ("ddp", "fsdp2")}
    results = dict(zip(jobs, in_processes([*jobs.values()], tmp_path), strict=True))
    for name in RANDOM:
        keys = (name, "ddp"), (name, "fsdp2")
        values = compared(results[keys[0]], results[keys[1]], (jobs[keys[0]], jobs[keys[1]]))
        show(name, "fsdp2", values)
        assert max(values) < 1e-9, name


@pytest.mark.slow
def test_other_networks_and_weights_to_start_from(source: str, tmp_path: Path) -> None:
    """Fitted, tested and fitted again: a network of a user's own, and a GPT from another run's weights."""
    start = job(source, tmp_path / "start", "auto", trainer={"max_steps": 2, "precision": "32-true"})
    train(start)
    again = {"and_then": 9, "trainer": {"max_steps": 6, "val_check_interval": 3}, "data": {"test_fraction": 0.1}}
    for name, more in {
        "own": {"own": True},
        "from": {"module": {"init_from": f"{start['folder']}/checkpoints/last.ckpt"}},
    }.items():
        one, two = (job(source, tmp_path / name / s, s, **again, **more) for s in ("auto", "fsdp2"))
        values = compared(train(one), in_processes([two], tmp_path / name)[0], (one, two))
        show(name, "fsdp2", values)
        assert max(values) < 1e-9


@pytest.mark.slow
def test_no_process_saves_weights_of_which_another_has_nan(source: str, tmp_path: Path) -> None:
    spoiled = job(source, tmp_path / "run", "fsdp2", callbacks=[{"kind": "spoil"}], trainer={"max_steps": 3})
    with pytest.raises(AssertionError) as failed:
        in_processes([spoiled], tmp_path)
    assert str(failed.value).count("UserError: weights are not finite at step 3") == 2
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_a_network_is_never_whole_in_a_process(source: str, tmp_path: Path) -> None:
    """Peak memory of building a network of 300 MB on two processes, over that of a tiny one."""
    large = {
        "network": {"n_embd": 512, "n_layer": 24, "n_head": 4},
        "trainer": {"max_steps": 0, "precision": "32-true"},
    }
    small = {"trainer": {"max_steps": 0, "precision": "32-true"}}
    grown = {}
    for strategy in ("ddp", "fsdp2"):
        jobs = [job(source, tmp_path / f"{strategy}{i}", strategy, **case) for i, case in enumerate((small, large))]
        before, after = in_processes(jobs, tmp_path / strategy)
        grown[strategy] = (after["peak"] - before["peak"]) / 1e6
    whole = 4 * 24 * 12 * 512**2 / 1e6
    print(f"weights {whole:.0f} MB; peak memory grew by", {k: f"{v:.0f} MB" for k, v in grown.items()})
    assert grown["ddp"] > whole
    assert grown["fsdp2"] < 0.7 * whole


TWO = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stopped_and_killed_and_resumed_equals_straight(text: Path, tmp_path: Path) -> None:
    flags = ["fit", *TINY, *TWO, "--data.source", str(text), "--model.config.dropout", "0.2"]
    flags += ["--trainer.max_steps", "80", "--trainer.val_check_interval", "20", "--checkpoint.every_n_steps", "5"]
    flags += ["--model.optimizer.kind", "muon", "--data.micro_batch_size", "2", "--resume", "auto", "--name"]
    status, _, err = finish(command(*flags, "straight", cwd=tmp_path))
    assert status == 0, err
    killed = tmp_path / "logs" / "killed" / "version_0"
    for number, lines in ((signal.SIGTERM, 30), (signal.SIGKILL, 90)):  # of about 160
        process = command(*flags, "killed", cwd=tmp_path, start_new_session=True)
        while process.poll() is None and lines_logged(killed) < lines:
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, number)
        process.communicate()
    status, out, err = finish(command(*flags, "killed", cwd=tmp_path))
    assert status == 0, err
    assert "resuming " in out
    assert [path.name for path in killed.parent.iterdir()] == ["version_0"]
    same_ends(tmp_path / "logs" / "straight" / "version_0", killed)
