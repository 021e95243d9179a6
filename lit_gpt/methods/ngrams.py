"""Embeddings of the n-grams that end at each position, added to the token's own.

A look-up instead of a matmul: a small network would spend its first thousands of steps on the statistics of short
n-grams, and here they cost hardly any FLOPs (Huang et al. 2025, "Over-tokenized transformer"; one hashed table for all
n as in Svenstrup et al. 2017).
"""

from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.attention import KVCache

#: Below 2**31, so that a product of two residues stays below 2**62 and int64 holds it.
_PRIME, _FACTOR = 2**31 - 1, 1_000_003


class NgramEmbedding(nn.Module):
    """A hashed table of embeddings, shared by the n-grams of every n."""

    def __init__(self, lengths: list[int], rows: int, width: int, n_embd: int) -> None:
        """N-grams of `lengths` tokens in a table of `rows`: those that hash to one row share its embedding.

        Embeddings are narrow, `width` channels, because an optimizer updates the whole table at every step. `mix`
        brings those of all n into the residual stream.
        """
        super().__init__()
        self.lengths = lengths
        self.table = nn.Embedding(rows, width)
        self.mix = nn.Linear(len(lengths) * width, n_embd, bias=False)

    def reset(self) -> None:
        """A new network starts as one without n-grams: the table is zero."""
        nn.init.zeros_(self.table.weight)
        nn.init.normal_(self.mix.weight, std=self.mix.out_features**-0.5)

    def forward(self, tokens: Tensor, new: int, document_ids: Tensor | None = None) -> Tensor:
        """What the n-grams that end at each of the last `new` positions add to the stream, (B, new, C).

        Args:
            tokens: Ids + 1, and 0 for what is no token, (B, S): the new tokens and those before them.
            new: For how many positions it is wanted.
            document_ids: The document of every token, (B, S); before a document's first token there is none.
        """
        return self.mix(self.table(self.rows(tokens, document_ids)[:, -new:]).flatten(2))

    def rows(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """The row of the table of each n-gram, (B, S, number of lengths)."""
        ngram, rows = tokens, []
        for n in range(2, max(self.lengths) + 1):
            before = shift_right(tokens, n - 1, 0)
            if document_ids is not None:
                before = before * (document_ids == shift_right(document_ids, n - 1, -1))
            ngram = (ngram * _FACTOR + before) % _PRIME  # (B, S)
            if n in self.lengths:
                rows.append((ngram + n) * _FACTOR % _PRIME % self.table.num_embeddings)
        return torch.stack(rows, dim=-1)


def shift_right(x: Tensor, steps: int, fill: int) -> Tensor:
    """`x` (B, S) moved `steps` positions to the right; `fill` comes in on the left."""
    return torch.cat((torch.full_like(x[:, :steps], fill), x), dim=1)[:, : x.size(1)]


class TokenHistory:
    """The tokens that decoding has read so far, which n-grams need beside keys and values."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None

    def append(self, tokens: Tensor) -> Tensor:
        """Add new tokens (B, T); all so far, (B, S)."""
        self.tokens = tokens if self.tokens is None else torch.cat((self.tokens, tokens), dim=1)
        return self.tokens


class HistoryCache(KVCache):
    """A key/value cache that keeps the tokens as well."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Arguments are those of `KVCache`."""
        super().__init__(*args, **options)
        self.history = TokenHistory()

    def reset(self) -> None:
        """Forget all tokens; the memory is kept."""
        super().reset()
        self.history.tokens = None


def tokens_so_far(input_ids: Tensor, attention_mask: Tensor | None, history: TokenHistory | None) -> Tensor:
    """Ids + 1, and 0 for padding, (B, S): of the new tokens (B, T) and of those in the history."""
    tokens = input_ids + 1 if attention_mask is None else (input_ids + 1) * attention_mask[:, -input_ids.size(1) :]
    return tokens if history is None else history.append(tokens)
