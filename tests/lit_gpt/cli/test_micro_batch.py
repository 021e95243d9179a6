"""`--data.micro_batch_size auto`, and what a run says that is out of memory; the memory is an injected error."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from datamodules import CharDataModule
from datamodules.errors import UserError
from lit_gpt import LitGPT, checkpoint
from lit_gpt.__main__ import main
from lit_gpt.bounds import is_out_of_memory
from lit_gpt.callbacks.run_folder import RunFolder
from lit_gpt.cli import micro_batch
from lit_gpt.cli.trial_steps import largest, sizes
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.model import GPT, GPTConfig
from tests.conftest import TINY

Fit = Callable[..., Path]
AUTO = ("--data.micro_batch_size", "auto")
QUICK = ("--samples.max_new_tokens", "0", "--model.config.dropout", "0.1")


TORCH_SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.02 GiB is "
    "free. Including non-PyTorch memory, this process has 138.78 GiB memory in use. Of the allocated memory 130.00 GiB "
    "is allocated by PyTorch, and 1.10 GiB is reserved by PyTorch but unallocated."
)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Limits the rows of a micro-batch, from a step of the run on."""
    objective = LitLanguageModel.objective

    def limit(rows: int, from_step: int = 0) -> None:
        def limited(self: LitLanguageModel, batch: dict[str, torch.Tensor]) -> Any:
            if len(batch["input_ids"]) > rows and self.global_step >= from_step:
                raise torch.OutOfMemoryError(TORCH_SAYS)
            return objective(self, batch)

        monkeypatch.setattr(LitLanguageModel, "objective", limited)

    return limit


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / "checkpoints" / "last.ckpt")["state_dict"]


def test_auto_finds_what_fits_and_gives_the_bits_of_a_run_with_that_number(
    fit: Fit, memory: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fit(*QUICK, "--data.micro_batch_size", "4")
    memory(rows=5)
    found = fit(*QUICK, *AUTO)
    assert "micro-batches of 4 rows (--data.micro_batch_size auto)" in capsys.readouterr().out
    one, other = weights(plain), weights(found)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert yaml.safe_load((found / "config.yaml").read_text())["data"]["init_args"]["micro_batch_size"] == 4
    stored = checkpoint.read(found / "checkpoints" / "last.ckpt")[checkpoint.KEY]["data"]["init_args"]
    assert stored["micro_batch_size"] == 4
    memory(rows=100)  # a resume would find 8
    assert fit(*QUICK, *AUTO, "--ckpt_path", str(found), "--trainer.max_steps", "7") == found
    assert "micro-batches of 4 rows" in capsys.readouterr().out


@pytest.mark.slow  # loads torch's compiler
@pytest.mark.filterwarnings("ignore:::torch")
def test_a_compiled_run_has_code_for_its_own_number_of_rows_and_not_for_any(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int | None] = []  # of each code in the order of compilation; None: any number of rows

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        is_for_any = any(isinstance(x, torch.SymInt) for x in inputs)
        rows.append(None if is_for_any else next(x for x in inputs if x.dim() == 3).size(0))  # of (B, T, C)
        return graph.forward

    def compile_block(block: torch.nn.Module) -> None:
        block._compiled_call_impl = torch.compile(block._call_impl, backend=backend)

    objective = LitLanguageModel.objective

    def limited(self: LitLanguageModel, batch: dict[str, torch.Tensor]) -> Any:
        result = objective(self, batch)  # memory runs out after the blocks were compiled
        if len(batch["input_ids"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result

    monkeypatch.setattr(torch.nn.Module, "compile", compile_block)
    monkeypatch.setattr(LitLanguageModel, "objective", limited)
    short = ("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
    fit(*QUICK, *AUTO, *short, "--model.compile", "true")
    assert rows[0] == 8
    assert None not in rows  # the trials share no code
    assert rows[-1] == 4


@pytest.mark.slow  # two starts of a run
def test_auto_refuses_what_never_fits_and_other_errors_are_not_hidden(
    fit: Fit, memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(rows=0)
    with pytest.raises(UserError, match=r"not even one row fits into the memory: lower --model\.config\.block_size"):
        fit(*QUICK, *AUTO)

    def broken(*_: Any) -> None:
        raise RuntimeError("another")

    monkeypatch.setattr(LitLanguageModel, "objective", broken)
    with pytest.raises(RuntimeError, match="another"):
        fit(*QUICK, *AUTO)


def test_a_run_out_of_memory_says_what_to_type_and_keeps_its_last_checkpoint(
    fit: Fit,
    memory: Callable[..., None],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory(rows=4, from_step=4)
    flags = [*TINY, "--data.source", str(text), *QUICK]
    monkeypatch.setattr("sys.argv", ["lit_gpt", "fit", *flags])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # of the process: it is put back after the test
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    folder = tmp_path / "logs" / "run" / "version_0"
    captured = capsys.readouterr()
    assert "saved step" in captured.out
    assert "the same command" not in captured.out  # it would fail again
    assert captured.err.splitlines()[-1] == (
        "lit_gpt: there is not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB): add "
        "--data.micro_batch_size 4, which changes no result, and "
        "resume from the last checkpoint with --ckpt_path logs/run/version_0."
    )
    before = checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert before >= 3
    assert fit(*QUICK, "--ckpt_path", str(folder), "--data.micro_batch_size", "4") == folder
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] == 6


class Counted(GPT):
    """A GPT that knows how many of them there are, copies included."""

    alive: ClassVar[WeakSet[GPT]] = WeakSet()

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.alive.add(self)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.alive.add(self)


class OfCounted(LitGPT):
    def build_network(self) -> GPT:
        return Counted(self.config)


def found(text: Path, rows: int = 8, compile: bool = False, **options: Any) -> int:
    """What fits, of a tiny network and steps of some rows."""
    module = OfCounted(GPTConfig(block_size=16, n_layer=1, n_head=1, n_embd=8), compile=compile)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", **quiet, **options)
    return largest(module, CharDataModule(str(text), tokens_per_step=16 * rows), trainer)


def test_an_average_of_the_weights_takes_its_memory_in_the_trials_too(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = LitLanguageModel.objective

    def limited(self: LitLanguageModel, batch: dict[str, torch.Tensor]) -> Any:
        if len(Counted.alive) * len(batch["input_ids"]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return objective(self, batch)

    monkeypatch.setattr(LitLanguageModel, "objective", limited)
    assert found(text) == 8
    gc.collect()
    assert found(text, callbacks=[EMAWeightAveraging(use_buffers=False)]) == 4


def test_rows_that_processes_cannot_share_are_no_matter_of_memory(text: Path) -> None:
    with pytest.raises(UserError, match=r"a step of 3 rows .* cannot be divided among 2 process\(es\): set tokens"):
        found(text, rows=3, devices=2)


def test_steps_of_a_sharded_network_are_not_tried(fit: Fit) -> None:
    with pytest.raises(UserError, match=r"fsdp2 shards them: give a number\."):
        fit(*QUICK, *AUTO, "--trainer.strategy", "fsdp2", "--trainer.devices", "2")


@pytest.mark.parametrize(
    ("rows", "options", "typed"),
    [
        (4, {"activation_checkpointing": False}, "add --data.micro_batch_size 2, which"),
        (1, {"activation_checkpointing": False}, "add --model.activation_checkpointing true, which"),
        (1, {"activation_checkpointing": True}, "so lower --model.config.block_size or"),
        (1, {}, "so lower --model.config.block_size or"),  # a module of another kind
    ],
)
def test_what_to_type_is_no_option_that_is_set_or_unknown(
    rows: int, options: dict[str, bool], typed: str, tmp_path: Path
) -> None:
    folder = SimpleNamespace(began=True, folder=tmp_path)
    data = SimpleNamespace(step_size=SimpleNamespace(micro=rows, accumulation=8))
    config = SimpleNamespace(fit=SimpleNamespace(model=SimpleNamespace(init_args=options)))
    known = {"folder_callback": folder, "datamodule": data, "config": config}
    for rank, end in ((0, "start a new run"), (1, "go on with --resume auto")):
        said = str(micro_batch.fix(SimpleNamespace(**known, trainer=SimpleNamespace(global_rank=rank))))
        assert typed in said
        assert said.endswith(end) or typed.startswith("so lower")


def test_a_run_begins_in_every_process(tmp_path: Path) -> None:
    """Then each says what to type; rank 0 alone writes."""
    callback = RunFolder(tmp_path / "run", "", "")
    callback.on_train_start(SimpleNamespace(is_global_zero=False), SimpleNamespace())  # type: ignore[arg-type]
    assert callback.began
    assert not (tmp_path / "run").exists()


def test_sizes_divide_the_rows_of_a_process() -> None:
    assert sizes(32, 1) == [32, 16, 8, 4, 2, 1]
    assert sizes(12, 2) == [6, 3, 2, 1]
    assert sizes(5, 2) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(TORCH_SAYS), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_a_gpu_says_when_its_memory_is_too_small(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_of_torchrun_resumes_with_the_number_of_the_checkpoint(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(micro_batch.VARIABLE, raising=False)
    trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=SimpleNamespace(launcher=None))
    stored = {"data": {"init_args": {"micro_batch_size": 4}}}
    assert micro_batch._known(SimpleNamespace(trainer=trainer, stored=stored)) == 4
    if rank:  # the process that started this one has found another
        monkeypatch.setenv(micro_batch.VARIABLE, "2")
        assert micro_batch._known(SimpleNamespace(trainer=trainer, stored=stored)) == 2
