"""Synthetic runs: the files that fit writes, from closed formulas."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a run's folder: val/loss at step s is 4 - s / 100 + seed / 10, and 0.5 seconds and 64 tokens a step."""

    def call(name: str = "a/version_0", seed: int = 1, steps: int = 20, width: int = 32, **changed: Any) -> Path:
        folder = tmp_path / "logs" / name
        (folder / "checkpoints").mkdir(parents=True)
        config = {
            "seed_everything": seed,
            "name": name,
            "model": {"class_path": "lit_gpt.LitGPT", "init_args": {"config": {"n_embd": width, "n_layer": 1}}},
            "data": {"class_path": "datamodules.CharDataModule", "init_args": {"source": "my.txt"}},
            **changed.pop("config", {}),
        }
        summary = {
            **{"finished": True, "steps": steps, "tokens": 64 * steps, "training_seconds": 0.5 * steps},
            **{"validation_seconds": 2.0, "tokens_per_second": 128.0, "parameters": 1000 * width, "seed": seed},
            **{"device": "cpu", "hashes": {"data": "d" * 64, "tokenizer": "t" * 64}, **changed},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.csv").write_text(csv_of(seed, steps))
        return folder

    return call


def csv_of(seed: int, steps: int, every: int = 10) -> str:
    lines = ["step,epoch,train/loss,train/step_seconds,train/data_wait,val/loss,val/top1,train_eval/loss"]
    for step in range(every, steps + 1, every):
        loss = 4 - step / 100 + seed / 10
        lines += [f"{step},0,{loss},0.5,0.25,,,", f"{step},0,,,,{loss},{seed / 100},{loss - 0.5}"]
    return "\n".join(lines) + "\n"
