"""Embeddings of the parts that tokens share.

A vocabulary holds `The`, ` The`, ` the` and ` THE`, ` video` and ` videos`. In a small corpus most of them are rare,
and a plain table learns each on its own. Here a token's embedding is its own plus those of the parts of its spelling
that other tokens have too, so that what is learned of one serves all (after fastText, Bojanowski et al. 2017). The sum
folds into a plain table when training is over.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The most parts that a token may have.
MAX_PARTS = 4


class PartsEmbedding(nn.Module):
    """The sum of the embeddings of each token's parts."""

    table: Tensor  # (rows, MAX_PARTS), the parts of each token; 0 for none

    def __init__(self, rows: int, n_parts: int, n_embd: int) -> None:
        """`n_parts` parts; no token has one until `assign` says which. Part 0 is none and stays zero."""
        super().__init__()
        self.shared = nn.Embedding(n_parts + 1, n_embd, padding_idx=0)
        self.register_buffer("table", torch.zeros(rows, MAX_PARTS, dtype=torch.int64))

    def assign(self, parts: list[list[int]]) -> None:
        """Take the parts of each token, numbered from 1 to n_parts."""
        table = torch.zeros(self.table.shape, dtype=torch.int64)  # filled on the CPU: a GPU would copy row by row
        for row, numbers in zip(table, parts, strict=False):
            row[: len(numbers)] = torch.tensor(numbers)
        self.table.copy_(table)

    def reset(self) -> None:
        """A new network starts as one without parts."""
        nn.init.zeros_(self.shared.weight)

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """Sums for token ids (...), (..., C); without ids for the whole vocabulary, (V, C)."""
        parts = self.table if ids is None else self.table[ids].flatten(0, -2)
        sums = F.embedding_bag(parts, self.shared.weight, mode="sum", padding_idx=0)
        return sums if ids is None else sums.view(*ids.shape, -1)
