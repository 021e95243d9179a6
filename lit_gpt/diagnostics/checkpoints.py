"""What the report computes from a run's best checkpoint and its validation text."""

from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from lit_gpt.attention import position_ids
from lit_gpt.checkpoint import KEY, MODULES, file_of, load, read
from lit_gpt.cli.run_data import OWN_CLASSES, is_described, usable_options
from lit_gpt.commands.generate import usable_device
from lit_gpt.diagnostics.scores import device_of, likeliest, token_name
from lit_gpt.generate import TextModel
from lit_gpt.loss import IGNORE_INDEX, score

#: Targets of the validation text that are scored, and the length of the context before the ten likeliest tokens.
_TARGETS, _CONTEXT = 16_384, 32
#: Tokens whose frequencies are shown.
_FREQUENT = 20
#: Logits in memory at a time: 128 tokens at GPT-2's vocabulary.
_LOGITS = 2**23


@torch.inference_mode()
def predictions_of(folder: Path, model_class: str | None = None) -> dict[str, Any]:
    """Loss by position, the frequencies of tokens and one place's likeliest tokens, as plain values.

    Args:
        folder: The run's.
        model_class: The dotted path of a LightningModule of the user's own, for the runs that it trained.

    Raises:
        UserError: There is no checkpoint, or it needs a class that no file may choose.
    """
    path = file_of(folder)
    stored = read(path, mmap=True)[KEY]
    model = load(path, usable_device("auto"), None if stored["module"] in MODULES else model_class)
    batches = list(_batches(stored["data"], model))
    parts = [_scored(model.net, batch) for batch in batches]
    before, nats, targets, expected = map(list, zip(*parts, strict=True))
    if not bool(torch.cat(nats).isfinite().all()):
        raise UserError("its predictions are not finite")
    return {
        "checkpoint": path.name,
        "targets": len(torch.cat(targets)),
        "positions": list(_by_position(torch.cat(before), torch.cat(nats))),
        "frequencies": list(_frequencies(model, torch.cat(targets), torch.stack(expected).sum(0))),
        "next": _next(model, batches[0]),
    }


def _batches(stored: Any, model: TextModel) -> Iterator[dict[str, Tensor]]:
    """Batches of the run's validation split, as an evaluation reads it."""
    if not is_described(stored) or stored["class_path"] not in OWN_CLASSES:
        raise UserError("its data is of a class that no file may choose, so it is not read")
    options = usable_options(stored, set(), "validate")
    block_size = options["init_args"].get("block_size") or model.net.config.block_size
    data: Any = resolve_name(options["class_path"])(**{**options["init_args"], "block_size": block_size})
    data.use_tokenizer(model.tokenizer)
    data.prepare_data()
    data.setup("validate")
    read_so_far = 0
    for batch in data.val_dataloader()[0]:
        yield batch
        read_so_far += int((batch["targets"] != IGNORE_INDEX).sum())
        if read_so_far >= _TARGETS:
            return


def _scored(net: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the N scored targets of a batch: the tokens before each, nats and id, (N,), and the sum of all predicted
    probabilities, (V,).
    """
    on_device = {name: value.to(device_of(net)) for name, value in batch.items()}
    ids, targets, documents = on_device["input_ids"], on_device["targets"], on_device.get("document_ids")  # (B, T)
    hidden, scored = net.hidden(ids, document_ids=documents), targets != IGNORE_INDEX  # (B, T, C), (B, T)
    nats, _ = score(hidden, net.head, net.head_weights(), targets, net.config.vocab_size, net.linear_head)
    few = max(_LOGITS // net.config.vocab_size, 1)
    expected = [net.head(part).double().softmax(-1).sum(0) for part in hidden[scored].split(few)]
    before = position_ids(ids, document_ids=documents).expand_as(ids) + 1  # of its own document, this token included
    columns = (before[scored], nats[scored].double(), targets[scored], sum(expected))
    return tuple(torch.as_tensor(column).cpu() for column in columns)  # type: ignore[return-value]


def _by_position(before: Tensor, nats: Tensor) -> Iterator[tuple[float, float]]:
    """Tokens before the target and mean nats, in two bins for each doubling: 1, 2, 3, 4 and 5, 6 and 7, 8 to 11."""
    bins = (2 * before.double().log2()).floor()
    for number in bins.unique().tolist():
        here = bins == number
        yield round(float(before[here].double().mean()), 2), round(float(nats[here].mean()), 5)


def _frequencies(model: TextModel, targets: Tensor, expected: Tensor) -> Iterator[tuple[str, float, float]]:
    """The most frequent tokens: name, share of the targets, mean probability."""
    seen = torch.bincount(targets, minlength=len(expected))
    for i in seen.argsort(descending=True, stable=True)[:_FREQUENT].tolist():
        if seen[i]:
            shares = (float(count[i]) / len(targets) for count in (seen, expected))
            yield token_name(model.tokenizer, i), *shares  # type: ignore[misc]


def _next(model: TextModel, batch: dict[str, Tensor]) -> dict[str, Any]:
    """The likeliest tokens after the beginning of the validation text, and the true one."""
    length = max(int((batch["targets"][0, :_CONTEXT] != IGNORE_INDEX).sum()), 1)
    ids, truth = batch["input_ids"][:1, :length], int(batch["targets"][0, length - 1])
    (best,) = likeliest(model.net(ids.to(device_of(model.net)))[:, -1])
    name = lambda i: token_name(model.tokenizer, i)  # noqa: E731
    return {
        "after": "".join(map(name, ids[0].tolist())),
        "truth": name(truth),
        "likeliest": [[name(i), round(p, 5)] for i, p in best],
    }
