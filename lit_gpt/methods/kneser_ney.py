"""Kneser-Ney n-gram counts of the training text, mixed into the predictions of a network.

A small network generalises, and does not remember what a small corpus has only once or twice. A table of n-grams
remembers exactly that. So both together predict better than either (with recurrent networks: Mikolov et al. 2011; with
large ones: Liu et al. 2024, "Infini-gram"). Counting takes seconds, and training is the same without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from datamodules.tokens import TokenStream
from lit_gpt.loss import at_least_float32
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.ngram_counts import count_ngrams, estimate_discount, unigram_probabilities
from lit_gpt.methods.ngrams import TokenHistory, shift_right, tokens_so_far
from lit_gpt.protocols import Network, TextData

#: Larger than every key. It is the last one, so that the result of a search is always the index of a key.
SENTINEL = 2**62


class KneserNey(nn.Module):
    """Interpolated Kneser-Ney probabilities of the next token after up to ``order - 1`` tokens, with one discount for
    each n (Kneser and Ney 1995; Chen and Goodman 1999).

    An n-gram has a number. That of a 1-gram is the token id. That of a longer one is the index of its key in the sorted
    keys of all n-grams of its length. The key is (number of the n-gram without its last token) * V + last token. So all
    n-grams that continue one context are neighbours in the sorted keys.
    """

    unigrams: Tensor  # (V,), probabilities; empty before `count`
    discounts: Tensor  # (order + 1,), that of n-grams at index n

    def __init__(self, order: int, vocab_size: int) -> None:
        """Nothing is counted before `count`."""
        super().__init__()
        self.order, self.vocab_size = order, vocab_size
        self.register_buffer("unigrams", torch.zeros(0))
        self.register_buffer("discounts", torch.zeros(order + 1))
        for n in range(2, order + 1):
            self.register_buffer(f"keys_{n}", torch.empty(0, dtype=torch.int64))  # (number of n-grams + 1,)
            # Cumulative counts in the order of the keys, from 0 on: the count of keys[i] is sums[i + 1] - sums[i].
            self.register_buffer(f"sums_{n}", torch.empty(0, dtype=torch.int64))

    def count(self, text: TokenStream) -> None:
        """Count the n-grams of a text that lie inside one document. A document begins after an EOS token, which is
        context of its first token.
        """
        self.discounts = torch.full((self.order + 1,), 0.5, device=self.discounts.device)
        for n, keys, counts in count_ngrams(text, self.order, self.vocab_size):
            self._store_counts(n, keys, counts[-1])

    def _store_counts(self, n: int, keys: np.ndarray, counts: np.ndarray) -> None:
        device, discount = self.discounts.device, estimate_discount(counts)
        self.discounts[n] = discount
        if n == 1:
            probabilities = unigram_probabilities(counts, discount)
            self.unigrams = torch.tensor(probabilities, dtype=torch.float32, device=device)
            return
        setattr(self, f"keys_{n}", torch.from_numpy(np.append(keys, SENTINEL)).to(device))
        setattr(self, f"sums_{n}", torch.from_numpy(np.append(0, counts).cumsum()).to(device))

    @property
    def is_counted(self) -> bool:
        """Whether a text has been counted."""
        return len(self.unigrams) > 0

    def contexts(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """The numbers of the n-grams that end at each position, for n from 1 to order - 1, (B, S, order - 1).

        -1 stands for an n-gram that the counted text does not have, or that begins in another document.

        Args:
            tokens: Token ids, (B, S); -1 for padding.
            document_ids: The number of each token's document, (B, S).
        """
        numbers = [tokens]
        for n in range(2, self.order):
            keys, prefix = getattr(self, f"keys_{n}"), shift_right(numbers[-1], 1, -1)  # without its last token
            if document_ids is not None:
                prefix = prefix.where(document_ids == shift_right(document_ids, 1, -1), -1)
            key = prefix * self.vocab_size + tokens
            index = torch.searchsorted(keys, key)
            is_known = (prefix >= 0) & (tokens >= 0) & (keys[index] == key)
            numbers.append(index.where(is_known, -1))
        return torch.stack(numbers, dim=-1)

    def forward(self, contexts: Tensor, share: float = 1.0) -> Tensor:
        """Probabilities of every next token, times ``share``, (N, V), after ``contexts`` (N, order - 1)."""
        levels = [
            Level(getattr(self, f"keys_{n}"), getattr(self, f"sums_{n}"), self.discounts[n : n + 1])
            for n in range(2, self.order + 1)
        ]
        return interpolate(self.unigrams, contexts, levels, share=share)

    # Buffers grow when a text is counted: give them the shapes of the checkpoint before they are loaded.
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in list(self.named_buffers()):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Level(NamedTuple):
    """The n-grams of one length, counted in one text or in several, each of which leaves out a part of it."""

    keys: Tensor
    """Sorted, and the sentinel, (M + 1,)."""
    sums: Tensor
    """Cumulative counts in the order of the keys, from 0 on, one text after the other, (texts * (M + 1),)."""
    discounts: Tensor
    """That of each text, (texts,)."""
    followers: Tensor | None = None
    """Cumulative numbers of keys with a count above 0, laid out as the sums; None: every key has one."""


def interpolate(
    lower: Tensor, contexts: Tensor, levels: Sequence[Level], text: Tensor | None = None, share: float = 1.0
) -> Tensor:
    """Probabilities of every next token by longer n-grams, times ``share``, (N, V).

    The longest n-grams come first. What they leave to shorter ones is a factor of each row, so that all tokens are
    multiplied once, at the end, and not once for every n.

    Args:
        lower: The probabilities by n-grams shorter than those of ``levels``, (N, V) or (V,).
        contexts: The number of each row's context for each level, (N, levels).
        levels: The counts, from short n-grams to long ones.
        text: In which of the levels' texts to look a row up, (N,). None: in the first.
        share: The sum of a row's probabilities.
    """
    text = torch.zeros_like(contexts[:, 0]) if text is None else text
    left = torch.full((len(contexts),), share, dtype=at_least_float32(lower).dtype, device=lower.device)  # (N,)
    found = []
    for i in reversed(range(len(levels))):
        index, gain, left = _followers(levels[i], contexts[:, i], text, left, lower.size(-1))
        found.append((index, gain))
    probabilities = lower * left[:, None]  # (N, V)
    for index, gain in reversed(found):
        probabilities.view(-1).index_add_(0, index, gain.to(probabilities.dtype))
    return probabilities


def _followers(level: Level, context: Tensor, text: Tensor, left: Tensor, V: int) -> tuple[Tensor, Tensor, Tensor]:
    """What n-grams add to the probabilities (N, V), and what they leave to shorter ones, (N,).

    After a context that occurs `total` times with `followers` different next tokens, a token that has followed gets
    (its count - discount) / total. All tokens get (discount * followers / total) times their probability as an
    (n - 1)-gram. An unknown context (-1) adds nothing and leaves everything.

    Returns:
        Indices into the flat probabilities and what is added there, each (sum of followers,), and what is left.
    """
    keys, sums = level.keys, level.sums
    first, discount = text * len(keys), level.discounts[text]
    # The keys of all n-grams that continue a context are at low to high - 1, (N,). Without any, low == high.
    low, high = (torch.searchsorted(keys, (context + next_) * V) for next_ in (0, 1))
    total = sums[first + high] - sums[first + low]
    size = torch.where(total > 0, high - low, 0)
    followers = size if level.followers is None else level.followers[first + high] - level.followers[first + low]
    total = total.clamp(min=1)
    # One entry for each key of each context: the row of the context, and the index of the key.
    row = torch.repeat_interleave(size)
    index = torch.arange(len(row), device=row.device) + (low - size.cumsum(0) + size)[row]
    entry = first[row] + index
    gain = (sums[entry + 1] - sums[entry] - discount[row]).clamp_(min=0) * (left / total)[row]
    left = left * torch.where(size > 0, discount * followers / total, 1.0)
    return row * V + keys[index] % V, gain, left


@dataclass(frozen=True)
class HiddenWithContexts:
    """Hidden states (..., C), and the numbers of the n-grams that end at the same positions (..., order - 1).

    The head of `GPTWithCounts` needs both, so they are indexed and split together, as one tensor would be. The numbers
    are int64: as channels of float hidden states they would not be exact.
    """

    states: Tensor
    contexts: Tensor

    @property
    def is_cpu(self) -> bool:
        """Whether both are on the CPU."""
        return self.states.is_cpu

    def __getitem__(self, index: Any) -> "HiddenWithContexts":
        return HiddenWithContexts(self.states[index], self.contexts[index])

    def flatten(self, start: int, end: int) -> "HiddenWithContexts":
        """See `torch.Tensor.flatten`."""
        return HiddenWithContexts(self.states.flatten(start, end), self.contexts.flatten(start, end))

    def split(self, size: int) -> list["HiddenWithContexts"]:
        """See `torch.Tensor.split`."""
        chunks = zip(self.states.split(size), self.contexts.split(size), strict=True)
        return [HiddenWithContexts(states, contexts) for states, contexts in chunks]


class GPTWithCounts(Network):
    """A GPT or an ensemble, mixed with n-gram counts of the training text. It has the interface of one GPT."""

    def __init__(self, config: ExtendedGPTConfig, gpt: Network) -> None:
        """`gpt` is a `GPT` or a `GPTEnsemble`; it alone is trained."""
        super().__init__()
        assert config.vocab_size is not None
        self.config, self.gpt = config, gpt
        self.counts = KneserNey(config.kneser_ney, config.vocab_size)

    def trained_nets(self) -> list[Any]:
        """Those of `gpt`: counts are not trained."""
        return self.gpt.trained_nets()

    def prepare(self, data: TextData) -> None:
        """Prepare `gpt`, and count the training text unless the counts were loaded from a checkpoint."""
        self.gpt.prepare(data)
        if self.counts.is_counted:
            return
        if "train" not in data.stores:
            raise UserError("config.kneser_ney counts the text of lit-gpt's datamodules only: leave it out.")
        self.counts.count(data.stores["train"])

    def fold(self) -> "GPTWithCounts":
        """Fold `gpt`."""
        self.gpt = self.gpt.fold()
        return self

    def hidden(self, input_ids: Tensor, *, cache: "CountsCache | None" = None, **context: Any) -> Any:
        """The hidden states of `gpt`, (B, T, C); once a text is counted, with the n-gram numbers beside them."""
        hidden = self.gpt.hidden(input_ids, cache=None if cache is None else cache.gpt, **context)
        if not self.counts.is_counted:
            return hidden
        history = None if cache is None else cache.history
        # (B, S): ids, and -1 for padding
        T, tokens = input_ids.size(1), tokens_so_far(input_ids, context.get("attention_mask"), history) - 1
        recent = tokens[:, -(T + self.counts.order - 2) :]  # a context of order - 1 tokens reaches no further back
        return HiddenWithContexts(hidden, self.counts.contexts(recent, context.get("document_ids"))[:, -T:])

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        """See `GPT.head_weights`; those of `gpt`."""
        return self.gpt.head_weights(ids)

    def head(self, hidden: Any, weights: list[Tensor] | None = None) -> Tensor:
        """Logarithms of the mixed probabilities, (..., V), not in 16 bits; before a text is counted, `gpt`'s logits."""
        if not self.counts.is_counted:
            return self.gpt.head(hidden, weights)
        return self._probabilities(hidden, weights).log()

    @property
    def probability_head(self) -> Callable[[Any, list[Tensor]], Tensor] | None:
        """See `Network.probability_head`. None in a subclass that overrides `head`."""
        has_own_head = type(self).head is not GPTWithCounts.head
        return self._probabilities if self.counts.is_counted and not has_own_head else None

    def _probabilities(self, hidden: Any, weights: list[Tensor] | None) -> Tensor:
        share = self.config.kneser_ney_share
        predicted = at_least_float32(self.gpt.head(hidden.states, weights)).softmax(-1)
        counted = self.counts(hidden.contexts.flatten(0, -2), share).view_as(predicted)
        return counted.add_(predicted, alpha=1 - share)

    def new_cache(self, batch_size: int) -> "CountsCache":
        """An empty KV cache of `gpt`, and an empty history of tokens."""
        return CountsCache(self.gpt.new_cache(batch_size))

    def num_parameters(self, **options: bool) -> int:
        """See `GPT.num_parameters`; n-gram counts are not parameters."""
        return self.gpt.num_parameters(**options)

    def flops_per_token(self, T: int | None = None) -> int | None:
        """See `GPT.flops_per_token`; n-gram counts take none."""
        return self.gpt.flops_per_token(T)


class CountsCache:
    """What decoding keeps: the KV cache of `gpt`, and the tokens read so far."""

    def __init__(self, gpt: Any) -> None:
        self.gpt = gpt
        self.history = TokenHistory()

    @property
    def length(self) -> int:
        """Number of tokens of each row in the cache, padding included."""
        return int(self.gpt.length)

    def reset(self) -> None:
        """Drop all tokens; the tensors stay reserved."""
        self.gpt.reset()
        self.history.tokens = None
