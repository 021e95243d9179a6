"""Checks of what each token sees: later tokens, other documents, pads, cached tokens."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from lit_gpt.diagnostics.result import NotApplicableError, Outcome, check, failed, judged
from lit_gpt.diagnostics.subject import Subject, one_target, places
from lit_gpt.loss import IGNORE_INDEX

#: A change of the loss that rounding may cause on a GPU, as a share of the change that a token's own id causes.
ROUNDING = 1e-3


def _exact(subject: Subject) -> float:
    """The largest change of a loss that is none: a GPU's kernels may differ in the last bits."""
    return 1e-7 if subject.module.device.type == "cpu" else 1e-4


@check("causality", "the attention mask, shifts (roll) and sums over time or over the batch")
def causality(subject: Subject) -> Outcome:
    """A token that sees those after it learns to copy its target: training loss goes to zero, and the model writes
    nonsense.
    """
    batch, worst = subject.batch, 0.0
    with subject.stirred():
        for train in (False, True):
            for t in places(batch):
                target = one_target(batch, 0, t)
                later = torch.ones_like(batch["input_ids"], dtype=torch.bool)
                later[0, : t + 1] = False  # all later tokens, and all other rows
                moved = subject.moved(target, later, train)
                own = ~later & (torch.arange(later.size(1), device=later.device) == t)
                share = moved / max(subject.moved(target, own, train), 1e-3)
                worst = max(worst, share if moved > _exact(subject) else 0.0)
    detail = "later tokens and other rows move the loss of a token by"
    return judged(
        worst <= (0.0 if _exact(subject) < 1e-6 else ROUNDING), f"{detail} {worst:.2g} of what its own id does"
    )


@check("causality by gradient", "the attention mask, shifts (roll) and sums over time")
def causality_by_gradient(subject: Subject) -> Outcome:
    """The same as causality, by the gradient of one token's loss with respect to the embeddings of later tokens: it
    also finds a leak that is small.
    """
    batch, found = subject.batch, list[Tensor]()
    B, T = batch["input_ids"].shape
    embeddings = [m for m in subject.module.modules() if isinstance(m, nn.Embedding)]

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if output.shape[:2] == (B, T):  # positions are (T, C)
            found.append(output if output.requires_grad else output.detach().requires_grad_())
            return found[-1]
        return output

    with subject.stirred():
        hooks = [module.register_forward_hook(keep) for module in embeddings]
        try:
            t = places(batch)[-1] if T < 3 else places(batch)[len(places(batch)) // 2]
            loss = subject.loss(one_target(batch, 0, t))
        finally:
            for hook in hooks:
                hook.remove()
        if not found or not loss.requires_grad:
            raise NotApplicableError("no nn.Embedding gives a vector for each token")
        gradients = [g for g in torch.autograd.grad(loss, found, allow_unused=True) if g is not None]
    later = max((float(g[0, t + 1 :].abs().max()) for g in gradients), default=0.0)
    before = max((float(g[0, : t + 1].abs().max()) for g in gradients), default=0.0)
    return judged(later <= ROUNDING * 1e-3 * before, f"{later:.2g} after the token, {before:.2g} up to it")


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
        return failed("the logits change with the targets")
    return judged(min(moves) > 1e-5, f"the id before a target moves its loss by {min(moves):.2g} at least")


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
    batch = subject.batch
    T = batch["input_ids"].size(1)
    if T < 2:
        raise NotApplicableError("rows have one token")
    with subject.stirred(), torch.no_grad():
        differences = []
        for length in {1, T // 2, T - 1}:
            short = {name: value[:, :length] for name, value in batch.items() if value.ndim == 2}
            if not (short["targets"] != IGNORE_INDEX).any():
                continue
            hidden = torch.where(
                torch.arange(T, device=batch["targets"].device) < length, batch["targets"], IGNORE_INDEX
            )
            losses = (subject.loss(short), subject.loss({**batch, "targets": hidden}))
            differences.append(abs(float(losses[0]) - float(losses[1])))
    worst = max(differences, default=0.0)
    return judged(worst < 1e-3, f"the start of a row alone has the loss that it has in the row, up to {worst:.2g}")


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
    differences = []
    with subject.stirred(), torch.no_grad():
        for row, low, high in spans[:3]:
            there = {n: v[row : row + 1].to(subject.module.device) for n, v in batch.items() if v.ndim == 2}
            alone = {name: value[:, low:high] for name, value in there.items()}
            alone["document_ids"] = torch.zeros_like(alone["document_ids"])
            place = torch.arange(there["targets"].size(1), device=subject.module.device)
            inside = torch.where((place >= low) & (place < high), there["targets"], IGNORE_INDEX)
            if (inside != IGNORE_INDEX).any():
                losses = subject.loss({**there, "targets": inside}), subject.loss(alone)
                differences.append(abs(float(losses[0]) - float(losses[1])))
    worst = max(differences, default=0.0)
    return judged(worst < 1e-3, f"a second document has the loss that it has alone, up to {worst:.2g}")


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
    return judged(worst < 1e-3 * max(1.0, float(full.abs().max())), f"logits differ by up to {worst:.2g} with a cache")


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
    return judged(worst < 1e-2 and empty, detail)
