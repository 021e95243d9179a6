"""A GPT that is trained on top of Kneser-Ney counts: it reads their probabilities, and learns what to add to them.

Its logits are those of the network plus trust * log p, where p are the probabilities by counts and the trust is a
linear function of the hidden state at each position. The softmax of the sum is what is trained and what is scored, so
the probabilities sum to 1. Training begins with the loss of the counts, and the network need not learn short n-grams.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from datamodules.errors import UserError
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.fold_counts import FoldCounts
from lit_gpt.methods.ngrams import HistoryCache, tokens_so_far
from lit_gpt.model import GPT, TokenEmbedding
from lit_gpt.protocols import TextData


class CountsEmbedding(TokenEmbedding):
    """The token embedding, plus a linear function of the log-probabilities of the next token by counts."""

    def __init__(self, vocab_size: int, n_embd: int, counted: int) -> None:
        """`counted` is the number of probabilities."""
        super().__init__(vocab_size, n_embd)
        self.read = nn.Linear(counted, n_embd, bias=False)
        self._logs: Tensor | None = None

    def forward(self, input_ids: Tensor, **context: Any) -> Tensor:  # type: ignore[override]
        """(B, T) to (B, T, C), inside of `reading`."""
        assert self._logs is not None
        # Log-probabilities are mostly between -9 and 0; like this they are between -2 and 1.
        scaled = (self._logs.clamp(min=-9) + 4) / 3
        return self.rows(input_ids) + self.read(scaled.to(self.weight.dtype))

    @contextmanager
    def reading(self, logs: Tensor) -> Iterator[None]:
        """In this context `forward` adds what it reads from log-probabilities (B, T, V)."""
        self._logs = logs
        try:
            yield
        finally:
            self._logs = None

    def reset(self) -> None:
        """See `TokenEmbedding.reset`. What is read weighs more than the token, whose weights are N(0, 0.02)."""
        nn.init.normal_(self.read.weight, std=0.1)


class GPTOnCounts(GPT):
    """A GPT on top of n-gram counts of the training text."""

    config: ExtendedGPTConfig
    wte: Any
    cache_class = HistoryCache

    def __init__(self, config: ExtendedGPTConfig) -> None:
        """Until a text is counted, the counts' probabilities are equal."""
        super().__init__(config)
        assert config.vocab_size is not None
        self.counts = FoldCounts(config.kneser_ney, config.vocab_size, config.kneser_ney_folds)
        # The network alone decides on these; at first the counts are taken as they are.
        self.trust = nn.Parameter(torch.zeros(config.n_embd))
        self.trust_bias = nn.Parameter(torch.ones(1))

    def build_embedding(self) -> TokenEmbedding:
        """See `GPT.build_embedding`."""
        assert self.config.vocab_size is not None
        return CountsEmbedding(self.config.padded_vocab_size, self.config.n_embd, self.config.vocab_size)

    def prepare(self, data: TextData) -> None:
        """Count the training text, whole and without each fold."""
        if "train" not in data.stores:
            raise UserError("config.kneser_ney counts the text of lit-gpt's datamodules only: leave it out.")
        self.counts.count(data.stores["train"])

    def hidden(self, input_ids: Tensor, *, cache: Any = None, **context: Any) -> Tensor:
        """The hidden states and, behind them, trust * log p by counts, (B, T, C + V)."""
        logs = self.log_probabilities(input_ids, cache, **context)
        with self.wte.reading(logs):
            states = super().hidden(input_ids, cache=cache, **context)  # (B, T, C)
        # Elementwise, so that autocast does not round it: the logs go down to -15.
        trust = (states * self.trust).sum(-1, keepdim=True) + self.trust_bias
        return torch.cat((states, trust * logs), dim=-1)

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (..., V) of what `hidden` returns: those of the network plus trust * log p."""
        states, by_counts = hidden.tensor_split([self.config.n_embd], dim=-1)
        return super().head(states.to(self.wte.weight.dtype), weights) + by_counts

    @torch.no_grad()
    def log_probabilities(
        self,
        input_ids: Tensor,
        cache: HistoryCache | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Logarithms of the probabilities by counts, (B, T, V), in training without the fold of each row."""
        if document_ids is not None:
            raise UserError(
                "config.kneser_ney_folds needs rows of running text, and these hold several documents: set it to 0."
            )
        (B, T), V = input_ids.shape, self.counts.vocab_size
        tokens = tokens_so_far(input_ids, attention_mask, None if cache is None else cache.history) - 1
        if not self.counts.is_counted or isinstance(input_ids, FakeTensor):  # `sizes` measures a step without values
            return torch.full((B, T, V), 1 / V, device=input_ids.device).log()
        recent = tokens[:, -(T + self.counts.order - 2) :]  # a context of order - 1 tokens reaches no further back
        contexts = self.counts.contexts(recent)[:, -T:].flatten(0, 1)
        fold = self.counts.fold_of_rows(input_ids).repeat_interleave(T) if self.training else None
        return self.counts(contexts, fold=fold).view(B, T, V).log()

    def expected_initial_loss(self) -> float | None:
        """Unknown: it is about that of the counts."""
        return None
