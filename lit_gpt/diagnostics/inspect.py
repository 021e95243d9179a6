"""``inspect``: shows how surprised a model is by each token of a text."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import UserError
from datamodules.sources import open_source
from lit_gpt.checkpoint import load
from lit_gpt.commands.generate import usable_device
from lit_gpt.diagnostics.page import check_page, write_page
from lit_gpt.diagnostics.scores import ScoredToken, score_tokens, token_name
from lit_gpt.diagnostics.shown import cells
from lit_gpt.generate import TextModel


def inspect(
    ckpt_path: str,
    text: str = "",
    file: str | None = None,
    at: int | None = None,
    out: str | None = None,
    device: str = "auto",
    model: str | None = None,
) -> None:
    """Show the nats (surprisal), rank and probability of every token of a text.

    The first token is scored after the EOS token; a vocabulary without one does not score it. A text longer than the
    model's context is read in windows, in which each token has at least half of the context before it.

    Args:
        ckpt_path: A checkpoint that fit saved, or a run's folder, for its best.ckpt. Nothing else is needed.
        text: The text to score.
        file: A file of UTF-8 text to score instead (.gz too).
        at: Show only this token, numbered from 0: the ten likeliest tokens at its place.
        out: Write an HTML page instead, on which the mouse shows the ten likeliest tokens at every place.
        device: The device to run on, such as cpu or cuda:1; auto takes a GPU if there is one.
        model: The LightningModule that was trained, if it is a class of your own, such as mine.LitGRU.
    """
    if bool(text) == bool(file):
        raise UserError("inspect needs one text: give --text TEXT or --file PATH.")
    if out and at is not None:
        raise UserError(
            "--at is for the terminal: leave it out, because the page shows every place, or leave out --out."
        )
    if out:
        check_page(out)
    text_model = load(ckpt_path, usable_device(device), model)
    content = text or "".join(open_source(str(file)).documents())
    tokens = score_tokens(text_model, text_model.tokenizer.encode(content))
    if out:
        write_page(out, "inspect.html", _page_data(text_model, tokens, ckpt_path))
        print(f"wrote {len(tokens)} tokens to {out}")
        return
    console = Console(highlight=False, markup=False, emoji=False)
    shown = _whole_text(text_model, tokens, console) if at is None else [_place(text_model, tokens, at)]
    console.print(_summary(tokens), *shown, sep="\n")


def _summary(tokens: list[ScoredToken]) -> str:
    """Means over the scored tokens."""
    scored = [token for token in tokens if token.likeliest]
    mean = sum(token.nats for token in scored) / len(scored)
    top1, top5 = (sum(token.rank < k for token in scored) / len(scored) for k in (1, 5))
    return f"{len(scored)} tokens scored: {mean:.4f} nats each, top-1 {top1:.1%}, top-5 {top5:.1%}"


def _whole_text(model: TextModel, tokens: list[ScoredToken], console: Console) -> list[Any]:
    """The table of all tokens and, where colours can be shown, the text."""
    table = Table("at", "token", "nats", "probability", "rank", "first choice", box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "left" if column.header in ("token", "first choice") else "right"
    most = most_nats(model)
    for place, token in enumerate(tokens):
        table.add_row(str(place), _quoted(model, token.id), *(_columns(model, token, most) if token.likeliest else ()))
    if not console.is_terminal or console.no_color:
        return [table]
    caption = f"colour: white 0 nats, red {most:.1f} or more, those of a uniform guess"
    return [table, "", _coloured(model, tokens, most), caption]


def _columns(model: TextModel, token: ScoredToken, most: float) -> list[Any]:
    first, probability = token.likeliest[0]
    nats = Text(f"{token.nats:.3f}", style=_style(token.nats, most))
    return [nats, _decimal(math.exp(-token.nats)), str(token.rank), f"{_quoted(model, first)} {_decimal(probability)}"]


def _quoted(model: TextModel, token: int) -> str:
    return f"'{token_name(model.tokenizer, token)}'"


def _decimal(probability: float) -> str:
    return f"{probability:.4f}" if probability >= 0.0001 else f"{probability:.0e}"


def most_nats(model: TextModel) -> float:
    """Nats at which the colour is strongest: those of a uniform guess among all tokens."""
    return math.log(max(model.tokenizer.vocab_size, 2))


def _style(nats: float, most: float) -> str:
    pale = round(255 * (1 - min(nats / most, 1)))
    return f"black on rgb(255,{max(pale, 90)},{max(pale, 70)})"


def _coloured(model: TextModel, tokens: list[ScoredToken], most: float) -> Text:
    """The text with the nats as colour. A character of several tokens has their sum."""
    text = Text()
    for shown, members in cells([model.tokenizer.decode_bytes([token.id]) for token in tokens]):
        scored = [tokens[i] for i in members if tokens[i].likeliest]
        text.append(shown, style=_style(sum(token.nats for token in scored), most) if scored else "")
    return text


def _place(model: TextModel, tokens: list[ScoredToken], at: int) -> Table:
    """The likeliest tokens at one place, and the true one."""
    first = 0 if tokens[0].likeliest else 1
    if not first <= at < len(tokens):
        raise UserError(f"--at {at} is no scored token of this text: give {first} to {len(tokens) - 1}.")
    token = tokens[at]
    before = "".join(token_name(model.tokenizer, t.id) for t in tokens[max(at - 40, 0) : at])[-60:]
    table = Table("rank", "token", "probability", "", title=f"token {at}, after '{before}'", box=None)
    rows = [(rank, *best) for rank, best in enumerate(token.likeliest)]
    if token.rank >= len(rows):
        rows.append((token.rank, token.id, math.exp(-token.nats)))
    for rank, one, probability in rows:
        bar = "\u2588" * round(20 * probability)
        mark = " <- the text" if one == token.id else ""
        table.add_row(str(rank), _quoted(model, one), _decimal(probability), Text(bar + mark))
    return table


def _page_data(model: TextModel, tokens: list[ScoredToken], ckpt_path: str) -> dict[str, Any]:
    ids = {i for token in tokens for i in (token.id, *dict(token.likeliest))}
    return {
        "checkpoint": str(Path(ckpt_path)),
        "summary": _summary(tokens),
        "most": round(most_nats(model), 4),
        "names": {str(i): token_name(model.tokenizer, i) for i in ids},
        "cells": cells([model.tokenizer.decode_bytes([token.id]) for token in tokens]),
        "tokens": [
            [t.id, round(t.nats, 4) if t.likeliest else None, t.rank, [[i, round(p, 5)] for i, p in t.likeliest]]
            for t in tokens
        ],
    }
