"""Options that are read without jsonargparse have the values that jsonargparse reads."""

from typing import Any

import pytest
from jsonargparse import auto_cli

from datamodules.errors import UserError
from lit_gpt.__main__ import _dispatch
from lit_gpt.cli.plain_options import plain_options


def verb(
    path: str,
    text: str = "",
    number: int = 1,
    limit: int | None = None,
    share: float = 0.5,
    least: float | None = None,
    loud: bool = False,
    model: str | None = None,
    many: list[str] | str = [],  # noqa: B006
) -> dict[str, Any]:
    """Return the options."""
    return {**locals()}


TEXTS = ["a b", "é\u2028", "null", "None", "~", "1", "1e3", "true", "{a: 1}", "[1", "@x", "a=b", "a: b", "#", "%d"]
PLAIN = [["--text", text] for text in TEXTS] + [
    ["--number", "0"],
    ["--number", "123"],
    ["--limit", "7"],
    ["--share", "0.25"],
    ["--share", "3.10"],
    ["--least", "0.000000001"],
    ["--loud", "true"],
    ["--loud", "false"],
    ["--model", "mine.LitGRU"],
    ["--model", "true"],
    ["--model", "e1"],
]
LEFT = [
    ["--number", "010"],
    ["--number", "1.0"],
    ["--number", "-1"],
    ["--number", "1_000"],
    ["--limit", "null"],
    ["--share", "1e-3"],
    ["--share", "nan"],
    ["--loud", "yes"],
    ["--loud"],
    *(["--model", text] for text in ("NULL", "None", " null", "~ ", "&a", "# a", "1", "a b")),
    ["--text", "--number"],
    ["--text", "-"],
    ["--text", ""],
    ["--text=a"],
    ["--tex", "a"],
    ["--many", "a"],
    ["--number", "1", "--number", "2"],
    ["--config", "a.yaml"],
    ["--help"],
    ["text", "a"],
]


@pytest.mark.parametrize("options", PLAIN, ids=" ".join)
def test_plain_values_are_those_of_jsonargparse(options: list[str]) -> None:
    arguments = ["--path", "x.ckpt", *options]
    read = plain_options(verb, arguments)
    assert read is not None
    expected = auto_cli(verb, args=arguments, as_positional=False, exit_on_error=False)
    assert repr(verb(**read)) == repr(expected)  # by repr, because 1 == 1.0 == True


@pytest.mark.parametrize("options", LEFT, ids=" ".join)
def test_whatever_else_is_left_to_jsonargparse(options: list[str]) -> None:
    assert plain_options(verb, ["--path", "x.ckpt", *options]) is None


def test_a_required_option_that_is_missing_is_left_to_jsonargparse() -> None:
    assert plain_options(verb, ["--text", "a"]) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "-x"], "option --prompt has no value: if -x is one, write --prompt=-x."),
        (["--prompt", "--hello"], "option --hello is unknown: if it is the value of --prompt, write --prompt=--hello."),
        (["--prompt", "--top_q", "3"], "option --top_q is unknown: did you mean --top_k 3?"),
        (["--prompt"], "option --prompt has no value: write one after it."),
        (["--", "x"], "-- alone is no option: leave it out."),
        (["--"], "-- alone is no option: leave it out."),
        (["--config", "no.yaml"], "config 'no.yaml' does not exist: give the path of a YAML file."),
        (["--config=no.yaml"], "config 'no.yaml' does not exist: give the path of a YAML file."),
    ],
    ids=str,
)
def test_a_command_line_that_cannot_be_read_is_answered_with_the_fix(options: list[str], said: str) -> None:
    arguments = ["--ckpt_path", "x.ckpt", *options]
    with pytest.raises(UserError) as refused:
        _dispatch("generate", arguments)
    assert str(refused.value) == said
