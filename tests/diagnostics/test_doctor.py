"""doctor: every planted fault is named by its line and by no unrelated one, and sound set-ups by none."""

import random
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from datamodules.errors import UserError
from datamodules.tokenizers import save_tokenizer, train_tokenizer
from lit_gpt.diagnostics.doctor import Setup, examine, table
from lit_gpt.diagnostics.result import AFTER_RUN, AT_START, Result
from tests.diagnostics import planted
from tests.diagnostics.planted import FOREIGN, OURS, Fault

WORDS = ["The", "model", "reads", "a", "token", "and", "writes", "another", "one", "before", "it", "stops"]

VALIDATION = ("new validation text", "whole validation", "evaluation mode", "evaluated weights")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A text of one document, and one whose lines are documents, each different."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    lines = list(dict.fromkeys(" ".join(rng.choices(WORDS, k=rng.randint(2, 5))) for _ in range(400)))
    for name in ("one.txt", "lines.txt"):
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    save_tokenizer(train_tokenizer("char", ["\n".join(lines)], eos=False), folder / "no_eos.json")
    return folder / "one.txt", folder / "lines.txt"


def results(fault: Fault, texts: tuple[Path, Path], whole: bool = True) -> list[Result]:
    """Of all checks; or of the one that has to fail alone, after a run of four steps where its length is no matter."""
    torch.manual_seed(0)
    options = {"accelerator": "cpu", **({} if whole or fault.line == "schedule" else {"max_steps": 4})}
    return examine(Setup(lambda: fault.build(*texts), options | (fault.options or {})), None if whole else {fault.line})


def is_named(fault: Fault, found: list[Result]) -> None:
    failed = {result.check for result in found if result.state == "FAIL"}
    assert fault.line in failed, table(found)
    assert failed <= {fault.line, *fault.follows}, table(found)


@pytest.mark.parametrize("name", OURS)
def test_a_fault_of_ours_is_named(name: str, texts: tuple[Path, Path]) -> None:
    is_named(OURS[name], results(OURS[name], texts, whole=False))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_fault_of_a_plain_module_is_named(name: str, texts: tuple[Path, Path]) -> None:
    is_named(FOREIGN[name], results(FOREIGN[name], texts, whole=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_a_fault_of_ours_is_named_among_all_checks(name: str, texts: tuple[Path, Path]) -> None:
    is_named(OURS[name], results(OURS[name], texts))


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_a_fault_of_a_plain_module_is_named_among_all_checks(name: str, texts: tuple[Path, Path]) -> None:
    is_named(FOREIGN[name], results(FOREIGN[name], texts))


def sound(texts: tuple[Path, Path]) -> dict[str, tuple[LightningModule, LightningDataModule]]:
    one, lines = texts
    return {
        "windows": (planted.gpt(), planted.chars(one)),
        "packed": (planted.gpt(block_size=32), planted.lines(lines)),
        "padded": (planted.gpt(block_size=32, tied_head=True, bias=True), planted.lines(lines, rows="padded")),
        "plain": (planted.Plain(), planted.PlainData()),
        "equal layers": (planted.PlainEqualLayers(), planted.PlainPadded()),
    }


@pytest.mark.parametrize(
    "name",
    ["packed", *(pytest.param(n, marks=pytest.mark.slow) for n in ("equal layers", "windows", "padded", "plain"))],
)
def test_a_sound_set_up_passes(name: str, texts: tuple[Path, Path]) -> None:
    found = examine(Setup(lambda: sound(texts)[name], {"accelerator": "cpu"}))
    assert not [result for result in found if result.state == "FAIL"], table(found)
    assert len({result.check for result in found}) == len(found) == len(AT_START) + len(AFTER_RUN) + 1
    assert all(result.measured and result.why and result.option for result in found)


class NeverBuilt(planted.Plain):
    def configure_model(self) -> None:
        raise KeyError("width")


def test_without_validation_its_checks_do_not_apply(texts: tuple[Path, Path]) -> None:
    built = (planted.gpt(), planted.chars(texts[0], val_fraction=0.0))
    found = {result.check: result for result in examine(Setup(lambda: built, {"accelerator": "cpu"}), VALIDATION)}
    assert {name: found[name].state for name in VALIDATION} == dict.fromkeys(VALIDATION, "not applicable")


def test_a_module_that_cannot_be_built_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^the run cannot begin \(KeyError: 'width'\): "):
        examine(Setup(lambda: (NeverBuilt(), planted.PlainData()), {"accelerator": "cpu"}))


def test_the_page_has_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    named = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")} - {"check"}
    assert named == {vars(check)["check"] for check in (*AT_START, *AFTER_RUN)} | {"a short run ends"}
