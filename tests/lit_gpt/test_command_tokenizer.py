"""``tokenizer train | eval | export``, through the command line's own parser."""

import json
import shlex
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library

from datamodules.errors import UserError
from datamodules.synthetic import headlines
from datamodules.tokenizers import load_tokenizer
from lit_gpt.commands import run


@pytest.fixture
def titles(tmp_path: Path) -> Path:
    path = tmp_path / "titles.txt"
    path.write_text("\n".join(headlines(1000)), encoding="utf-8")
    return path


def test_train_eval_export(titles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, exported = tmp_path / "bpe.json", tmp_path / "hf" / "tokenizer.json"
    run("tokenizer", ["train", "--source", str(titles), "--out", str(out), "--vocab_size", "600"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--data.source {titles} --data.tokenizer {out}")
    tokenizer = load_tokenizer(out)
    assert tokenizer.vocab_size == 600

    run("tokenizer", ["eval", "--tokenizer", str(out), "--source", str(titles)])
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    text = titles.read_text(encoding="utf-8")
    tokens = len(tokenizer.encode(text))
    assert facts["tokens"] == f"{tokens:,}"
    assert facts["bytes per token"] == f"{len(text.encode()) / tokens:.3f}"
    assert facts["round trip"] == "exact"

    run("tokenizer", ["export", "--tokenizer", str(out), "--out", str(exported)])
    assert Library.from_file(str(exported)).encode(text).ids == tokenizer.encode(text)
    assert load_tokenizer(exported).fingerprint == tokenizer.fingerprint


def test_lines_of_a_table_and_an_alphabet_that_lacks_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(json.dumps({"title": title, "n": "é"}) for title in headlines(50)))
    column = ["--source", str(table), "--documents", "column", "--column", "title"]
    run("tokenizer", ["train", *column, "--out", str(tmp_path / "c.json"), "--kind", "char"])
    run("tokenizer", ["eval", *column, "--tokenizer", str(tmp_path / "c.json")])
    assert "exact" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"'é' .* not among"):
        run("tokenizer", ["eval", *column[:-1], "n", "--tokenizer", str(tmp_path / "c.json")])


def test_the_lines_to_type_next_read_the_text_as_it_was_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "my titles.jsonl", tmp_path / "my tokens.json"
    table.write_text("\n".join(json.dumps({"my title": title}) for title in headlines(50)))
    how = ["--source", str(table), "--documents", "column", "--column", "my title"]
    run("tokenizer", ["train", *how, "--out", str(out), "--vocab_size", "300"])
    judge, use = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert judge[-8:] == ["--tokenizer", str(out), *how]
    assert use[-8:] == [*(word.replace("--", "--data.") for word in how), "--data.tokenizer", str(out)]
    run("tokenizer", judge[judge.index("tokenizer") + 1 :])
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-2:] == ["--data.tokenizer", str(out)]
    run("tokenizer", ["export", "--tokenizer", str(out), "--out", str(tmp_path / "an export.json")])
    assert f"--data.tokenizer '{tmp_path / 'an export.json'}'" in capsys.readouterr().out


def test_a_text_with_too_little_to_merge_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("aaab")
    run("tokenizer", ["train", "--source", str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.json")])
    assert "fewer than 16,000" in capsys.readouterr().out
