"""What the trials of benchmarks/faults found, each as its smallest case."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from datamodules import CharDataModule
from datamodules.errors import UserError
from datamodules.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from datamodules.tokens import TokenWriter
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from lit_gpt.callbacks.run_lock import RunLock
from lit_gpt.callbacks.samples import SampleText
from lit_gpt.callbacks.tensorboard import TensorBoardCharts
from lit_gpt.cli.lightning_cli import run
from lit_gpt.cli.run_data import parsed

Fit = Callable[..., Path]


def test_temporary_files_of_a_run_that_nobody_goes_on_with_are_removed(fit: Fit) -> None:
    killed, running = Path("logs/run/version_0"), Path("logs/run/version_1")
    for folder in (killed, running):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / ".config.yaml.abcd1234.tmp").write_text("half")
        (folder / "checkpoints" / ".last.ckpt.abcd1234.tmp").write_text("half")
    hold = RunLock(running)
    assert fit("--trainer.max_steps", "1", "--resume", "auto").name == "version_2"
    hold.release()
    assert not [*killed.rglob(".*")]
    assert len([*running.rglob(".*")]) == 2


def trained(kind: str) -> Tokenizer:
    texts = ["the model reads a token and writes another one, naïve or not"] * 3
    made = {"char": lambda: CharTokenizer.from_texts(texts), "byte": lambda: ByteTokenizer(eos=True)}
    return made.get(kind, lambda: train_tokenizer(kind, texts, 300))()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "unigram"])
def test_a_flipped_bit_of_a_tokenizer_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    tokenizer, path = trained(kind), tmp_path / "t.json"
    save_tokenizer(tokenizer, path)
    content, refused = path.read_bytes(), list[bool]()
    assert load_tokenizer(path).to_dict() == tokenizer.to_dict()
    for place in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        refused.append(_is_refused_by_name(path))
        assert refused[-1] or load_tokenizer(path).to_dict() == tokenizer.to_dict()  # the last digit of a float
    assert sum(refused) > 0.9 * len(refused)


def _is_refused_by_name(path: Path) -> bool:
    try:
        load_tokenizer(path)
    except UserError as error:
        return path.name in str(error)
    return False


def test_a_tokenizer_file_that_a_person_has_written_needs_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(trained("char").to_dict()))
    assert load_tokenizer(tmp_path / "t.json").to_dict() == trained("char").to_dict()


FORGED = {
    "optimizer_states": [{"state": {0: "x"}, "param_groups": []}],
    "lr_schedulers": [{"a": 1}],
    "loops": {"fit_loop": 1},
    "hyper_parameters": [1],
    "pytorch-lightning_version": "none",
    "callbacks": {"RunCheckpoints": 1},
    "random numbers": {"ExactResume": {"random": [{"torch": 1}], "accumulation": 1}},
}


@pytest.mark.parametrize("key", FORGED)
def test_a_forged_state_of_a_run_is_one_sentence(key: str, fit: Fit) -> None:
    last = fit("--trainer.max_steps", "2") / "checkpoints" / "last.ckpt"
    stored = torch.load(last, weights_only=True)
    stored[key if key in stored else "callbacks"] = FORGED[key]
    last.unlink()
    torch.save(stored, last)
    with pytest.raises(UserError, match=r"last\.ckpt' holds a state that no run of this version wrote \(") as caught:
        fit("--ckpt_path", str(last))
    assert "\n" not in str(caught.value)


CHAR = "datamodules.char.CharDataModule"


@pytest.mark.parametrize(
    "data",
    [
        "text",
        {"init_args": {}},
        {"class_path": CHAR},
        {"class_path": [CHAR], "init_args": {}},
        {"class_path": CHAR, "init_args": [1]},
        {"class_path": CHAR, "init_args": {"source": {"class_path": "os.system"}}},
        {"class_path": CHAR, "init_args": {"source": ["a", 1]}},
        {"class_path": CHAR, "init_args": {"cache_dir": 3}},
    ],
)
def test_a_forged_description_of_the_data_is_one_sentence(data: object) -> None:
    def parse(arguments: list[str]) -> Namespace:
        raise AssertionError("nothing of it is parsed")

    with pytest.raises(UserError, match="the checkpoint describes its data as `fit` never does"):
        parsed(parse, "validate", data, [])  # type: ignore[arg-type]


def test_a_cache_that_is_removed_while_it_is_filled_is_one_sentence(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, add = tmp_path / "cache", TokenWriter.add

    def remove(*given: Any) -> None:
        add(*given)
        shutil.rmtree(cache, ignore_errors=True)

    monkeypatch.setattr(TokenWriter, "add", remove)
    with pytest.raises(UserError, match=r"the cache .*cache cannot be written \(No such file or directory\)"):
        CharDataModule(str(text), cache_dir=str(cache), block_size=16).prepare_data()


def test_a_folder_that_is_removed_while_the_data_are_prepared_is_made_again(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = CharDataModule.prepare_data

    def remove(*given: Any) -> None:
        prepare(*given)
        shutil.rmtree("logs")

    monkeypatch.setattr(CharDataModule, "prepare_data", remove)
    assert (fit("--trainer.max_steps", "1") / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    "given",
    [
        *("name: null", "logs_dir: null", "seed_everything: null", "float32_matmul: null"),
        *("checkpoint: null", "samples: 5", "progress: [1]", "trainer: 5"),
    ],
)
def test_null_and_a_value_in_the_place_of_options_are_one_sentence(given: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(given)
    with pytest.raises(UserError, match=f"{given.partition(':')[0]}.*(leave it out|valid|Expected|expected)") as caught:
        run("fit", ["--config", str(tmp_path / "my.yaml")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_one_sentence(
    error: type[Exception], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = CharDataModule(str(text), cache_dir=str(tmp_path / "cache"), block_size=16, num_workers=1)
    data.prepare_data()
    data.setup("fit")

    def broken(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken)
    with pytest.raises(UserError, match="a worker process of the data loader was killed, often for want of memory"):
        next(iter(data.train_dataloader()))


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["SampleText", "TensorBoardCharts"])  # one is called before the other
def test_a_validation_whose_charts_or_sample_fail_is_logged_once(
    fit: Fit, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model.config.dropout", "0.1", "--tensorboard.layers", "true")
    flags += ("--tensorboard.every_n_validations", "1")
    straight = fit(*flags)

    def fail(callback: Any, trainer: Any, module: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("a fault of a callback")

    with monkeypatch.context() as patch:
        cls = {"SampleText": SampleText, "TensorBoardCharts": TensorBoardCharts}[failing]
        patch.setattr(cls, "on_validation_end", fail)
        with pytest.raises(RuntimeError, match="a fault of a callback"):
            fit(*flags)
    resumed = fit(*flags, "--resume", "auto")
    assert resumed != straight
    curves = [{name: MetricsCSV(x).curve(name) for name in ("val/loss", "train/loss")} for x in (straight, resumed)]
    assert curves[0] == curves[1]
    scalars = [EventAccumulator(str(x / "val")).Reload().Scalars("metrics/loss") for x in (straight, resumed)]
    assert [x.step for x in scalars[0]] == [x.step for x in scalars[1]] == [3, 6]
    assert (straight / "samples.jsonl").read_text() == (resumed / "samples.jsonl").read_text()
    images = EventAccumulator(str(resumed / "val")).Reload()
    # The gradients of step 3 are gone: no chart is better than one of zeros.
    assert [x.step for x in images.Images("network/gradients")] == [6]
    assert [x.step for x in images.Images("network/weights")] == [3, 6]
