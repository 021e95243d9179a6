"""Every command in README, docs and comments of configs: its verb's parser takes it, and each `fit` runs in small."""

import importlib
import json
import pickle
import random
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import jsonargparse
import numpy as np
import pytest

from datamodules.errors import UserError
from datamodules.offline import encoding_needs_network
from lit_gpt import checkpoint, commands
from lit_gpt.__main__ import OUR_VERBS, TRAINER_VERBS
from lit_gpt.cli import early, shrink
from lit_gpt.cli.arguments import with_packaged_configs
from lit_gpt.cli.lightning_cli import LitCLI, run
from lit_gpt.cli.options import CLASSES
from lit_gpt.cli.parsed import ParsedCLI
from lit_gpt.cli.values import preset
from lit_gpt.commands import plot
from lit_gpt.commands import run as run_command
from lit_gpt.commands.data import DataCLI
from lit_gpt.commands.doctor import DoctorCLI
from lit_gpt.diagnostics import report

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
#: Whose commands are the configs' own, which test_configs.py runs.
SLOW = [ROOT / "docs" / "LOG.md", ROOT / "docs" / "reproductions.md", *CONFIGS]
#: What tests/test_process.py types.
HELP = ("fit --help", "fit --model.help LitGPT", "fit --data.help CharDataModule")
BEGINS = r"(?:!|\$ |srun |\.venv/bin/)*python -m lit_gpt "
#: Where a shell's command ends.
ENDS = {"|", "&&", ">", ";"}
OPTION = re.compile(r"--(?:model|data|trainer|checkpoint|samples|progress)\.[a-z_.]+")


def commands_of(path: Path) -> list[str]:
    """The commands in a page's blocks and inline code, or in the comments of a config, from the verb on."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(rf"^ *{BEGINS}(.*)$", text, re.MULTILINE)
    inline = re.findall(rf"(?<!`)`{BEGINS}([^`]*)`", text)
    return [" ".join(command.split()) for command in (*lines, *inline)]


def arguments_of(command: str) -> list[str]:
    """A command as a shell would split it. A name in capitals that a reader has to replace becomes one that exists."""
    parts = shlex.split(command.replace("NAME.yaml", "memorize.yaml").replace("$seed", "3"), comments=True)
    end = next((i for i, part in enumerate(parts) if part in ENDS), len(parts))
    return parts[:end]


def unique(paths: list[Path]) -> list[str]:
    return list(dict.fromkeys(command for path in paths for command in commands_of(path)))


class ParseData(ParsedCLI, DataCLI):
    """The parser of ``data``."""


@cache
def command_line(verb: str, name: str | None) -> LitCLI:
    """The command line of a verb and a preset, whose parser is built once."""
    more = ["--preset", name] if name else []
    path = [] if verb in ("fit", "data") else ["--ckpt_path", "x"]
    return ParseData(more) if verb == "data" else ParsedCLI(verb, [*more, *path])


def parse(command: str) -> None:
    """Parse a command by the parser of its verb."""
    verb, *rest = arguments_of(command)
    if " ".join((verb, *rest)) in HELP:
        return
    early.check(verb, rest)
    if not any(part.startswith("-") for part in rest):  # a verb that is named in a sentence
        assert verb in {**TRAINER_VERBS, **OUR_VERBS}
        assert verb != "tokenizer" or rest[0] in importlib.import_module("lit_gpt.commands.tokenizer").VERBS
    elif verb in (*TRAINER_VERBS, "data"):
        rest = with_packaged_configs(rest)
        cli = command_line(verb, preset(rest))
        cli.parse_arguments(cli.parser, ["fit" if verb == "data" else verb, *rest])
    else:
        run_command(verb, rest)


def parse_only(target: Any, args: list[str], **options: Any) -> None:
    """In place of jsonargparse's ``auto_cli``."""
    jsonargparse.auto_parser(target, **options).parse_args(args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that commands name, and the module of docs/extending.md."""
    folder = tmp_path_factory.mktemp("documented")
    words = random.Random(0).choices(["the", "model", "reads", "a", "token", "and", "writes", "another"], k=4000)
    for name in ("my_novel.txt", "my.txt", "titles.txt", "other.txt"):
        (folder / name).write_text("\n".join(" ".join(words[i : i + 8]) for i in range(0, 4000, 8)))
    _write_tokens(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *sorted(set(words))]))
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (folder / "mine.py").write_text("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)))
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        run_command("tokenizer", ["train", "--source", "my.txt", "--out", "my.json", "--vocab_size", "300"])
        yield folder
    sys.modules.pop("mine", None)


def _write_tokens(folder: Path) -> None:
    """The tokens that docs/data.md names: of nanoGPT's prepare.py, and of datatrove."""
    ids = np.tile(np.arange(60, dtype="<u2"), 200)
    for place in (folder, folder / "data" / "shakespeare_char", folder / "data" / "openwebtext"):
        place.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            ids.tofile(place / f"{split}.bin")
    meta = {"itos": {i: chr(33 + i) for i in range(60)}}
    (folder / "data" / "shakespeare_char" / "meta.pkl").write_bytes(pickle.dumps(meta))
    (folder / "tokens").mkdir()
    ids.tofile(folder / "tokens" / "00000_unshuffled.ds")
    np.array([len(ids)], "<u8").tofile(folder / "tokens" / "00000_unshuffled.ds.index")


@pytest.fixture
def _parse_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in iter_modules(commands.__path__):  # imported under the patches, they would keep a patched `read`
        importlib.import_module(f"{commands.__name__}.{module.name}")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(jsonargparse, "auto_cli", parse_only)
    monkeypatch.setattr(commands, "plain_options", lambda *_: None)  # all are left to jsonargparse
    # What the verbs with parsers of their own do after they have parsed.
    monkeypatch.setattr(report, "report", lambda **_: None)
    monkeypatch.setattr(DoctorCLI, "_run_subcommand", lambda self, _: setattr(self, "results", []))
    for name in ("_metrics", "_draw", "write_atomically"):
        monkeypatch.setattr(plot, name, lambda *_: None)
    monkeypatch.setattr(checkpoint, "file_of", lambda path, *names: path)
    monkeypatch.setattr(checkpoint, "read", lambda path, **options: {checkpoint.KEY: {}})


@pytest.mark.usefixtures("_parse_only")
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path in SLOW else ()) for path in PAGES + CONFIGS],
    ids=lambda path: path.name,
)
def test_every_command_is_parsed(path: Path) -> None:
    for command in dict.fromkeys(commands_of(path)):
        try:
            parse(command)
        except UserError as error:
            raise AssertionError(f"{path.name}: python -m lit_gpt {command}") from error


@pytest.mark.usefixtures("_parse_only")
def test_an_option_that_does_not_exist_is_found() -> None:
    for wrong in ("fit --data.sorce x", "validate --ckpt_path x --nmae y", "generate --ckpt_path x --temprature 0"):
        with pytest.raises(ValueError, match="is unknown"):
            parse(wrong)


def test_commands_are_found_wherever_they_stand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Type `python -m lit_gpt fit --name\na`:\n\n    .venv/bin/python -m lit_gpt data --rows 2   # two\n\n```\n"
        "!python -m lit_gpt fit --name b \\\n    --shrink | cat\n```\n\n- and `tokenizer`, python -m lit_gpt\n"
    )
    assert [arguments_of(command) for command in commands_of(page)] == [
        ["data", "--rows", "2"],
        ["fit", "--name", "b", "--shrink"],
        ["fit", "--name", "a"],
    ]
    assert len(unique(PAGES)) > 40


def fragments_of(path: Path) -> list[str]:
    """Options with values in inline code, such as `--data.val_stride 64`. Those of other programs have no dot."""
    found = re.findall(r"(?<!`)`(--[^`]*)`", path.read_text(encoding="utf-8"))
    placeholder = re.compile(r"\b[A-Z]+\b")
    return [" ".join(one.split()) for one in found if OPTION.match(one) and " " in one and not placeholder.search(one)]


def beginnings(fragment: str, page: str) -> list[list[str]]:
    """What may have to stand before an option: the class that has it."""
    if fragment.startswith("--trainer.callbacks."):
        return [[f"--trainer.callbacks+={name}"] for name in sorted(set(re.findall(r"callbacks\+=(\w+)", page)))]
    if fragment.startswith("--trainer.logger."):
        return [["--trainer.logger", name] for name in sorted(set(re.findall(r"--trainer.logger (\w+Logger)", page)))]
    models = [["--model", name] for name in ("LitExtendedGPT", "LitBERT", "mine.LitGRU")]
    return [[], *(["--data", name] for name in CLASSES["data"]), *models]


def is_parsed(arguments: list[str]) -> bool:
    try:
        parse(shlex.join(["fit", *arguments]))
    except UserError:
        return False
    return True


@pytest.mark.usefixtures("_parse_only")
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path in SLOW else ()) for path in PAGES],
    ids=lambda path: path.name,
)
def test_every_option_that_a_page_names_is_parsed(path: Path) -> None:
    for fragment in dict.fromkeys(fragments_of(path)):
        parts = shlex.split(fragment)
        before = beginnings(fragment, path.read_text(encoding="utf-8"))
        assert any(is_parsed([*one, *parts]) for one in before), f"{path.name}: {fragment}"


def is_run(command: str) -> bool:
    """Whether a command is a whole `fit` that needs nothing but the files here."""
    parts = arguments_of(command)
    return parts[0] == "fit" and len(parts) > 1 and not re.search(r"help|WandbLogger|mine\.|--resume", command)


def is_a_config(command: str) -> bool:
    """Whether a command gives a config and no more than its text."""
    return {part for part in arguments_of(command) if part.startswith("--")} <= {
        "--config",
        "--data.source",
        "--shrink",
    }


IN_README = unique(PAGES[:1])
RUNS = {
    tuple(arguments_of(command)): command for command in unique([*CONFIGS, *PAGES[::-1]]) if is_run(command)
}.values()


@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule", "ignore::UserWarning:torch.*profiler")
@pytest.mark.parametrize(
    "command",
    [pytest.param(one, marks=() if one in IN_README and not is_a_config(one) else pytest.mark.slow) for one in RUNS],
)
def test_fit_runs_in_small(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "MAX_BYTES", 20_000)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(folder)
    if "TokensDataModule" in command and "gpt2" in command:  # whose tokenizer a trial cannot replace
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(ROOT.parent / "shared" / "tiktoken_cache"))
        if encoding_needs_network("gpt2"):
            pytest.skip("gpt2's ranks are not in ../shared/tiktoken_cache")
    few = ["--trainer.max_steps", "2", "--samples.max_new_tokens", "2", "--logs_dir", str(folder / "small")]
    run("fit", [*with_packaged_configs(arguments_of(command)[1:]), "--shrink", *few])


def test_the_table_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name, best in (("worse", {"val/loss": 2.5}), ("none", {}), ("better", {"val/loss": 1.25})):
        (tmp_path / "logs" / name / "version_0").mkdir(parents=True)
        summary = json.dumps({"best": best, "seed": 3, "tokens": 1000})
        (tmp_path / "logs" / name / "version_0" / "summary.json").write_text(summary)
    page = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    exec(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0], {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1.2500", "2.5000", "nan"]
