"""The pages of inspect and report in a browser: scripts run, charts are drawn, nothing overlaps a phone's edge."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lit_gpt.commands import run
from lit_gpt.diagnostics.page import write_page
from tests.diagnostics.conftest import Write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
#: Collects what the page looks like once its own scripts have run.
PROBE = """<script>
const seen = %s;
const root = document.documentElement;
seen.errors = errors; seen.wide = root.scrollWidth; seen.room = root.clientWidth;
seen.dark = getComputedStyle(document.body).backgroundColor;
parent.document.body.textContent = "SEEN" + JSON.stringify(seen) + "END";
</script></body>"""
EARLY = "<script>const errors = []; addEventListener('error', e => errors.push(String(e.message)));</script>"


def seen_in(page: Path, probe: str, width: int, scheme: int, folder: Path) -> dict[str, Any]:
    """What ``probe``, an object literal, finds on a page. Scheme 0 is dark, 1 light."""
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{EARLY}").replace("</body>", PROBE % probe)
    probed = folder / f"probed{width}{scheme}.html"
    frame = f'<iframe style="width:{width}px;height:800px" srcdoc="{html.escape(text)}"></iframe>'
    probed.write_text(frame, encoding="utf-8")  # a window is 500 wide at least
    command = [
        *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'chromium'}"),
        *("--window-size=1400,900", f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom"),
        probed.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = re.search("SEEN(.*)END", done.stdout)
    assert found, done.stdout[-2000:]
    return json.loads(html.unescape(found[1]))


REPORT = """{
  charts: document.querySelectorAll("#charts .u-wrap canvas").length,
  titles: [...document.querySelectorAll("#charts h3")].map(e => e.textContent),
  metrics: [...document.querySelectorAll("#metrics tr")].map(r => [...r.cells].map(c => c.textContent)),
  tip: (() => { plots[0].setCursor({left: 5, top: 5}); return plots[0].over.querySelector(".tip").innerText; })(),
  seconds: (() => { const s = document.getElementById("axis"); s.value = "seconds"; s.onchange();
    return plots[0].data[0]; })(),
  single: (() => { document.querySelector("#controls input").click();
    return plots[0].series.filter(s => s.of).length; })(),
}"""


@pytest.mark.parametrize(("width", "scheme"), [(390, 0), (1280, 1)])
def test_the_report_is_drawn_at_two_widths_light_and_dark(
    width: int, scheme: int, write: Write, tmp_path: Path
) -> None:
    for seed in (1, 2):
        write(f"a/version_{seed}", seed)
    write("a-long-name-of-a-run-that-does-not-fit-a-phone/version_0", 3, width=64)
    page = tmp_path / "page.html"
    run("report", [str(tmp_path / "logs"), "--out", str(page)])
    seen = seen_in(page, REPORT, width, scheme, tmp_path)
    assert not seen["errors"]
    assert width - 20 <= seen["wide"] == seen["room"] <= width
    assert (seen["dark"] == "rgb(255, 255, 255)") == bool(scheme)
    assert seen["titles"][:2] == ["loss (nats per token)", "top1 (share of targets)"]
    assert seen["charts"] == len(seen["titles"])
    rows = seen["metrics"]
    assert [rows[1][i] for i in (1, 2, 6)] == ["last 20", "train", "32,000"]
    assert rows[2][2:4] == ["val", "3.9500 ± 0.0707"]
    assert "val 4.05 ± 0.071 at 10: a (seeds 1, 2)" in seen["tip"]
    assert seen["seconds"] == [5, 10]
    assert seen["single"] == 9  # three runs, each with loss of train, val and train_eval


INSPECT = """{
  text: document.getElementById("text").textContent,
  panel: (() => { document.querySelectorAll("#text span")[1].dispatchEvent(new Event("mouseenter"));
    return document.getElementById("panel").innerText; })(),
}"""


def test_a_token_under_the_mouse_shows_its_rank(tmp_path: Path) -> None:
    tokens = [[0, None, None, []], [1, 0.6931, 1, [[0, 0.5], [1, 0.5]]]]
    names, cells = {"0": "<b>", "1": "\u05e9"}, [["<b>", [0]], ["\u05e9", [1]]]
    data = {"checkpoint": "x.ckpt", "summary": "s", "most": 3.0, "names": names, "cells": cells, "tokens": tokens}
    write_page(str(tmp_path / "p.html"), "inspect.html", data)
    seen = seen_in(tmp_path / "p.html", INSPECT, 390, 0, tmp_path)
    assert not seen["errors"]
    assert 370 <= seen["wide"] == seen["room"] <= 390
    assert seen["text"] == "<b>\u05e9"
    assert "token 1: '\u05e9'" in seen["panel"]
    assert "0.693 nats, probability 50.00 %, rank 1" in seen["panel"]
    assert "'<b>'" in seen["panel"]
