"""Fixtures of the data tests: small texts, a cache of their own, a module that remembers its batches."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules.sources import Source, open_source

SHARED = Path(__file__).parents[3] / "shared"


class Recorder(LightningModule):
    """One parameter, no purpose; keeps the batches it was given."""

    def __init__(self, block_size: int = 8) -> None:
        super().__init__()
        self.config = SimpleNamespace(block_size=block_size)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[dict[str, torch.Tensor]]] = {"train": [], "val": [], "train_eval": [], "test": []}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen["train"].append(batch)
        return self.weight * 0

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen[("val", "train_eval")[dataloader_idx]].append(batch)

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def recorder() -> Callable[..., Recorder]:
    return Recorder


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    """A plain CPU Trainer that writes nothing."""

    def make(**options: object) -> Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return Trainer(**{**quiet, "enable_model_summary": False, "accelerator": "cpu", **options})  # type: ignore[arg-type]

    return make


@pytest.fixture
def text_source(tmp_path: Path) -> Callable[..., Source]:
    """A source of the given documents, each a file of its own."""

    def make(*documents: str, **options: str) -> Source:
        folder = tmp_path / f"text{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for number, document in enumerate(documents):
            (folder / f"{number:03}.txt").write_bytes(document.encode())
        return open_source(str(folder), **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def gpt2_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes gpt2's encoding available without a network, or skips."""
    cache = SHARED / "tiktoken_cache"
    if not cache.exists():
        pytest.skip("gpt2's ranks are not in ../shared/tiktoken_cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the person's own cache."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home
