"""An ensemble: several GPTs that are trained side by side, each as if alone, and predict together.

On a small corpus, networks that differ only in their initial weights learn the same regularities and overfit to
different accidents. The mean of their logits predicts better than each of them (deep ensembles, Lakshminarayanan et
al. 2017; of language models, where text is what lacks: Kim et al. 2025).
"""

from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.attention import KVCache
from lit_gpt.config import GPTConfig
from lit_gpt.model import GPT
from lit_gpt.protocols import Network, TextData


class GPTEnsemble(Network):
    """GPTs of one configuration behind the interface of one."""

    members: Any  # an nn.ModuleList of GPTs

    def __init__(self, config: GPTConfig, members: list[GPT]) -> None:
        """Take the members, each with its own initial weights."""
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(members)

    def trained_nets(self) -> list[GPT]:
        """The members: each is trained as if alone."""
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
        """Features of all members side by side, (B, T, members * C)."""
        caches = [None] * len(self.members) if cache is None else cache.members
        found = [m.hidden(input_ids, cache=c, **context) for m, c in zip(self.members, caches, strict=True)]
        return torch.cat(found, dim=-1)

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        """Those of the members, one after another."""
        return [weight for member in self.members for weight in member.head_weights(ids)]

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """The mean of the members' logits (..., V), in float32, of features (..., members * C)."""
        n, weights, total = len(self.members), weights or [], torch.zeros((), device=hidden.device)
        each = len(weights) // n
        for i, (member, features) in enumerate(zip(self.members, hidden.chunk(n, dim=-1), strict=True)):
            total = total + member.head(features, weights[i * each : (i + 1) * each] or None)
        return total / n

    def new_cache(self, batch_size: int) -> "EnsembleCache":
        """An empty key/value cache of each member."""
        return EnsembleCache([member.new_cache(batch_size) for member in self.members])

    def num_parameters(self, **counted: bool) -> int:
        """See `GPT.num_parameters`; of all members."""
        return sum(member.num_parameters(**counted) for member in self.members)

    def flops_per_token(self, T: int | None = None) -> int:
        """See `GPT.flops_per_token`; of all members."""
        return sum(member.flops_per_token(T) for member in self.members)


class EnsembleCache:
    """What decoding remembers, for each member."""

    def __init__(self, members: list[KVCache]) -> None:
        self.members = members

    @property
    def length(self) -> int:
        """How many tokens of each row are cached, pads included."""
        return self.members[0].length

    def reset(self) -> None:
        """Forget everything and keep the memory."""
        for member in self.members:
            member.reset()
