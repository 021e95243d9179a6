"""The answer to each mistake of the command line names the option that was meant, and that is accepted."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mistakes import MISTAKES, PAGE, answer, parser
from datamodules.errors import UserError
from lit_gpt.cli import early
from lit_gpt.cli.arguments import data_of_configs, value_of, wants_plan
from lit_gpt.cli.options import CLASSES, OPTIONS_OF_ONE_VERB, options_of_class, options_of_verb

ROOT = Path(__file__).parents[3]
JARGON = re.compile(r"Parser key|NestedArg|Got:|Got value|collections|typing|<class|is not iterable|Subtypes|init_args")


@pytest.mark.parametrize("line", MISTAKES)
def test_an_answer_names_what_was_meant_and_that_is_accepted(line: str) -> None:
    said, meant = answer(line), MISTAKES[line]
    assert said is not None
    assert "\n" not in said
    assert not JARGON.search(said)
    assert f"    {line}\n        {said}\n" in PAGE.read_text(encoding="utf-8"), "run python -m benchmarks.mistakes"
    for option, value in re.findall(r"(--[\w.]+) (\S+)", meant):
        assert option in said or value in said
    verb, *typed = shlex.split(line)
    given = [*typed[:-2], *shlex.split(meant)] if meant else []
    assert answer(shlex.join([verb, *given])) is None


def test_the_page_has_no_other_answers() -> None:
    assert PAGE.read_text(encoding="utf-8").count("\n        ") == len(MISTAKES) >= 40


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: path.stem)
def test_the_configs_are_accepted_by_every_verb(config: Path) -> None:
    for verb in ("fit", "validate", "test", "predict", "data"):
        early.check(verb, ["--config", str(config)])


def _live(verb: str, *flags: str) -> set[str]:
    """The options of a verb that the parser has."""
    cli = parser(verb)
    keys = (key.replace(".init_args.", ".") for key in vars(cli.parser.parse_args([verb, *flags])[verb].as_flat()))
    return {key for key in keys if key not in cli._options_of_other_verbs() and not key.endswith(".class_path")}


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_the_options_that_are_read_from_the_source_are_the_parser_s(verb: str) -> None:
    of_classes = {option for slot in CLASSES for option in options_of_class(slot, None) or ()}
    assert {*options_of_verb(verb), *of_classes} == _live(verb)


@pytest.mark.parametrize(("slot", "cls"), [(slot, cls) for slot in CLASSES for cls in CLASSES[slot]])
def test_the_options_of_a_class_are_the_parser_s(slot: str, cls: str) -> None:
    live = {option for option in _live("fit", f"--{slot}", cls) if option.startswith(f"{slot}.")}
    assert set(options_of_class(slot, cls) or ()) == live


ACCEPTED = [
    "fit --trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay 0.9",
    "fit --trainer.logger WandbLogger --trainer.logger.offline true",
    "fit --data.init_args.source a.txt --model.init_args.config.n_layer 3",
    "fit --data.class_path BPEDataModule --data.documents line --data CharDataModule",
    "fit --model mine.LitGRU --model.config.width 3 --data mine.Sums --data.batch_size 3",
    "fit --model.optimizer.args.nesterov true --model.optimizer.group_lr.head 0.1",
    'fit --samples.prompt "--lr 0.1"',
    "fit --samples.prompt=--lr",
    "fit --trainer.max_steps -1",
    "fit --print_config=skip_null",
    "fit --print_config --name x",
    "fit -c configs/headlines_cpu.yaml --data.vocab_size 300",
    "fit --lr 3 --help",
    "fit --data.help BPEDataModule --lr 3",
    'fit --data {"class_path":"BPEDataModule"} --data.documents line',
    "fit --config empty_groups.yaml",
    'fit --model.init_args \'{"config": {"n_layer": 2}}\'',
    'fit --config \'{"model": "LitExtendedGPT"}\' --model.r_drop 0.1',
    f"fit --config '{{model: LitExtendedGPT, samples: {{prompt: {'long ' * 60}}}}}' --model.r_drop 0.1",
    "validate --ckpt_path a.ckpt --data.documents line",
    "validate --config of_fit.yaml",
    "data --batches 3 --rows 2 --verify --config configs/char.yaml",
    "generate --ckpt_path a --config b.yaml",
    "tokenizer --help",
    "tokenizer trian --source x",
]


@pytest.mark.parametrize("line", ACCEPTED)
def test_an_early_check_leaves_to_the_parser_what_it_does_not_know(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("of_fit.yaml").write_text(
        "name: x\ncheckpoint: {every_n_steps: 5}\nsamples: {prompt: T}\npredictions: {path: p}\nearly_stopping: 2\n"
        "model: {class_path: LitBigram, init_args: {config: {kind: counts}}}\ndata: {documents: line}\n"
        "trainer: {callbacks: [{class_path: Timer}], logger: {class_path: WandbLogger, init_args: {offline: true}}}\n"
    )
    Path("empty_groups.yaml").write_text(
        "model: {class_path: LitGPT, init_args: {}}\ndata: {class_path: BPEDataModule, init_args: }\ntrainer: {}\n"
    )
    verb, *typed = shlex.split(line)
    early.check(verb, typed)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("lr: 0.1", "key lr in a.yaml is unknown: did you mean model.optimizer.lr: 0.1?"),
        ("trainer:\n  max_stps: 3", "key trainer.max_stps in a.yaml is unknown: did you mean trainer.max_steps: 3?"),
        ("model:\n  config: {r_drop: 1}", "did you mean model.class_path: LitExtendedGPT with model.r_drop: 1?"),
        ("data: BPEDataModule\nmodel: {lr: 1}", "key model.lr in a.yaml is unknown"),
        ("data: {class_path: BPEDataModule, init_args: {vocab_sise: 3}}", "did you mean data.vocab_size: 3?"),
    ],
)
def test_a_wrong_key_of_a_config_is_named_with_its_file(
    lines: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(lines)
    with pytest.raises(UserError, match=re.escape(said)):
        early.check("fit", ["--config", "a.yaml"])


@pytest.mark.parametrize("content", ["", "# lr: 3", "- 1", "name"])
def test_a_config_without_keys_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(UserError, match=r"a\.yaml' has no keys: write a line such as `name: test`"):
        early.check("fit", ["--config", str(tmp_path / "a.yaml")])


def test_a_config_that_is_typed_counts_as_one_in_a_file() -> None:
    with pytest.raises(UserError, match=r"key lr in --config is unknown: did you mean model\.optimizer\.lr: 0\.1"):
        early.check("fit", ["--config", "{lr: 0.1}"])
    typed = ["--config={preset: gpt2, plan: true, data: {class_path: BPEDataModule, init_args: {documents: line}}}"]
    assert value_of("preset", typed) == "gpt2"
    assert wants_plan(typed)
    assert data_of_configs(typed) == {"class_path": "BPEDataModule", "init_args": {"documents": "line"}}


def test_options_of_other_verbs_are_refused_later_only() -> None:
    for verb in ("validate", "test"):
        for option in (name for names in OPTIONS_OF_ONE_VERB.values() for name in names):
            early.check(verb, [f"--{option}", "x"])


def test_an_unknown_option_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from lit_gpt.__main__ import main\ntry: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    for typed in (["fit", "--lr", "0.1"], ["fit", "--trainer.max_stps", "1"], ["generate", "--temp", "0.5"]):
        done = subprocess.run([sys.executable, "-c", code, *typed], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"
        assert done.stderr.startswith("lit_gpt: option --")


def test_a_config_of_fit_is_no_config_of_generate() -> None:
    said = r"config \S+char.yaml is one of fit: give generate --ckpt_path logs/NAME/version_0\."
    with pytest.raises(UserError, match=said):
        early.check("generate", ["--config", str(ROOT / "configs" / "char.yaml")])
