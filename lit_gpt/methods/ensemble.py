"""An ensemble: several GPTs that are trained on the same batches, each as if alone, and predict together.

On a small corpus, networks that differ only in their initial weights learn the same regularities, and each overfits in
its own way. The mean of their logits predicts better than each of them (deep ensembles, Lakshminarayanan et al. 2017;
for language models on little text: Kim et al. 2025).
"""

from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.attention import KVCache
from lit_gpt.config import GPTConfig
from lit_gpt.loss import at_least_float32
from lit_gpt.model import GPT
from lit_gpt.protocols import Network, TextData


class GPTEnsemble(Network):
    """Several GPTs of one configuration, with the interface of one GPT."""

    members: Any  # an nn.ModuleList of GPTs

    def __init__(self, config: GPTConfig, members: list[GPT]) -> None:
        """Each member has its own initial weights."""
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(members)

    def trained_nets(self) -> list[GPT]:
        """The members; each is trained as if alone."""
        return list(self.members)

    def prepare(self, data: TextData) -> None:
        """Prepare every member."""
        for member in self.members:
            member.prepare(data)

    def fold(self) -> "GPTEnsemble":
        """Fold every member."""
        self.members = nn.ModuleList(member.fold() for member in self.members)
        return self

    def hidden(self, input_ids: Tensor, *, cache: "EnsembleCache | None" = None, **context: Any) -> Tensor:
        """The hidden states of all members, concatenated, (B, T, members * C)."""
        caches = [None] * len(self.members) if cache is None else cache.members
        states = [m.hidden(input_ids, cache=c, **context) for m, c in zip(self.members, caches, strict=True)]
        return torch.cat(states, dim=-1)

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        """The LM heads' weights of all members, in one list: first those of the first member."""
        return [weight for member in self.members for weight in member.head_weights(ids)]

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """The mean of the members' logits (..., V) in at least float32, for hidden states (..., members * C)."""
        n, weights = len(self.members), weights or []
        per_member = len(weights) // n  # a weight, and perhaps a bias
        total: Any = 0  # a Tensor (..., V) after the first member
        for i, (member, states) in enumerate(zip(self.members, hidden.chunk(n, dim=-1), strict=True)):
            own = weights[i * per_member : (i + 1) * per_member] or None
            total = total + at_least_float32(member.head(states, own))  # logits of 16 bits would be added in 16 bits
        mean: Tensor = total / n
        return mean

    def new_cache(self, batch_size: int) -> "EnsembleCache":
        """An empty KV cache for each member."""
        return EnsembleCache([member.new_cache(batch_size) for member in self.members])

    def num_parameters(self, **options: bool) -> int:
        """See `GPT.num_parameters`; of all members."""
        return sum(member.num_parameters(**options) for member in self.members)

    def flops_per_token(self, T: int | None = None) -> int:
        """See `GPT.flops_per_token`; of all members."""
        return sum(member.flops_per_token(T) for member in self.members)


class EnsembleCache:
    """The KV caches of all members."""

    def __init__(self, members: list[KVCache]) -> None:
        self.members = members

    @property
    def length(self) -> int:
        """How many tokens of each row are cached, pads included."""
        return self.members[0].length

    def reset(self) -> None:
        """Drop all tokens; the tensors stay reserved."""
        for member in self.members:
            member.reset()
