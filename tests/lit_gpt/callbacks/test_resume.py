"""Each process goes on with its own random numbers."""

from types import SimpleNamespace

import pytest
import torch

from lit_gpt.callbacks import resume
from lit_gpt.callbacks.resume import ExactResume


@pytest.fixture(autouse=True)
def without_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_begin_the_next_epoch", lambda _: None)


def drawn_on(rank: int, restored: dict | None) -> float:
    """What a process of two draws first, all having begun from the same seed."""
    torch.manual_seed(5)
    callback = ExactResume()
    if restored:
        callback.load_state_dict(restored)
    callback.on_train_start(SimpleNamespace(world_size=2, global_rank=rank), None)
    return float(torch.rand(()))


def test_processes_draw_apart_in_a_new_run() -> None:
    assert drawn_on(0, None) != drawn_on(1, None)


def test_processes_draw_what_they_would_have_drawn() -> None:
    states, expected = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(resume.random_state())
        expected.append(float(torch.rand(())))
    assert [drawn_on(rank, {"random": states, "accumulation": 1}) for rank in (0, 1)] == expected
