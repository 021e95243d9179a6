"""Embeddings of the parts that tokens share.

A vocabulary has `The`, ` The`, ` the` and ` THE`, ` video` and ` videos`. In a small corpus most of them are rare, and
a plain embedding learns each from its own occurrences. Here a token's embedding also has those of its parts: parts of
its spelling that other tokens have too. What is learned from one token then serves all that share a part with it (after
fastText, Bojanowski et al. 2017). After training the sum is stored as a plain embedding, see `ExtendedEmbedding.fold`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The most parts of a token: word, form (case and leading space), first letters, last letters.
MAX_PARTS = 4


class PartsEmbedding(nn.Module):
    """The sum of the embeddings of each token's parts."""

    table: Tensor  # (vocab_size, MAX_PARTS), the numbers of each token's parts; 0 for none

    def __init__(self, vocab_size: int, n_parts: int, n_embd: int) -> None:
        """No token has parts until `assign`. Parts are numbered from 1 to n_parts; the embedding of 0 stays zero."""
        super().__init__()
        self.shared = nn.Embedding(n_parts + 1, n_embd, padding_idx=0)
        self.register_buffer("table", torch.zeros(vocab_size, MAX_PARTS, dtype=torch.int64))

    def assign(self, parts: list[list[int]]) -> None:
        """Store the parts of each token, numbered from 1 to n_parts."""
        table = torch.zeros(self.table.shape, dtype=torch.int64)  # filled on the CPU: a GPU would copy row by row
        for row, numbers in zip(table, parts, strict=False):
            row[: len(numbers)] = torch.tensor(numbers)
        self.table.copy_(table)

    def reset(self) -> None:
        """Set all embeddings to zero, so that a new network predicts as one without parts."""
        nn.init.zeros_(self.shared.weight)

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """The sum of the parts' embeddings, of token ids (...) to (..., C); without ids of all tokens, (V, C)."""
        parts = self.table if ids is None else self.table[ids].flatten(0, -2)
        sums = F.embedding_bag(parts, self.shared.weight, mode="sum", padding_idx=0)
        return sums if ids is None else sums.view(*ids.shape, -1)
