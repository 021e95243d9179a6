"""Every number that a person can type: taken, or refused in one sentence; networks that no memory holds."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import CharDataModule, HeadlinesDataModule
from datamodules.errors import UserError
from datamodules.tokenizers import train_tokenizer
from lit_gpt import LitExtendedGPT, bounds
from lit_gpt.baselines.bigram import BigramConfig, build_bigram
from lit_gpt.callbacks.checkpoints import RunCheckpoints
from lit_gpt.callbacks.samples import SampleText
from lit_gpt.cli.lightning_cli import run
from lit_gpt.cli.parsed import ParsedCLI
from lit_gpt.cli.values import check_values
from lit_gpt.config import GPTConfig
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.extended_gpt import build_network
from lit_gpt.model import GPT
from lit_gpt.optim import OptimizerConfig, lr_factor
from tests.conftest import TINY

INTS = (-1, 0, 10**11)
FLOATS = (-1.0, 0.0, 0.5, 1e11, math.inf, -math.inf, math.nan)
SLOTS: dict[str, Any] = {
    "model.init_args.config": ExtendedGPTConfig,
    "model.init_args.optimizer": OptimizerConfig,
    "model.init_args": LitExtendedGPT.__init__,
    "data.init_args": CharDataModule.__init__,
    "trainer": Trainer.__init__,
    "checkpoint": RunCheckpoints.__init__,
    "samples": SampleText.__init__,
}
OWN = {"seed_everything": int, "early_stopping": int}


class Parsed(ParsedCLI):
    """A command line that was parsed, and objects of it on demand, without a run."""

    def try_(self, option: str, value: Any) -> None:
        """What fit does with the option before it reads the data."""
        given, self.config = self.config, self.config.clone()
        try:
            self.config["fit"][option] = value
            check_values("fit", self.config["fit"])
            made = self.instantiated()["fit"]
            if option.startswith("trainer."):
                self._trainer(made.trainer)
            elif option.startswith("model."):
                self._network(made.model)
        finally:
            self.config = given

    def _trainer(self, options: Any) -> None:
        try:
            with self._as_user_errors():
                Trainer(**{**options, "logger": False, "callbacks": None, "enable_checkpointing": False})
        except (ValueError, TypeError) as error:  # as instantiate_trainer has it
            raise UserError(str(error)) from error

    def _network(self, model: Any) -> None:
        model.config.vocab_size = model.config.vocab_size or 50
        model.build_network()
        assert all(math.isfinite(lr_factor(step, 10, model.optimizer_config)) for step in range(10))


def hostile(slots: dict[str, Any], own: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(option, value) for all options that take numbers, found by the types of the classes' arguments."""
    hints = [(f"{slot}.{name}", hint) for slot, owner in slots.items() for name, hint in get_type_hints(owner).items()]
    for option, hint in [*hints, *own.items()]:
        kinds = bounds._types_in(hint)
        for value in (*(INTS if int in kinds else ()), *(FLOATS if float in kinds else ())):
            yield option, _shaped(value, hint)


def _shaped(value: Any, hint: Any) -> Any:
    shapes: dict[Any, Any] = {list: [value], tuple: (value, value), dict: {"head": value}}
    return shapes.get(get_origin(hint), value)


def _refusal(cli: Parsed, option: str, value: Any) -> str:
    """The sentence, empty where the value is taken."""
    try:
        cli.try_(option, value)
    except UserError as error:
        return str(error)
    return ""


BIGRAM = ["--model", "LitBigram", *TINY[8:]]
HEADLINES = [*TINY, "--data", "HeadlinesDataModule"]


@pytest.mark.parametrize(
    ("flags", "slots", "own", "least"),
    [
        ([*TINY, "--model", "LitExtendedGPT"], SLOTS, OWN, 60),
        (BIGRAM, {"model.init_args.config": BigramConfig}, {}, 3),
        (HEADLINES, {"data.init_args": HeadlinesDataModule.__init__}, {}, 5),
    ],
    ids=["gpt", "bigram", "headlines"],
)
def test_every_number_is_taken_or_refused_in_one_sentence(
    flags: list[str], slots: dict[str, Any], own: dict[str, Any], least: int, text: Path
) -> None:
    cli = Parsed("fit", [*flags, "--data.source", str(text)])
    known = vars(cli.config["fit"].as_flat()).keys()
    tried = set()
    for option, value in hostile(slots, own):
        if not any(name == option or name.startswith(f"{option}.") for name in known):
            continue  # linked to another option
        tried.add(option)
        refusal = _refusal(cli, option, value)
        assert "\n" not in refusal, (option, value)
        if option.startswith(("model.", "samples.")) and any(not abs(v) < math.inf for v in bounds._numbers_in(value)):
            assert refusal, (option, value)
    assert len(tried) >= least


@pytest.mark.parametrize("option", ["seed_everything", "trainer.max_epochs", "model.config.n_kv_head"])
@pytest.mark.parametrize("value", ["1e400", "nan", "1.5"])
def test_a_count_is_a_whole_number(option: str, value: str, text: Path) -> None:
    with pytest.raises(UserError) as caught:
        Parsed("fit", [*TINY, "--data.source", str(text), f"--{option}", value])
    assert "\n" not in str(caught.value)
    assert option.rsplit(".", maxsplit=1)[-1] in str(caught.value)


@pytest.mark.parametrize("value", [-1, 2**32])
def test_the_seed_is_one_of_numpys(value: int, text: Path) -> None:
    with pytest.raises(UserError, match=f"seed_everything is {value}: give 0 to 4294967295"):
        run("fit", [*TINY, "--data.source", str(text), "--seed_everything", str(value)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied_head": True, "activation": "swiglu", "n_kv_head": 1, "learned_positions": True, "attention_gate": True},
        {"ngrams": [2, 3], "ngram_rows": 100, "ngram_width": 4, "token_parts": True, "n_parts": 7, "pad_vocab_to": 64},
        {"members": 3, "mlp_width": 24, "bias": True, "norm_gain": True, "layer_scale": 0.1},
    ],
    ids=lambda options: next(iter(options), "default"),
)
def test_the_size_that_is_checked_is_the_size_that_is_built(options: dict[str, Any]) -> None:
    shape = {"block_size": 16, "vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 16}
    config = ExtendedGPTConfig(**{**shape, **options})
    built = sum(p.numel() for p in build_network(config).parameters() if p.ndim > 1)
    assert config.matrix_parameters == built


@pytest.mark.parametrize("build", [GPT, build_bigram])
def test_a_network_larger_than_the_memory_is_refused_before_it_is_made(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BigramConfig(vocab_size=1000) if build is build_bigram else GPTConfig(vocab_size=1000, n_layer=1)
    size = sum(p.numel() for p in build(config).parameters() if p.ndim > 1) * 4
    monkeypatch.setattr(bounds, "memory_of", lambda device: size)
    build(config)
    monkeypatch.setattr(bounds, "memory_of", lambda device: size - 1)
    with pytest.raises(UserError, match=r"the network has [\d,]+ parameters, [\d.]+ GB, and this machine has"):
        build(config)


def test_the_memory_is_known_here_and_not_asked_for_on_meta() -> None:
    memory = bounds.memory_of(torch.device("cpu"))
    assert memory is not None
    assert memory > 2**28
    with torch.device("meta"):
        GPT(GPTConfig(vocab_size=10**9, n_embd=6 * 2**20, n_layer=1))


def test_a_batch_larger_than_the_memory(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def refuse(*_: Any) -> None:
        raise MemoryError("Unable to allocate 46.6 GiB")

    monkeypatch.setattr("datamodules.step_size.RankShare.positions", refuse)
    with pytest.raises(UserError, match=r"not enough memory \(Unable to allocate 46\.6 GiB\): add --data.micro"):
        run("fit", [*TINY, "--data.source", str(text)])


def test_a_step_of_more_tokens_than_any_machine_holds(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"a micro-batch of 100,000,000,000 tokens .* lower --data.tokens_per_step"):
        run("fit", [*TINY, "--data.source", str(text), "--data.tokens_per_step", str(10**11)])


def test_a_vocabulary_larger_than_any() -> None:
    with pytest.raises(UserError, match="vocab_size=100000000000 is too large for bpe"):
        train_tokenizer("bpe", ["the cat"], 10**11)


def test_weights_that_overflow_end_in_one_sentence(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"lower --model\.optimizer\.lr"):
        run("fit", [*TINY, "--data.source", str(text), "--model.optimizer.lr", "1e38"])
