"""Learned vectors for the runs of 2, 3, ... tokens that end at each position, added to the token's own.

A look-up instead of a product: the statistics of short runs, on which a small network would spend its first thousands
of steps, cost hardly any FLOPs (Huang et al. 2025, "Over-tokenized transformer"; one hashed table for all runs as in
Svenstrup et al. 2017).
"""

import torch
from torch import Tensor, nn

from lit_gpt.attention import TokenMemory

#: Below 2**31, so that a product of two residues stays below 2**62.
_PRIME, _FACTOR = 2**31 - 1, 1_000_003


class NgramEmbedding(nn.Module):
    """A hashed table of vectors, shared by the runs of every length."""

    def __init__(self, lengths: list[int], rows: int, width: int, n_embd: int) -> None:
        """Runs of `lengths` tokens in a table of `rows`: what falls into one row shares its vector.

        Vectors are narrow, `width` channels, and `mix` brings those of all lengths into the stream: an optimizer walks
        through the whole table at every step.
        """
        super().__init__()
        self.lengths = lengths
        self.table = nn.Embedding(rows, width)
        self.mix = nn.Linear(len(lengths) * width, n_embd, bias=False)

    def forward(self, tokens: Tensor, new: int, document_ids: Tensor | None = None) -> Tensor:
        """What the runs that end at each of the last `new` positions add to the stream, (B, new, C).

        Args:
            tokens: Ids + 1, and 0 for what is no token, (B, S): the new tokens and those before them.
            new: For how many positions it is wanted.
            document_ids: The document of every token, (B, S); before a document's first token there is none.
        """
        return self.mix(self.table(self.rows(tokens, document_ids)[:, -new:]).flatten(2))

    def rows(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """The row of each run, (B, S, number of lengths)."""
        run, rows = tokens, []
        for n in range(2, max(self.lengths) + 1):
            before = earlier(tokens, n - 1, 0)
            if document_ids is not None:
                before = before * (document_ids == earlier(document_ids, n - 1, -1))
            run = (run * _FACTOR + before) % _PRIME  # (B, S)
            if n in self.lengths:
                rows.append((run + n) * _FACTOR % _PRIME % self.table.num_embeddings)
        return torch.stack(rows, dim=-1)


def earlier(x: Tensor, steps: int, nothing: int) -> Tensor:
    """`x` (B, S) as it was `steps` positions before."""
    return torch.cat((torch.full_like(x[:, :steps], nothing), x), dim=1)[:, : x.size(1)]


def tokens_read(input_ids: Tensor, attention_mask: Tensor | None, cache: TokenMemory | None) -> Tensor:
    """Ids + 1, and 0 for pads, (B, S): of the new tokens and of those that the cache has read."""
    tokens = input_ids + 1 if attention_mask is None else (input_ids + 1) * attention_mask[:, -input_ids.size(1) :]
    return tokens if cache is None else cache.read(tokens)
