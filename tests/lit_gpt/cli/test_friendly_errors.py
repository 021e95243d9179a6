"""One sentence out of a parser's report, whatever its form."""

import pytest

from lit_gpt.cli.friendly_errors import CommandLine, friendly_error

KNOWN = ["model.config.n_layer", "trainer.max_steps", "format", "source"]
CLASSES = {"model": ["LitGPT", "LitBigram"]}
SLOT = 'Parser key "model":\n  Does not validate against any of the Union subtypes\n  Errors:\n    - Problem:\n        '


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            "unrecognized arguments: --trainer.max_stps 3",
            "option --trainer.max_stps is unknown: did you mean --trainer.max_steps?",
        ),
        (SLOT + "unrecognized arguments: --config.n_layr=4", "did you mean --model.config.n_layer 4?"),
        (SLOT + "Group 'config' does not accept option 'n_layr'", "option --model.config.n_layr is unknown"),
        (
            SLOT + "Parser key \"config.n_layer\":\n Expected a <class 'int'>. Got value: x",
            "option --model.config.n_layer cannot be 'x': give an integer.",
        ),
        (
            "Parser key \"format\":\n  Expected a typing.Literal['a', 'b']. Got value: c",
            "option --format cannot be 'c': use a, b.",
        ),
        (
            'Parser key "resume":\n  Does not validate against any of the Union subtypes\n  Subtypes: '
            "[typing.Literal['auto'], <class 'NoneType'>]\n  Errors:\n    - Expected a typing.Literal['auto']\n"
            "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: often",
            "option --resume cannot be 'often': use auto.",
        ),
        (
            SLOT + 'Parser key "config":\n Unable to load config \'gpt2\'\n - Parser key "config": ...',
            "option --model.config is a group of options and cannot be 'gpt2': set them, such as --model.config.n_layer"
            ".",
        ),
        ("unrecognized arguments: a.yaml --x 3", "'a.yaml' stands alone: give it as --config a.yaml."),
        ("unrecognized arguments: -format b", "option -format has one dash: write --format."),
        ("argument --stop/--stop+: expected one argument", "option --stop has no value: write one after it."),
        ("are required: ckpt_path", "--ckpt_path must be given, such as --ckpt_path logs/NAME/version_0."),
        ("the following arguments are required: train.source, train.out", "--source and --out must be given."),
        (SLOT + "Expected a dot import path string: GPT.", "model 'GPT' is unknown: did you mean LitGPT?"),
        (
            SLOT + "Problem with given class_path 'a.B': module 'a' has no attribute 'B'",
            "model 'a.B' is unknown: use LitGPT, LitBigram.",
        ),
        (
            "Problem with given class_path 'lightning.pytorch.loggers.WandbLogger':\n  "
            "Requirement 'wandb>=0.12' not met. "
            "HINT: Try running `pip install -U 'wandb>=0.12'`\n- Expected a <class 'bool'>",
            "WandbLogger needs the package wandb, which is not installed: pip install wandb, or leave it out.",
        ),
        ("Something new:\n  - of a kind\n  - never seen", "Something new: - of a kind - never seen."),
        ('Parser key "a":\n  Expected a spell. Got value: x', 'Parser key "a": Expected a spell. Got value: x.'),
    ],
)
def test_reports_become_sentences(report: str, expected: str) -> None:
    found = friendly_error(report, CommandLine(known=KNOWN, classes=CLASSES))
    assert expected in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], "'world' stands alone: give it as --prompt world."),
        (["--prompt", "Hello", "world"], "'world' stands alone: put quotes around the whole prompt."),
    ],
)
def test_a_word_without_an_option_is_a_prompt_where_there_is_one(typed: list[str], expected: str) -> None:
    line = CommandLine(arguments=typed, known=["ckpt_path", "prompt"], verb="generate")
    assert friendly_error("unrecognized arguments: world", line) == expected


def test_help_of_a_class_is_named_only_where_the_verb_has_it() -> None:
    for verb, known, more in (("generate", ["model"], "--help"), ("fit", ["model.compile"], "--model.help CLASS")):
        said = CommandLine(known=known, verb=verb).unknown("model.quantum", None)
        assert said == f"option --model.quantum is unknown: python -m lit_gpt {verb} {more} lists what there is."
