"""Checks of the network and its loss: initial loss, logits, gradients, and whether it can learn."""

import math
from collections import Counter

import torch
import torch.nn.functional as F

from lit_gpt.diagnostics.result import NotApplicableError, Outcome, check, listed
from lit_gpt.diagnostics.subject import Subject, one_target, places
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.protocols import Batch

#: The test of overfitting: its steps of AdamW, the learning rates that it tries, and the most rows and tokens. Most
#: networks learn fastest by the first rate; the encoder of `configs/compare_encoder.yaml` gets to 0.98 nats by it and
#: to 0.29 by the other.
STEPS, RATES, MAX_ROWS, MAX_TOKENS = 150, (1e-2, 1e-3), 4, 256


@check("first loss", "--model.config.init, or the reduction of the loss")
def first_loss(subject: Subject) -> Outcome:
    """A network that knows nothing has a loss of ln V, V the size of the vocabulary. Far above: initial weights too
    large, or a sum instead of a mean. Far below: it sees what it is to predict.
    """
    with subject.untouched():
        promised = subject.promised_loss()
        if promised is None:
            raise NotApplicableError("what this network's first loss should be is unknown")
        loss = float(subject.loss(subject.batch))
    right = abs(loss - promised) <= max(0.4, 0.1 * promised)
    return right, f"{loss:.3f} nats per token, {promised:.3f} expected"


@check("logits", "leave the softmax before the loss out")
def logits(subject: Subject) -> Outcome:
    """A cross-entropy takes logits. Given probabilities, its loss cannot fall below ln(1 + (V - 1) / e), and gradients
    nearly vanish.
    """
    with subject.stirred():
        found = subject.logits(subject.batch)
    if found is None:
        raise NotApplicableError("no log_softmax or logsumexp of the loss has a row for every target")
    total = found.float().sum(-1)  # (N,)
    probabilities = bool((found >= 0).all()) and bool(((total - 1).abs() < 1e-2).all())
    low, high = float(found.min()), float(found.max())
    return not probabilities, f"logits from {low:.3g} to {high:.3g}; their sum is {total.mean():.3g} on average"


@check("unscored targets", "ignore_index=-100, and divide by the number of scored targets")
def unscored_targets(subject: Subject) -> Outcome:
    """-100 marks pads and prompts. If they count, the loss is a mean over tokens that mean nothing, and differs with
    the padding.
    """
    targets = subject.batch["targets"]
    scored = targets != IGNORE_INDEX
    half = scored & (scored.flatten().cumsum(0).view_as(scored) % 3 == 0)  # every third one
    parts = [torch.where(part, targets, IGNORE_INDEX) for part in (half, scored & ~half)]
    if not half.any():
        raise NotApplicableError("a row of training has fewer than three scored targets")
    with subject.stirred(), torch.no_grad():
        whole, *losses = (float(subject.loss({**subject.batch, "targets": t})) for t in (targets, *parts))
    share = float(half.sum() / scored.sum())
    expected = share * losses[0] + (1 - share) * losses[1]
    detail = f"{whole:.4f} nats for all targets at once, {expected:.4f} from two parts of them"
    return math.isfinite(whole) and abs(whole - expected) < 1e-3 * max(1.0, abs(expected)), detail


@check("probabilities", "normalise in head(), or in token_scores() of the module")
def probabilities(subject: Subject) -> Outcome:
    """Perplexity is a claim about probabilities. A mixture or a cache that gives more than 1 in total makes any loss
    look low.
    """
    module = subject.need_own()
    V = module.config.vocab_size
    if V > 3000:
        raise NotApplicableError(f"the vocabulary of {V:,} is too large to score each token")
    ids = subject.batch["input_ids"][:1, :4].expand(V, -1).contiguous()  # (V, 4), all rows the same
    targets = torch.full_like(ids, IGNORE_INDEX)
    targets[:, -1] = torch.arange(V, device=ids.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with subject.stirred(), torch.no_grad():
        module.eval()
        batch = {"input_ids": ids, "targets": targets, "attention_mask": mask}
        if "document_ids" in subject.batch:  # a network may take running text alone
            batch["document_ids"] = torch.zeros_like(ids)
        nats, _ = module.token_scores(batch)
        total = float((-nats[:, -1].double()).exp().sum())
    return abs(total - 1) < 1e-3, f"probabilities of all {V:,} tokens after one context sum to {total:.6f}"


@check("gradients", "detach(), no_grad() and requires_grad in the network (on purpose: then ignore this line)")
def gradients(subject: Subject) -> Outcome:
    """A parameter without a gradient keeps its random weights: a detached part, a layer that is not used, or one that
    is frozen by mistake.
    """
    subject.need_learning()
    frozen = [name for name, p in subject.module.named_parameters() if not p.requires_grad]
    with subject.stirred():
        subject.loss(subject.batch, train=True).backward()
        trained = [(name, p.grad) for name, p in subject.module.named_parameters() if p.requires_grad]
        none = [name for name, grad in trained if grad is None or not grad.any()]
    parts = [f"{len(frozen)} frozen: {listed(frozen)}"] if frozen else []
    parts += [f"{len(none)} without a gradient: {listed(none)}"] if none else []
    return (False, "; ".join(parts)) if parts else (True, f"all {len(trained)} parameters have one")


@check(
    "overfits one batch",
    "the network, the loss and what is between them; --config configs/debug/overfit.yaml runs it at length",
)
def overfits(subject: Subject) -> Outcome:
    """A network that cannot learn a few rows by heart cannot learn a text: the shortest test of network, loss and
    gradient together.
    """
    subject.need_learning()
    T = subject.batch["input_ids"].size(1)
    batch = {name: value[: max(1, min(MAX_ROWS, MAX_TOKENS // T))] for name, value in subject.batch.items()}
    alone = _sees_one_token(subject, batch)
    limit = _entropy(batch, alone) + 0.3
    # A table of logits gets further by one step the larger the rate is, and there is nothing to unbalance.
    rates, loss = [10 * RATES[0]] if alone else RATES, math.inf
    for rate in rates:
        first, last = _losses(subject, batch, rate, limit)
        loss = min(last, loss)
        if loss < limit:
            break
    detail = f"{first:.3f} to {loss:.3f} nats in at most {STEPS} steps, below {limit:.2f} expected"
    return loss < limit, detail + " of a network that sees one token" * alone


def _losses(subject: Subject, batch: Batch, rate: float, limit: float) -> tuple[float, float]:
    """The loss of a batch before and after at most `STEPS` steps on it, or as few as get it below the limit."""
    with subject.untouched():
        optimizer = torch.optim.AdamW([p for p in subject.module.parameters() if p.requires_grad], rate)
        first = loss = subject.loss(batch)
        for _step in range(STEPS):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss = subject.loss(batch)
            if loss < limit:
                break
        found = subject.logits(batch) if subject.own is None else None
        if found is not None:  # without label smoothing, which keeps a loss high
            loss = torch.minimum(loss, F.cross_entropy(found.float(), batch["targets"].flatten()))
    return float(first), float(loss)


def _entropy(batch: Batch, alone: bool) -> float:
    """The lowest loss of the batch: near 0, or for a network that sees a token ``alone``, the bigrams' entropy."""
    ids, targets = batch["input_ids"], batch["targets"]
    documents = batch.get("document_ids", torch.zeros_like(ids))
    pairs = list[tuple[tuple[int, ...], int]]()
    for r, t in (targets != IGNORE_INDEX).nonzero().tolist():
        start = t if alone else int((documents[r, : t + 1] == documents[r, t]).nonzero()[0])
        pairs.append((tuple(ids[r, start : t + 1].tolist()), int(targets[r, t])))
    both, contexts = Counter(pairs), Counter(context for context, _ in pairs)
    return -sum(n * math.log(n / contexts[context]) for (context, _), n in both.items()) / max(len(pairs), 1)


def _sees_one_token(subject: Subject, batch: Batch) -> bool:
    """Whether the loss of a target depends on its input token alone, as in a bigram model."""
    t = places(batch)[-1]
    before = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    before[0, :t] = True
    with subject.stirred():
        return t > 0 and subject.moved(one_target(batch, 0, t), before) == 0


@check("finite numbers", "--trainer.precision, the value that masks attention, and eps of norms")
def finite(subject: Subject) -> Outcome:
    """A NaN spreads to every weight in one step. It comes from rows without any visible token, or from numbers that a
    small float cannot hold.
    """
    precision, batch = str(subject.options.get("precision") or "32-true"), subject.batch
    wrong = []
    empty = {name: value.clone() for name, value in batch.items()}
    empty["targets"][-1] = IGNORE_INDEX
    if "attention_mask" in empty:
        empty["attention_mask"][-1] = False
    if "document_ids" in empty:
        empty["document_ids"][-1] = -1
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16 if precision.startswith("16") else None
    cases = [("", batch)] + ([("with an empty row", empty)] if len(batch["targets"]) > 1 else [])
    for case, rows in cases:
        with subject.untouched():
            with torch.autocast(subject.module.device.type, dtype, enabled=dtype is not None):
                loss = subject.loss(rows, train=True)
            if loss.requires_grad:
                loss.backward()
            bad = [
                n for n, p in subject.module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
            ]
        if not loss.isfinite() or bad:
            wrong.append(f"loss {float(loss)} {case}".strip() + (f", gradients of {listed(bad)}" if bad else ""))
    return (
        (False, f"in {precision}: " + "; ".join(wrong))
        if wrong
        else (True, f"loss and gradients are finite in {precision}")
    )


@check("ids within the logits", "--model.config.vocab_size, left out: the tokenizer's")
def ids_in_range(subject: Subject) -> Outcome:
    """An id that the embedding or the logits do not have stops a run on a CPU and destroys its memory on a GPU."""
    with subject.untouched():
        found = subject.logits(subject.batch) if subject.own is None else None
    V = subject.own.config.vocab_size if subject.own is not None else found.size(-1) if found is not None else None
    if V is None:
        raise NotApplicableError("the vocabulary of this module is unknown")
    tokens = max(subject.tokens, subject.text.vocab_size or 0)
    return tokens <= V, f"{tokens:,} ids in the data, {V:,} in the network"
