"""The two bigram baselines: the best loss of a model that sees one token only.

Both look up the logits of the next token in a table with one row for each token. `NeuralBigram` learns the table by
gradient descent. `CountBigram` counts pairs, which gives the table that gradient descent approaches. A GPT must beat
both to be worth its time. They have the interface of `lit_gpt.model.GPT`: `hidden`, `head` and `forward`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from lit_gpt.bounds import check_memory, invalid_numbers
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.protocols import Network, TextData

#: Tokens that are counted at once, so that their ids in int64 take 8 MB whatever the length of the text.
_CHUNK = 2**20


@dataclass
class BigramConfig:
    """Kind and size of a bigram model. Raises a UserError for a value out of range."""

    kind: Literal["neural", "counts"] = "neural"
    """neural: a table learned by gradient descent. counts: a table of counts with add_k smoothing."""
    block_size: int = 8
    """Length of the training rows, in tokens. A prediction sees one token whatever the length."""
    vocab_size: int | None = None
    """Number of tokens in the vocabulary (V); null takes that of the data's tokenizer. The table has V * V numbers."""
    add_k: float = 1.0
    """Added to every count, so that unseen pairs have a probability above 0 (add-k smoothing; 1 is Laplace's)."""

    def __post_init__(self) -> None:
        if self.kind not in ("neural", "counts"):
            raise UserError(f"kind {self.kind!r} is unknown: choose neural or counts.")
        for problem in invalid_numbers(self, {"block_size": 1, "vocab_size": 1}, {}):
            raise UserError(problem)
        if self.add_k <= 0:
            raise UserError(f"add_k is {self.add_k}: give a positive number, or unseen pairs have infinite loss.")


class Bigram(Network):
    """The base of both kinds: `hidden` looks up the logits, and `head` returns them unchanged."""

    def __init__(self, config: BigramConfig) -> None:
        """`config.vocab_size` must be known."""
        super().__init__()
        assert config.vocab_size is not None, "BigramConfig.vocab_size is not set: the data's tokenizer decides it"
        self.config = config
        self.vocab_size = config.vocab_size

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        """Logits after each token, (B, T, V). `context` (masks, documents, cache) has no effect on a single token."""
        raise NotImplementedError

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """The logits (..., V), which are what `hidden` returned."""
        return hidden


class NeuralBigram(Bigram):
    """A table of logits, (V, V), learned by gradient descent."""

    def __init__(self, config: BigramConfig) -> None:
        """All logits start from N(0, 1), torch's default for an embedding."""
        super().__init__(config)
        self.table = nn.Embedding(self.vocab_size, self.vocab_size)

    def expected_initial_loss(self) -> float:
        """ln V, and half of the variance of the logits: the mean of log-sum-exp over N(0, 1)."""
        return math.log(self.vocab_size) + 0.5

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        """Logits after each token, (B, T, V)."""
        return self.table(input_ids)


class CountBigram(Bigram):
    """Counts of pairs, (V, V); probabilities are (count + k) / (row sum + k * V)."""

    counts: Tensor

    def __init__(self, config: BigramConfig) -> None:
        """All counts are 0: every token is equally likely."""
        super().__init__(config)
        self.register_buffer("counts", torch.zeros(self.vocab_size, self.vocab_size, dtype=torch.int64))

    def expected_initial_loss(self) -> None:
        """Unknown: the text is counted before training begins."""

    def count(self, tokens: np.ndarray) -> None:
        """Set the counts to those of a text with token ids (n,): each token with the one after it."""
        self.counts.zero_()
        for start in range(0, len(tokens) - 1, _CHUNK):
            # One token more than a chunk: the last one is the second of the chunk's last pair.
            ids = torch.from_numpy(tokens[start : start + _CHUNK + 1].astype(np.int64)).to(self.counts.device)
            self.counts += self.pairs(ids[:-1], ids[1:])

    def prepare(self, data: TextData) -> None:
        """Count each pair of neighbours in the training text once, if the datamodule has `stores`.

        Counting training rows instead would be wrong: windows overlap, a run may end inside an epoch, and a second
        epoch repeats them.
        """
        if "train" in data.stores:
            self.count(data.stores["train"].tokens)

    @torch.no_grad()
    def pairs(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """How often each pair of an input (B, T) and its target (B, T) occurs, (V, V); targets of -100 are left out."""
        scored = targets != IGNORE_INDEX
        V = self.counts.size(0)
        pair_ids = input_ids[scored] * V + targets[scored]
        return torch.bincount(pair_ids, minlength=V * V).view(V, V)

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        """Log probabilities after each token, (B, T, V)."""
        smoothed = self.counts.float() + self.config.add_k
        return (smoothed / smoothed.sum(1, keepdim=True)).log()[input_ids]


def build_bigram(config: BigramConfig) -> Bigram:
    """Build the network of `config.kind`.

    Raises:
        UserError: The table needs more memory than there is.
    """
    size = config.vocab_size or 0
    check_memory(
        size * size * (2 if config.kind == "counts" else 1), lower="the vocabulary"
    )  # an int64 count is twice a float32
    return CountBigram(config) if config.kind == "counts" else NeuralBigram(config)
