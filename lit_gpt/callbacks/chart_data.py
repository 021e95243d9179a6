"""What the charts of `lit_gpt.callbacks.tensorboard` show, computed from a network and a validation batch."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.tokenizers import Tokenizer
from lit_gpt.attention import position_ids
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.protocols import Batch, Network

CONTEXTS = 3
#: The most positions whose predictions are averaged, the most logits that are computed for it, and the most at once.
MAX_POSITIONS, MAX_LOGITS, MAX_LOGITS_AT_ONCE = 4096, 2**25, 2**22


def contexts_of(batch: Batch) -> list[list[int]]:
    """Three pieces of the text of a batch, in token ids. Of each the last token is the one to predict.

    They are of rows far from each other, and end after half of a row's targets or later.
    """
    contexts = []
    rows = batch["targets"].size(0)
    for number in range(CONTEXTS):
        row = rows * number // CONTEXTS
        scored = (batch["targets"][row] != IGNORE_INDEX).nonzero().flatten().tolist()
        if scored:
            end = scored[int(len(scored) * (0.5 + 0.2 * number))]
            contexts.append([*_ids_until(batch, row, end), int(batch["targets"][row, end])])
    return contexts


def _ids_until(batch: Batch, row: int, end: int) -> list[int]:
    """The input tokens up to position ``end``, of the document at ``end`` alone."""
    ids = batch["input_ids"][row, : end + 1]
    if "document_ids" in batch:
        documents = batch["document_ids"][row, : end + 1]
        ids = ids[documents == documents[-1]]
    return ids.tolist()


def next_probabilities(net: Network, contexts: list[list[int]], batch: Batch) -> list[Tensor]:
    """The probability of each token after each context, (V,) each.

    The contexts are padded on the right to the shape of a validation batch, for which compiled code exists already.
    """
    like = batch["input_ids"]
    ids = like.new_zeros(max(len(contexts), like.size(0)), max(like.size(1), *(len(c) - 1 for c in contexts)))  # (B, T)
    for row, context in enumerate(contexts):
        ids[row, : len(context) - 1] = ids.new_tensor(context[:-1])
    hidden = net.hidden(ids)  # (B, T, C)
    last = hidden[torch.arange(len(contexts)), [len(c) - 2 for c in contexts]]  # (contexts, C)
    return list(net.head(last).float().softmax(-1).cpu())


def frequencies(net: Network, batch: Batch) -> tuple[Tensor, Tensor, int]:
    """Shares of each token among the targets of a batch, and their mean predicted probabilities, (V,) each.

    The number of targets comes third. A batch of many targets or of a large vocabulary is reduced to every n-th target.
    """
    hidden = net.hidden_of_batch(batch)  # (B, T, C)
    scored = batch["targets"] != IGNORE_INDEX
    hidden, targets = hidden[scored], batch["targets"][scored]  # (N, C), (N,)
    V = net.config.vocab_size
    every = -(-len(targets) // max(1, min(MAX_POSITIONS, MAX_LOGITS // V)))
    hidden, targets = hidden[::every], targets[::every]
    total = torch.zeros(V, device=targets.device)
    for piece in hidden.split(max(1, MAX_LOGITS_AT_ONCE // V)):
        total += net.head(piece).float().softmax(-1).sum(0)
    n = len(targets)
    return targets.bincount(minlength=V).cpu() / n, total.cpu() / n, n


def add_by_position(sums: Tensor, nats: Tensor, batch: Batch) -> Tensor:
    """Add a batch to the sum of the loss and the number of targets at each position of the context, (2, T).

    Without waiting for a GPU: it selects nothing by a mask.
    """
    T = nats.size(1)
    position = position_ids(batch["input_ids"], document_ids=batch.get("document_ids")).expand(nats.shape)  # (B, T)
    scored = (batch["targets"] != IGNORE_INDEX).float()
    sums = F.pad(sums, (0, max(0, T - sums.size(1))))
    for row, values in zip(sums, (nats.float() * scored, scored), strict=True):
        row.index_add_(0, position.flatten(), values.flatten())
    return sums


def binned(sums: Tensor) -> tuple[list[float], list[float]]:
    """Lengths of the context and the mean loss there. Long ones are averaged over ranges: two a doubling."""
    nats, counts = sums.cpu().double().numpy()  # on the CPU first: Apple's GPUs have no float64
    lengths = np.arange(1, len(nats) + 1)
    group = np.floor(2 * np.log2(lengths)).astype(int)
    in_group, nats, lengths = (np.bincount(group, values) for values in (counts, nats, lengths * counts))
    filled = in_group > 0
    return (lengths[filled] / in_group[filled]).tolist(), (nats[filled] / in_group[filled]).tolist()


class Labels:
    """Tokens as text. Without a tokenizer they are their numbers."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer

    def text(self, ids: list[int]) -> str:
        """The text of several tokens, in one line."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return repr(self.tokenizer.decode_bytes(ids).decode("utf-8", "replace"))[1:-1]

    def __call__(self, token: int) -> str:
        """The label of a bar."""
        if self.tokenizer is None:
            return str(token)
        if token >= self.tokenizer.vocab_size:  # the network may know more ids
            return f"(id {token})"
        if token == self.tokenizer.eos_id:
            return "EOS"
        try:
            return _quoted(self.tokenizer.decode_bytes([token]).decode())
        except UnicodeDecodeError:  # a part of a character
            return self.tokenizer.decode_bytes([token]).hex(" ")


def _quoted(text: str, longest: int = 14) -> str:
    """A token's text in quotes, with its spaces and line ends visible."""
    return repr(text if len(text) <= longest else text[: longest - 1] + "…")
