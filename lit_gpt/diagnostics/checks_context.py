"""Checks of what each token sees: later tokens, other documents, pads, cached tokens."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from lit_gpt.diagnostics.result import NotApplicableError, Outcome, check
from lit_gpt.diagnostics.subject import Subject, one_target, places
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.protocols import Batch

#: A change of the loss that rounding may cause on a GPU, as a share of the change that a token's own id causes.
ROUNDING = 1e-3


@check("causality", "the attention mask, shifts (roll) and sums over time or over the batch")
def causality(subject: Subject) -> Outcome:
    """A token that sees those after it learns to copy its target: training loss goes to zero, and the model writes
    nonsense. An encoder must see them.
    """
    if subject.own is not None and not subject.own.net.causal:
        return _sees_both_sides(subject)
    batch, worst = subject.batch, 0.0
    # On a CPU a loss stays the same to the last bits. A GPU's kernels may differ in them.
    exact, allowed = (1e-7, 0.0) if subject.module.device.type == "cpu" else (1e-4, ROUNDING)
    spots, last = [(0, t) for t in places(batch)], len(batch["targets"]) - 1
    if (batch["targets"][last, :-1] != IGNORE_INDEX).any():
        spots.append((last, places(batch, last)[-1]))  # a layer that takes rows for time shows it the rows before
    with subject.stirred():
        for train in (False, True):
            for row, t in spots:
                target = one_target(batch, row, t)
                later = torch.ones_like(batch["input_ids"], dtype=torch.bool)
                later[row, : t + 1] = False  # all later tokens, and all other rows
                moved = subject.moved(target, later, train)
                own = ~later & (torch.arange(later.size(1), device=later.device) == t)
                share = moved / max(subject.moved(target, own, train), 1e-3)
                worst = max(worst, share if moved > exact else 0.0)
    detail = f"later tokens and other rows change a token's loss {worst:.2g} times as much as its own id does"
    return worst <= allowed, detail


def _sees_both_sides(subject: Subject) -> Outcome:
    """For an encoder: tokens on both sides of a masked one change its loss, and other rows do not."""
    batch, least, others = subject.batch, math.inf, 0.0
    place = torch.arange(batch["targets"].size(1), device=batch["targets"].device)
    real = batch.get("attention_mask", torch.ones_like(batch["targets"], dtype=torch.bool))
    documents = batch.get("document_ids", torch.zeros_like(batch["targets"]))
    own_row = torch.zeros_like(real)
    own_row[0] = True
    with subject.stirred():
        for t in places(batch):
            target, same = one_target(batch, 0, t), own_row & real & (documents == documents[0, t])
            for side in (same & (place < t), same & (place > t)):
                if side.any():
                    least = min(least, subject.moved(target, side))
            others = max(others, subject.moved(target, ~own_row)) if len(real) > 1 else 0.0
    detail = f"tokens on each side change the loss of a masked one by at least {least:.2g} nats"
    return least > 1e-5 and others < 1e-4, f"{detail}, other rows by at most {others:.2g}"


@check("input of each target", "shift once: in the data (here) or in the module, not in both")
def input_of_each_target(subject: Subject) -> Outcome:
    """targets[i] follows input_ids[i]. A module that shifts once more trains each token on the one after the next; one
    that reads targets gets the answer with the question.
    """
    batch, moves = subject.batch, list[float]()
    with subject.stirred():
        for t in places(batch):
            own = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
            own[0, t] = True
            moves.append(subject.moved(one_target(batch, 0, t), own))
        peek = _peek(subject)
    if peek:
        return False, "the logits change with the targets"
    return min(moves) > 1e-5, f"the id before a target changes its loss by at least {min(moves):.2g} nats"


def _peek(subject: Subject) -> bool:
    """Whether logits depend on targets."""
    batch = subject.batch
    other = torch.where(
        batch["targets"] == IGNORE_INDEX, IGNORE_INDEX, subject.changed(batch["targets"], batch["targets"] >= 0)
    )
    before, after = (subject.logits(b) for b in (batch, {**batch, "targets": other}))
    if before is None or after is None or before.shape != after.shape:
        return False
    if subject.own is not None and before.size(-1) != subject.own.config.vocab_size:
        return False  # a sampled softmax: which logits are computed depends on the targets
    return not torch.equal(before, after)


@check("short rows", "make positions and masks from the length of the row, not from block_size or the width")
def short_rows(subject: Subject) -> Outcome:
    """Prompts and the last row of a text are shorter than the block. Positions or masks that are made for the full
    block stop there, or give other logits.
    """
    subject.need_causal()
    batch = subject.batch
    T = batch["input_ids"].size(1)
    if T < 2:
        raise NotApplicableError("rows have one token")
    worst = _change_alone(subject, [(batch, 0, length) for length in {1, T // 2, T - 1}])
    return worst < 1e-3, f"the start of a row, cut off, changes its loss by at most {worst:.2g} nats"


def _change_alone(subject: Subject, spans: list[tuple[Batch, int, int]]) -> float:
    """By how much the loss of a part of some rows, from one position to another, changes if nothing else is there."""
    differences = [0.0]
    with subject.stirred(), torch.no_grad():
        for batch, low, high in spans:
            alone = {name: value[:, low:high] for name, value in batch.items() if value.ndim == 2}
            if (alone["targets"] == IGNORE_INDEX).all():
                continue
            place = torch.arange(batch["targets"].size(1), device=batch["targets"].device)
            inside = torch.where((place >= low) & (place < high), batch["targets"], IGNORE_INDEX)
            differences.append(abs(float(subject.loss({**batch, "targets": inside}) - subject.loss(alone))))
    return max(differences)


@check("documents", "pass document_ids to the attention mask and to positions, or --data.rows padded")
def documents(subject: Subject) -> Outcome:
    """Packed rows hold several documents. One that sees another, or whose positions go on from it, learns what is
    never there when it generates.
    """
    batch = subject.rows
    if "document_ids" not in batch:
        raise NotApplicableError("rows are not packed: there are no document_ids")
    spans = [
        (r, *span) for r in range(min(len(batch["targets"]), 200)) for span in _spans(batch["document_ids"][r])[1:2]
    ]
    if not spans:
        raise NotApplicableError("no row holds a second document")
    found = [
        ({name: v[row : row + 1].to(subject.module.device) for name, v in batch.items()}, low, high)
        for row, low, high in spans[:3]
    ]
    worst = _change_alone(subject, found)
    return worst < 1e-3, f"a second document, alone in a row, changes its loss by at most {worst:.2g} nats"


def _spans(ids: Tensor) -> list[tuple[int, int]]:
    """Start and end of each document of a row, without padding."""
    borders = [0, *((ids[1:] != ids[:-1]).nonzero().flatten() + 1).tolist(), len(ids)]
    return [(low, high) for low, high in pairwise(borders) if ids[low] >= 0]


@check("KV cache", "new_cache and hidden(cache=...) of the network")
def kv_cache(subject: Subject) -> Outcome:
    """Generation with a cache must give the logits that training gives: positions and masks of cached tokens are a
    usual mistake.
    """
    net = subject.need_own().net
    ids = subject.batch["input_ids"][:2, : min(12, subject.batch["input_ids"].size(1))]
    with subject.stirred(), torch.no_grad():
        net.eval()
        cache = net.new_cache(len(ids))
        if cache is None:
            raise NotApplicableError("this network has no cache")
        full, start = net(ids), max(1, ids.size(1) // 2)
        parts = [net(ids[:, :start], cache=cache)]
        parts += [net(ids[:, t : t + 1], cache=cache) for t in range(start, ids.size(1))]
        worst = float((torch.cat(parts, 1) - full).abs().max())
    return worst < 1e-3 * max(1.0, float(full.abs().max())), f"logits differ by up to {worst:.2g} with a cache"


@check("padding", "attention_mask in hidden() of the network")
def padding(subject: Subject) -> Outcome:
    """Prompts of different length are padded on the left for generation. A prompt that sees pads, or whose positions
    count them, is continued worse.
    """
    net = subject.need_own().net
    T = subject.batch["input_ids"].size(1)
    if T < 3:
        raise NotApplicableError("rows are too short to pad")
    ids = subject.batch["input_ids"][:1, : T - 2]
    with subject.stirred(), torch.no_grad():
        net.eval()
        padded = torch.cat((ids[:, -2:], ids), 1)  # what stands there must not matter
        mask = torch.ones_like(padded, dtype=torch.bool)
        mask[:, :2] = False
        logits = net(padded, attention_mask=mask)
        worst = float((logits[:, 2:] - net(ids)).abs().max())
        empty = bool(logits.isfinite().all())
    detail = f"logits differ by up to {worst:.2g} behind two pads" + ("" if empty else ", and those of pads are NaN")
    return worst < 1e-2 and empty, detail
