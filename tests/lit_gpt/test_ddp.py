"""A step of several processes sends the gradients, the sums and Muon's updates, each once, and nothing else."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lit_gpt import GPTConfig, LitGPT
from lit_gpt.ddp import SYNC_BUFFERS, Votes, spare_copies
from tests.fsdp2_cases import in_processes
from tests.processes import on_processes
from tests.test_fsdp2 import difference, job, saved

Fit = Callable[..., Path]
STEPS = 2


class Traced(Callback):
    """Counts the collective operations of two steps, after DDP has chosen its buckets. Written by each process."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.views = all(p.grad._is_view() for p in pl_module.parameters() if p.grad is not None)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == 2 * trainer.accumulate_grad_batches - 1:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()
        if trainer.fit_loop.total_batch_idx == (2 + STEPS) * trainer.accumulate_grad_batches - 1:
            self.profiler.stop()
            seen = Counter(event.name for event in self.profiler.events() or () if event.name.startswith("gloo:"))
            buckets = trainer.model._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(",")  # type: ignore[union-attr]
            text = json.dumps({"seen": seen, "buckets": len(buckets), "views": self.views})
            Path(f"trace{trainer.global_rank}").write_text(text)


class Without(LitGPT):
    """Adds its sums up by itself."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.votes, given = Votes(), self.votes
        super().on_before_optimizer_step(optimizer)
        self.votes = given


def test_a_step_has_no_collective_operation_that_it_does_not_need(fit: Fit, tmp_path: Path) -> None:
    flags = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2", "--model.optimizer.kind", "muon"]
    flags += ["--data.micro_batch_size", "2", "--trainer.gradient_clip_val", "0.1", "--trainer.max_steps", "5"]
    flags += ["--trainer.max_time", "00:01:00:00"]
    flags += ["--trainer.val_check_interval", "5", f"--trainer.callbacks+={__name__}.Traced"]
    fit(*flags, "--model", "LitExtendedGPT", "--model.config.token_parts", "true")  # they are buffers
    for rank in range(2):
        trace = json.loads((tmp_path / f"trace{rank}").read_text())
        assert trace["seen"] == {"gloo:all_reduce": STEPS * (trace["buckets"] + 1), "gloo:all_gather": STEPS}
        assert trace["views"]  # gradients are no copies of what is sent


def test_own_options_and_own_buffers_stay() -> None:
    class Normed(nn.Module):
        pass

    def options(net: nn.Module, **chosen: bool) -> dict[str, Any]:
        strategy = DDPStrategy(**chosen)
        spare_copies(strategy, net)
        return strategy._ddp_kwargs

    net = LitGPT(GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=4, vocab_size=5)).build_network()
    assert options(net) == {"gradient_as_bucket_view": True, SYNC_BUFFERS: False}
    assert options(net, broadcast_buffers=True) == {"gradient_as_bucket_view": True, "broadcast_buffers": True}
    assert options(net, gradient_as_bucket_view=False)["gradient_as_bucket_view"] is False
    assert SYNC_BUFFERS not in options(Normed())


def test_a_vote_of_one_process_is_known_to_all_at_the_same_step(tmp_path: Path) -> None:
    def work(rank: int) -> list[list[bool]]:
        yes, found = [False, False], []
        votes = Votes(lambda: yes[0], lambda: yes[1])
        for step in range(5):
            yes = [rank == 1 and step == 2, rank == 0 and step == 3]
            sums = votes.summed(torch.tensor([1.0, 2.0]), 2)
            assert sums.tolist() == [2, 4]
            found.append(votes.answers())
        return found

    no = [False, False]
    assert on_processes(2, work, tmp_path) == [[no, no, no, [True, False], [False, True]]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("module", [LitGPT, Without])
def test_time_stops_two_processes_at_the_same_step(
    module: type[LitGPT], fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow: the votes of a step, and what is asked where there are none. By a clock that steps move."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: clock.now))
    learn = LitGPT.training_step

    def slowly(self: Any, *given: Any) -> torch.Tensor:
        clock.now += 60 if self.global_rank == 0 else 7  # the first process's clock counts
        return learn(self, *given)

    monkeypatch.setattr(LitGPT, "training_step", slowly)
    flags = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2", "--trainer.val_check_interval", "5"]
    folder = fit(*flags, "--trainer.max_time", "00:00:02:30", "--model", f"{module.__module__}.{module.__name__}")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["finished"], summary["steps"]) == (False, {LitGPT: 4, Without: 3}[module])


@pytest.mark.slow
def test_a_run_of_two_processes_with_muon_resumes_to_the_last_bit(text: Path, tmp_path: Path) -> None:
    """Slow: three runs. With dropout and accumulation; in float32, where any other order of sums would show."""
    case = {"optimizer": {"kind": "muon"}, "network": {"dropout": 0.1}, "data": {"micro_batch_size": 2}}
    jobs = []
    for name, steps, before in (("straight", 20, None), ("first", 9, None), ("second", 20, "first")):
        resume = before and str(tmp_path / before / "checkpoints" / "last.ckpt")
        trainer = {"max_steps": steps, "val_check_interval": 5, "precision": "32-true"}
        jobs.append(job(str(text), tmp_path / name, "ddp", **case, trainer=trainer, resume=resume))
    in_processes(jobs, tmp_path)
    one, two = saved(jobs[0]["folder"]), saved(jobs[2]["folder"])
    for key in ("state_dict", "optimizer_states"):
        assert difference(one[key], two[key]) == 0.0, key
