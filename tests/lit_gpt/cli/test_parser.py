"""Settings of the parser."""

from types import SimpleNamespace
from typing import Any, Union

import pytest

from lit_gpt.cli.parser import StrictParser


def parsed(hint: Any, value: str) -> Any:
    """The value of an option of a type. The type is made here, as the order of a cached union is that of another."""

    class Takes(SimpleNamespace):
        def __init__(self, option: Any = None) -> None: ...

    Takes.__init__.__annotations__["option"] = hint
    parser = StrictParser(exit_on_error=False)
    parser.add_class_arguments(Takes, "takes")
    return parser.parse_args(["--takes.option", value]).takes.option


@pytest.mark.parametrize("hint", [Union[float, int, None], float | int, float | str | int | None, int | float])  # noqa: UP007
@pytest.mark.parametrize("value", ["1", "0.5", "1.0"])
def test_a_number_is_read_as_it_is_written_whatever_the_order_of_the_types(hint: Any, value: str) -> None:
    found, number = parsed(hint, value), int(value) if value.isdecimal() else float(value)
    assert (type(found), found) == (type(number), number)
