"""Embeddings of the n-grams that end at each position, added to the token's own.

A small network spends its first thousands of steps on the statistics of short n-grams. Here they are looked up, which
costs hardly any FLOPs (Huang et al. 2025, "Over-tokenized transformer"; one hashed table for all n as in Svenstrup et
al. 2017).
"""

from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.attention import KVCache

#: Of the hash. Residues are below 2**31, so that a product of two is below 2**62 and fits into int64.
PRIME, FACTOR = 2**31 - 1, 1_000_003
#: Tokens at the beginning of a row by whose hash `FoldCounts` finds its place in a text. It is a power of 2.
ROW_START = 32


class NgramEmbedding(nn.Module):
    """One hashed table of embeddings for the n-grams of every n."""

    def __init__(self, lengths: list[int], rows: int, width: int, n_embd: int) -> None:
        """Build the table.

        Args:
            lengths: The values of n.
            rows: Number of embeddings. N-grams with the same hash share one.
            width: Channels of an embedding. Few, because the optimizer updates the whole table at every step.
            n_embd: Channels of the residual stream, to which the linear layer `mix` maps the embeddings of all n.
        """
        super().__init__()
        self.lengths = lengths
        self.table = nn.Embedding(rows, width)
        self.mix = nn.Linear(len(lengths) * width, n_embd, bias=False)

    def reset(self) -> None:
        """Set the table to zero, so that a new network predicts as one without n-grams."""
        nn.init.zeros_(self.table.weight)
        nn.init.normal_(self.mix.weight, std=self.mix.out_features**-0.5)

    def forward(self, tokens: Tensor, T: int, document_ids: Tensor | None = None) -> Tensor:
        """The sum to add to the embeddings of the last `T` tokens, (B, T, C).

        Args:
            tokens: The new tokens and those before them, as `tokens_so_far` returns them, (B, S).
            T: Number of new tokens.
            document_ids: The number of each token's document, (B, S). An n-gram does not reach into another document.
        """
        return self.mix(self.table(self.table_rows(tokens, document_ids)[:, -T:]).flatten(2))

    def table_rows(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """The row of each position's n-grams in the table, (B, S, number of lengths)."""
        ngram_hash, rows = tokens, []
        for n in range(2, max(self.lengths) + 1):
            earlier = shift_right(tokens, n - 1, 0)  # the token n - 1 positions before
            if document_ids is not None:
                earlier = earlier * (document_ids == shift_right(document_ids, n - 1, -1))
            ngram_hash = (ngram_hash * FACTOR + earlier) % PRIME  # (B, S), that of the (n - 1)-gram extended
            if n in self.lengths:
                # n is part of the hash, so that n-grams of different lengths do not share rows systematically.
                rows.append((ngram_hash + n) * FACTOR % PRIME % self.table.num_embeddings)
        return torch.stack(rows, dim=-1)


def shift_right(x: Tensor, steps: int, fill: int) -> Tensor:
    """`x` (B, S) shifted `steps` positions to the right, with `fill` in the first ones."""
    return torch.cat((torch.full_like(x[:, :steps], fill), x), dim=1)[:, : x.size(1)]


class TokenHistory:
    """The tokens that decoding has read so far. N-grams need them in addition to the keys and values."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None

    def append(self, tokens: Tensor) -> Tensor:
        """Add new tokens (B, T) and return all so far, (B, S)."""
        self.tokens = tokens if self.tokens is None else torch.cat((self.tokens, tokens), dim=1)
        return self.tokens


class HistoryCache(KVCache):
    """A KV cache that keeps the tokens as well."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Arguments are those of `KVCache`."""
        super().__init__(*args, **options)
        self.history = TokenHistory()

    def reset(self) -> None:
        """Drop all tokens; the tensors stay reserved."""
        super().reset()
        self.history.tokens = None


def tokens_so_far(input_ids: Tensor, attention_mask: Tensor | None, history: TokenHistory | None) -> Tensor:
    """The tokens of the history and the new ones (B, T), (B, S): id + 1, and 0 for padding. The history is extended."""
    # The cache gives the padding mask of all tokens; its last T columns are those of the new ones.
    tokens = input_ids + 1 if attention_mask is None else (input_ids + 1) * attention_mask[:, -input_ids.size(1) :]
    return tokens if history is None else history.append(tokens)
