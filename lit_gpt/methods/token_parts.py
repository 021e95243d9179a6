"""Token vectors composed of the vectors of their parts.

A vocabulary holds `The`, ` The`, ` the` and ` THE`, ` video` and ` videos`, and in a small corpus most of them are
rare; a plain table learns each on its own. Here a token's vector is its own plus those of the parts of its spelling
that other tokens have too, so that what is learned of one serves all (after fastText, Bojanowski et al. 2017). The
function is that of a plain table, which it folds into when training is over.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Parts that a token may have.
MOST = 4


class ComposedEmbedding(nn.Embedding):
    """A table of vectors, to whose rows vectors of shared parts are added."""

    parts: Tensor

    def __init__(self, rows: int, n_parts: int, n_embd: int) -> None:
        """`n_parts` parts; no token has one until `compose` says which. Part 0 is none and stays zero."""
        super().__init__(rows, n_embd)
        self.shared = nn.Embedding(n_parts + 1, n_embd, padding_idx=0)
        self.register_buffer("parts", torch.zeros(rows, MOST, dtype=torch.int64))

    def compose(self, parts: list[list[int]]) -> None:
        """Take the parts of each token, from 1 to n_parts."""
        table = torch.zeros(self.parts.shape, dtype=torch.int64)  # on the CPU: a GPU would take each row for itself
        for row, numbers in zip(table, parts, strict=False):
            row[: len(numbers)] = torch.tensor(numbers)
        self.parts.copy_(table)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Vectors of tokens, (B, T) to (B, T, C)."""
        own, parts = super().forward(input_ids), self.parts[input_ids].flatten(0, -2)
        return own + _summed(self.shared.weight, parts).view_as(own)

    def table(self) -> Tensor:
        """Vectors of all tokens, (V, C)."""
        return folded(self.weight, self.shared.weight, self.parts)

    def plain(self) -> nn.Embedding:
        """The same vectors as a plain table, which reads faster and no longer learns together."""
        return nn.Embedding.from_pretrained(self.table().detach())


def folded(own: Tensor, shared: Tensor, parts: Tensor) -> Tensor:
    """The plain table (V, C) that gives the same vectors."""
    return own + _summed(shared, parts)


def _summed(shared: Tensor, parts: Tensor) -> Tensor:
    """The sum of the vectors of each row of parts, (N, MOST) to (N, C)."""
    return F.embedding_bag(parts, shared, mode="sum", padding_idx=0)
