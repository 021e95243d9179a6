"""Writes one self-contained HTML page: styles, scripts and data are inside it, so it opens without a network."""

import json
import re
from pathlib import Path
from typing import Any

from datamodules.files import write_text
from lit_gpt.outputs import check_output

_HERE = Path(__file__).parent
#: How every page begins, so that a later page may overwrite it, and no other file is.
_MARK = "<!doctype html>\n<!-- written by lit_gpt -->\n"


def check_page(out: str) -> None:
    """Refuse to overwrite a file that is no page of ours."""
    check_output("--out", out, "page", _is_ours)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MARK)) == _MARK.encode()


def write_page(out: str, template: str, data: Any) -> None:
    """Fill a template and write it.

    A template's ``{{FILE}}`` becomes the content of that file, and ``{{data}}`` the data as JSON.

    Args:
        out: The file to write.
        template: Its name below ``templates``.
        data: Plain values without NaN, for the page's script.
    """
    check_page(out)
    body = (_HERE / "templates" / template).read_text(encoding="utf-8")
    write_text(out, _MARK + re.sub(r"\{\{([\w./]+)\}\}", lambda found: _part(found[1], data), body))


def _part(name: str, data: Any) -> str:
    return as_json(data) if name == "data" else (_HERE / name).read_text(encoding="utf-8")


def as_json(data: Any) -> str:
    """JSON of ASCII characters for a ``script`` element, which no text in it can end: ``<`` is escaped."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
