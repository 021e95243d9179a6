"""Checks of text, tokenizer and batches."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules import TextDataModule, TokensDataModule
from datamodules.corpus_stats import document_lengths, overlap, token_counts
from lit_gpt.diagnostics.result import NotApplicableError, Outcome, check
from lit_gpt.diagnostics.subject import Subject
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.protocols import Batch

#: Text that a tokenizer reads for its round trip, in characters.
SAMPLE = 200_000
ANY_TEXT = "The quick brown fox: 12 + 3.5 = 15.5!\n\tNaïve café, Straße — “quoted” (100 %).\n"
#: What may be equal in training and validation: texts quote themselves and repeat phrases.
MOST_SHARED_DOCUMENTS, MOST_SHARED_SHINGLES, MOST_SHARED_ROWS = 0.05, 0.25, 0.05
MOST_REPEATED, MOST_UNKNOWN = 0.3, 0.01


@check("targets shifted once", "targets = ids[1:], input_ids = ids[:-1] in the dataset")
def shifted_once(subject: Subject) -> Outcome:
    """targets[i] is the token after input_ids[i]. Unshifted, the network learns to copy its input and the loss goes to
    zero; shifted twice, it never sees the token before.
    """
    subject.need_causal()
    ids, targets = subject.rows["input_ids"], subject.rows["targets"]
    real = subject.rows.get("attention_mask", targets != IGNORE_INDEX)
    inside = (targets[:, :-1] != IGNORE_INDEX) & real[:, 1:]
    if not inside.any():
        raise NotApplicableError("no row has two scored targets side by side")
    share = float((targets[:, :-1] == ids[:, 1:])[inside].float().mean())
    same = float((targets == ids)[:, :-1][inside].float().mean())
    return share > 0.99, f"{share:.1%} of targets are the next input, {same:.1%} the input itself"


@check("pads are not scored", "targets of -100 where attention_mask is False; --data.mask_first for prompts")
def pads_unscored(subject: Subject) -> Outcome:
    """A pad that is scored is the easiest token of all: the loss looks low, and the network learns to write pads."""
    rows = subject.rows
    scored = rows["targets"] != IGNORE_INDEX
    pads = ~rows["attention_mask"] if "attention_mask" in rows else _constant_tail(rows["input_ids"])
    wrong = float((scored & pads).sum() / pads.sum().clamp(min=1))
    masked, kind = getattr(subject.data, "mask_first", 0), getattr(subject.data, "rows", None)
    prompts = masked and kind == "windows" and bool(scored[:, :masked].any())
    detail = f"{scored.float().mean():.1%} of targets are scored, {pads.float().mean():.1%} of positions are pads"
    if wrong or prompts:
        return False, f"{detail}; {wrong:.1%} of the pads are scored" + ("; so are prompts" if prompts else "")
    return True, detail


def _constant_tail(ids: Tensor) -> Tensor:
    """Which positions look like padding in rows without a mask, (N, T): one id that ends many rows, 8 times or more."""
    tail = (ids == ids[:, -1:]).flip(1).cumprod(1).flip(1).bool()  # (N, T)
    long = tail.sum(1) >= 8
    ends, counts = ids[long, -1].unique(return_counts=True)
    if len(ends) == 0 or counts.max() < 0.1 * len(ids):
        return torch.zeros_like(tail)
    return tail & (ids == ends[counts.argmax()])


@check("rows differ", "the sampler or the random seed of the dataset's workers")
def rows_differ(subject: Subject) -> Outcome:
    """A loader that gives the same rows again and again trains on a fraction of the text: training loss falls,
    validation loss rises.
    """
    if getattr(subject.trainer, "overfit_batches", 0) or subject.options.get("overfit_batches"):
        raise NotApplicableError("trainer.overfit_batches repeats batches on purpose")
    ids = subject.rows["input_ids"]
    if len(ids) < 8:
        raise NotApplicableError(f"an epoch has {len(ids)} rows")
    different = len(ids.unique(dim=0))
    return different >= (1 - MOST_REPEATED) * len(ids), f"{different} of {len(ids)} rows of an epoch differ"


@check("new validation text", "split by documents or by place; --data.val_source; remove duplicates")
def validation_is_new(subject: Subject) -> Outcome:
    """Text that was trained on is known. A split at random places of one text, or one with duplicates, makes
    validation as good as training, and says nothing.
    """
    data = subject.data
    if not isinstance(data, TextDataModule):
        return _rows_are_new(subject)
    if "val" not in data.stores:
        raise NotApplicableError("there is no validation split")
    if data.val_source is not None and data.val_source == data.source:
        raise NotApplicableError("val_source is the training text, so what is validated is memory")
    shared = overlap(data.stores["train"], data.stores["val"], data.tokenizer)
    documents, shingles = shared.documents or 0.0, shared.shingles or 0.0
    return (
        documents <= MOST_SHARED_DOCUMENTS and shingles <= MOST_SHARED_SHINGLES,
        f"{documents:.1%} of its documents and {shingles:.1%} of its stretches of 50 characters are in train too",
    )


def _rows_are_new(subject: Subject) -> Outcome:
    """The same for data without token stores: rows of validation that are rows of training."""
    batches = [batch["input_ids"] for batch in islice(subject.val_loader(), 20)]
    if not batches:
        raise NotApplicableError("there is no validation split")
    val = torch.cat([b for b in batches if b.shape[1:] == batches[0].shape[1:]])
    known = {bytes(row.numpy().tobytes()) for row in subject.rows["input_ids"]}
    share = float(np.mean([bytes(row.numpy().tobytes()) in known for row in val]))
    return share <= MOST_SHARED_ROWS, f"{share:.1%} of {len(val)} validation rows are training rows"


@check("tokenizer", "--data.tokenizer, or normalisation in the tokenizer's settings")
def round_trip(subject: Subject) -> Outcome:
    """A tokenizer that drops capitals, spaces or characters gives a text that can never be written again, and a loss
    per token that does not compare.
    """
    subject.need_causal()  # an encoder writes no text
    tokenizer = subject.text.tokenizer
    if tokenizer is None:
        raise NotApplicableError("the data has no tokenizer")
    tokens = characters = 0
    for text in _samples(subject):
        ids = list(tokenizer.encode(text))
        back = tokenizer.decode(ids)
        if back != text:
            pairs = enumerate(zip(text, back, strict=False))
            at = max(0, next((i for i, (a, b) in pairs if a != b), min(len(text), len(back))) - 8)
            return False, f"{text[at : at + 16]!r} comes back as {back[at : at + 16]!r}"
        tokens, characters = tokens + len(ids), characters + len(text)
        if characters >= SAMPLE:
            break
    return True, f"{characters:,} characters come back, {characters / max(tokens, 1):.2f} a token"


def _samples(subject: Subject) -> Iterator[str]:
    """Some of the training text; where that is unknown, text with all kinds of characters that the tokenizer takes."""
    data, tokenizer = subject.data, subject.text.tokenizer
    if isinstance(data, TextDataModule) and not isinstance(data, TokensDataModule):
        yield from (piece.text[:SAMPLE] for piece in data.opened_sources()[0].pieces(SAMPLE))
        return
    try:
        tokenizer.encode(ANY_TEXT)
        yield ANY_TEXT
    except Exception:  # it names a character that it does not know, which is fine
        yield tokenizer.decode(subject.rows["input_ids"][0].tolist())


@check("vocabulary", "--data.vocab_size, or a tokenizer trained on this text")
def vocabulary(subject: Subject) -> Outcome:
    """Ids that never occur are parameters that never learn. Unknown tokens are text that is lost."""
    counts = _counts(subject)
    used, tokenizer = int((counts > 0).sum()), subject.text.tokenizer
    unknown = getattr(tokenizer, "unk_id", None)
    unknown = getattr(tokenizer, "unk_token_id", None) if unknown is None else unknown
    share = float(counts[unknown] / counts.sum()) if unknown is not None and unknown < len(counts) else 0.0
    return share <= MOST_UNKNOWN, f"{used:,} of {len(counts):,} ids occur in train, {share:.2%} are unknown"


def _counts(subject: Subject) -> np.ndarray:
    """How often each id occurs in training, (V,)."""
    data, V = subject.data, max(subject.tokens, subject.text.vocab_size or 0)
    if isinstance(data, TextDataModule):
        return token_counts(data.stores["train"], V)
    targets = subject.rows["targets"]
    return np.bincount(targets[targets != IGNORE_INDEX].numpy(), minlength=V)


@check("EOS token", "an EOS token between documents, and targets of -100 by the mask, not by the pad's id")
def eos(subject: Subject) -> Outcome:
    """Without an EOS token that is scored, a model never learns where a text ends, and generation does not stop. A pad
    that is the EOS token must not take it out of the loss.
    """
    subject.need_causal()
    tokenizer, data = subject.text.tokenizer, subject.data
    eos_id = getattr(tokenizer, "eos_id", None)
    eos_id = getattr(tokenizer, "eos_token_id", None) if eos_id is None else eos_id
    if eos_id is None:
        return _without_eos(data, subject.rows["targets"].size(1))
    rows: Batch = subject.rows
    targets = rows["targets"]
    real = rows.get("attention_mask", torch.ones_like(targets, dtype=torch.bool))
    inside = (rows["input_ids"][:, 1:] == eos_id) & real[:, 1:] & real[:, :-1]  # an end that the next input shows
    hidden = int((inside & (targets[:, :-1] == IGNORE_INDEX)).sum()) if not getattr(data, "mask_first", 0) else 0
    scored, ends = int((targets == eos_id).sum()), int(inside.sum())
    short = isinstance(data, TextDataModule) and "train" in data.stores and _short_documents(data, targets.size(1))
    if scored == 0 and not (ends or short):
        raise NotApplicableError("no document ends in the rows that were looked at")
    return scored > 0 and hidden <= 0.1 * scored, f"{scored} scored in {len(targets)} rows, {hidden} not scored"


def _short_documents(data: TextDataModule, T: int) -> bool:
    """Whether most documents are shorter than a row."""
    store = data.stores["train"]
    return store.counts.documents > 1 and float(np.median(document_lengths(store))) < T


def _without_eos(data: Any, T: int) -> Outcome:
    if not isinstance(data, TextDataModule) or data.stores["train"].counts.documents < 2:
        raise NotApplicableError("the text is one document, and the tokenizer has no EOS token")
    count = data.stores["train"].counts.documents
    if not _short_documents(data, T):
        raise NotApplicableError(f"{count} long documents are joined, and the tokenizer has no EOS token")
    return False, f"{count:,} documents, shorter than a row, and no EOS token between them"


@check("whole validation", "drop_last=False in the validation loader; --trainer.limit_val_batches 1.0")
def coverage(subject: Subject) -> Outcome:
    """Whole batches only, or the first targets of each row only, leave text out of the metric: figures stop being
    comparable between batch sizes.
    """
    subject.need_causal()  # masks score a part of the text
    data = subject.data
    if not isinstance(data, TextDataModule) or "val" not in data.stores:
        raise NotApplicableError("the size of this data's validation split is unknown")
    scored = sum(int((batch["targets"] != IGNORE_INDEX).sum()) for batch in subject.val_loader())
    wanted = len(data.stores["val"]) - 1  # the first token has none before it
    return scored == wanted, f"{scored:,} of {wanted:,} tokens of the validation split are scored"
