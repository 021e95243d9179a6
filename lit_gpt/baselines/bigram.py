"""The two bigram baselines: how well can a model do that sees one token?

Both answer from a table with a row of V scores for each token. `NeuralBigram` learns the table by gradient descent;
`CountBigram` counts, which is the exact optimum that the other approaches. A GPT must beat both to be worth its time.
They have the interface of `lit_gpt.model.GPT`: `hidden`, `head` and `forward`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from lit_gpt.bounds import check_fits, wrong_numbers
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.protocols import Network, TextData

#: Tokens that are counted at once: 8 MB of ids, whatever the length of the text.
_CHUNK = 2**20


@dataclass
class BigramConfig:
    """Kind and size of a bigram model. Raises a UserError for a value that makes no model."""

    kind: Literal["neural", "counts"] = "neural"
    """neural: a table learned by gradient descent. counts: a table of counts with add_k smoothing."""
    block_size: int = 8
    """Length of the rows to train on, in tokens; each prediction sees one token whatever the length."""
    vocab_size: int | None = None
    """Number of tokens in the vocabulary (V); left out, the data decides. The table has V * V numbers."""
    add_k: float = 1.0
    """Added to every count, so that pairs never seen keep a probability (Laplace: 1)."""

    def __post_init__(self) -> None:
        if self.kind not in ("neural", "counts"):
            raise UserError(f"kind {self.kind!r} is unknown: choose neural or counts.")
        for problem in wrong_numbers(self, {"block_size": 1, "vocab_size": 1}, {}):
            raise UserError(problem)
        if self.add_k <= 0:
            raise UserError(f"add_k is {self.add_k}: give a positive number, or unseen pairs have infinite loss.")


class Bigram(Network):
    """What both kinds share: `hidden` looks up the row of logits of each token, and nothing is left for `head`."""

    def __init__(self, config: BigramConfig) -> None:
        """`config.vocab_size` must be known."""
        super().__init__()
        assert config.vocab_size is not None, "BigramConfig.vocab_size is not set: the data's tokenizer decides it"
        self.config = config
        self.vocab_size = config.vocab_size

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        """Logits after each token, (B, T, V). Masks, documents and caches (`context`) cannot matter to one token."""
        raise NotImplementedError

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """The features are the logits."""
        return hidden


class NeuralBigram(Bigram):
    """A table of logits, (V, V), learned by gradient descent."""

    def __init__(self, config: BigramConfig) -> None:
        """All logits start from N(0, 1), torch's default for a table."""
        super().__init__(config)
        self.table = nn.Embedding(self.vocab_size, self.vocab_size)

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        """Logits after each token, (B, T, V)."""
        return self.table(input_ids)


class CountBigram(Bigram):
    """Counts of pairs, (V, V); probabilities are (count + k) / (row sum + k * V)."""

    counts: Tensor

    def __init__(self, config: BigramConfig) -> None:
        """Nothing is counted yet: every token is equally likely."""
        super().__init__(config)
        self.register_buffer("counts", torch.zeros(self.vocab_size, self.vocab_size, dtype=torch.int64))

    def count(self, tokens: np.ndarray) -> None:
        """Set the counts to those of a text, (n,): each token with the one after it."""
        self.counts.zero_()
        for start in range(0, len(tokens) - 1, _CHUNK):
            ids = torch.from_numpy(tokens[start : start + _CHUNK + 1].astype(np.int64)).to(self.counts.device)
            self.counts += self.pairs(ids[:-1], ids[1:])

    def prepare(self, data: TextData) -> None:
        """Count the training text where the data gives it: each pair of neighbours once, whatever the epochs are.

        Rows cannot be counted instead: windows overlap, steps may end inside an epoch, and another epoch repeats them.
        """
        if "train" in data.stores:
            self.count(data.stores["train"].tokens)

    @torch.no_grad()
    def pairs(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """How often each pair occurs, (B, T) each to (V, V); targets of -100 are not counted."""
        scored = targets != IGNORE_INDEX
        V = self.counts.size(0)
        found = input_ids[scored] * V + targets[scored]
        return torch.bincount(found, minlength=V * V).view(V, V)

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        """Log probabilities after each token, (B, T, V)."""
        smoothed = self.counts.float() + self.config.add_k
        return (smoothed / smoothed.sum(1, keepdim=True)).log()[input_ids]


def bigram(config: BigramConfig) -> Bigram:
    """The network that `config.kind` asks for.

    Raises:
        UserError: It is larger than the memory.
    """
    size = config.vocab_size or 0
    check_fits(size * size * (2 if config.kind == "counts" else 1), "the vocabulary")  # counts are int64
    return CountBigram(config) if config.kind == "counts" else NeuralBigram(config)
