"""What a network predicts at each position of a text: nats and rank of the true token, and the likeliest tokens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from lit_gpt.generate import TextModel
from lit_gpt.loss import score

TOP = 10
#: Longest text. On a page, a token with the ten likeliest takes about 250 bytes.
_LONGEST = 20_000


@dataclass(frozen=True)
class ScoredToken:
    """A token of a text and its prediction.

    Attributes:
        id: Its id.
        nats: Its cross-entropy in nats.
        rank: 0 is the model's first choice.
        likeliest: Ids and probabilities of the likeliest tokens at its place, likeliest first. Empty: it is the first
            token and not scored, because nothing is before it.
    """

    id: int
    nats: float = 0.0
    rank: int = 0
    likeliest: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def score_tokens(model: TextModel, ids: list[int]) -> list[ScoredToken]:
    """Score each token, given those before it. The first follows the EOS token; without one it is not scored.

    A text that is longer than the network's context is read in windows, in which each scored token has at least half of
    the context before it.
    """
    if len(ids) > _LONGEST:
        raise UserError(f"the text has {len(ids):,} tokens: give a part of it, of at most {_LONGEST:,}.")
    eos = model.tokenizer.eos_id
    tokens = torch.tensor([ids if eos is None else [eos, *ids]], device=device_of(model.net))  # (1, N + 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]  # (1, N)
    scored = [] if eos is not None else [ScoredToken(id=i) for i in ids[:1]]
    for begin, new, end in _windows(targets.size(1), model.net.config.block_size):
        hidden = model.net.hidden(inputs[:, begin:end])[:, new - begin :]  # (1, n, C)
        scored += _scored(model.net, hidden, targets[:, new:end])
    if not any(token.likeliest for token in scored):
        raise UserError("the text is one token, which has nothing before it to be predicted from: give a longer one.")
    if not all(math.isfinite(token.nats) for token in scored):
        raise UserError("the model's predictions are not finite: give an earlier checkpoint of its run.")
    return scored


def device_of(net: Any) -> torch.device:
    """A network's device; a table of counts has no parameters."""
    device: torch.device = next(iter(net.state_dict().values())).device
    return device


def _windows(tokens: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first scored, end) of each window."""
    end = 0
    while end < tokens:
        new, step = end, max(block_size // 2, 1) if end else block_size
        end = min(end + step, tokens)
        yield max(end - block_size, 0), new, end


def _scored(net: Any, hidden: Tensor, targets: Tensor) -> Iterator[ScoredToken]:
    nats, rank = score(hidden, net.head, net.head_weights(), targets, net.config.vocab_size, net.linear_head)  # (1, n)
    best = [row for part in hidden[0].split(256) for row in likeliest(net.head(part))]  # 50 MB at GPT-2's vocabulary
    rows = zip(targets[0].tolist(), nats[0].tolist(), rank[0].tolist(), best, strict=True)
    return (ScoredToken(*row) for row in rows)


def likeliest(logits: Tensor, count: int = TOP) -> list[tuple[tuple[int, float], ...]]:
    """Ids and probabilities of the largest of logits (n, V). Of equal ones the lower id is first, as in a rank."""
    logits = logits.float()
    log_sum = logits.logsumexp(-1)  # (n,)
    least = logits.topk(min(count, logits.size(-1))).values[:, -1:]  # (n, 1)
    rows = []
    for row, at_least, total in zip(logits, logits >= least, log_sum, strict=True):
        ids = at_least.nonzero()[:, 0]
        order = row[ids].sort(descending=True, stable=True).indices[:count]
        rows.append(tuple(zip(ids[order].tolist(), (row[ids[order]] - total).exp().tolist(), strict=True)))
    return rows


def token_name(tokenizer: Any, token: int) -> str:
    """A token's text, printable; the network may know more ids than the tokenizer."""
    return tokenizer.token_text(token) if token < tokenizer.vocab_size else f"(id {token})"
