"""What all tests share: one thread, a private cache, a small text, and the command line inside this process."""

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from docstring_parser.attrdoc import AttributeDocstrings

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _each_class_is_read_once() -> Iterator[None]:
    """jsonargparse parses the source of the Trainer for every parser: a seventh of the time of a tiny run."""
    read = cache(lambda cls: AttributeDocstrings().get_attr_docs(cls))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("docstring_parser.attrdoc.AttributeDocstrings", lambda: SimpleNamespace(get_attr_docs=read))
        yield


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _no_seed_of_an_earlier_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning leaves the seed of a run in this variable, and processes that are started later take it."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of 12,000 characters with enough order in it to learn from."""
    rng = random.Random(0)
    words = ["the", "model", "reads", "a", "token", "and", "writes", "another", "one", "before", "it", "stops"]
    path = tmp_path / "my text.txt"
    path.write_text("\n".join(" ".join(rng.choices(words, k=9)) + "." for _ in range(240)), encoding="utf-8")
    return path


@pytest.fixture
def fit(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs ``fit`` on a tiny model in this process and returns the run's folder; further flags override."""
    from lit_gpt.cli.lightning_cli import run

    monkeypatch.chdir(tmp_path)

    def call(*flags: str, runs: str = "run") -> Path:
        run("fit", [*TINY, "--data.source", str(text), *flags])
        return max((tmp_path / "logs" / runs).iterdir(), key=lambda folder: int(folder.name.split("_")[1]))

    return call


TINY = [
    *("--model.config.block_size", "16", "--model.config.n_layer", "1", "--model.config.n_head", "2"),
    *("--model.config.n_embd", "16", "--trainer.max_steps", "6", "--trainer.val_check_interval", "3"),
    *("--trainer.log_every_n_steps", "1", "--data.tokens_per_step", "128", "--trainer.accelerator", "cpu"),
    *("--trainer.devices", "1", "--samples.max_new_tokens", "5"),
    *("--tensorboard.every_n_validations", "0"),  # charts take as long as the rest of such a run
]
