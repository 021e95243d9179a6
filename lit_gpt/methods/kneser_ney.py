"""Kneser-Ney n-gram counts of the training text, mixed into the predictions of a network.

A small network generalises, and does not remember what a small corpus has only once or twice. A table of n-grams
remembers exactly that. So both together predict better than either (with recurrent networks: Mikolov et al. 2011; with
large ones: Liu et al. 2024, "Infini-gram"). Counting takes seconds, and training is the same without it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from datamodules.tokens import TokenStream
from lit_gpt.loss import at_least_float32
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.ngrams import TokenHistory, shift_right, tokens_so_far
from lit_gpt.protocols import Network, TextData

#: Larger than every key. It is the last one, so that the result of a search is always the index of a key.
_SENTINEL = 2**62


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
        lengths = _longest_ngrams(text)
        ngrams = _number_ngrams(text.tokens.astype(np.int64), lengths, self.order, self.vocab_size)
        self.discounts = torch.full((self.order + 1,), 0.5, device=self.discounts.device)
        for n, (numbers, keys, _) in enumerate(ngrams, start=1):
            # The longest n-grams are counted at every occurrence.
            counted_at = lengths >= n
            if n < self.order:
                # Shorter ones are counted once for each different token before them (continuation counts): at the first
                # occurrence of each (n + 1)-gram. At the start of a document no token is before them: each time.
                counted_at = lengths == n
                counted_at[ngrams[n].first_positions] = True
            self._store_counts(n, keys, np.bincount(numbers[counted_at], minlength=len(keys)))

    def _store_counts(self, n: int, keys: np.ndarray, counts: np.ndarray) -> None:
        device, discount = self.discounts.device, _estimate_discount(counts)
        self.discounts[n] = discount
        if n == 1:
            # What the discounts take off is spread evenly over the vocabulary, so that no token has probability 0.
            even_share = discount * (counts > 0).sum() / self.vocab_size
            probabilities = (np.maximum(counts - discount, 0) + even_share) / counts.sum()
            self.unigrams = torch.tensor(probabilities, dtype=torch.float32, device=device)
            return
        setattr(self, f"keys_{n}", torch.from_numpy(np.append(keys, _SENTINEL)).to(device))
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
        """Probabilities of every next token, times ``share``, (N, V), after ``contexts`` (N, order - 1).

        The longest n-grams come first. What they leave to shorter ones is a factor of each row, so that all tokens are
        multiplied once, at the end, and not once for every n.
        """
        left = torch.full((len(contexts),), share, device=contexts.device)  # (N,)
        gains = []
        for n in range(self.order, 1, -1):
            found, left = self._followers(n, contexts[:, n - 2], left)
            gains.append(found)
        probabilities = self.unigrams * left[:, None]  # (N, V)
        for index, gain in reversed(gains):
            probabilities.view(-1).index_add_(0, index, gain)
        return probabilities

    def _followers(self, n: int, context: Tensor, left: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """What n-grams add to the probabilities (N, V), and what they leave to shorter ones, (N,).

        After a context that occurs `total` times with `followers` different next tokens, a token that has followed gets
        (its count - discount) / total. All tokens get (discount * followers / total) times their probability as an
        (n - 1)-gram. An unknown context (-1) adds nothing and leaves everything.

        Returns:
            Indices into the flat probabilities and what is added there, each (sum of followers,), and what is left.
        """
        keys, sums, discount = getattr(self, f"keys_{n}"), getattr(self, f"sums_{n}"), self.discounts[n]
        # The keys of all n-grams that continue a context are at low to high - 1, (N,). Without any, low == high.
        low, high = (torch.searchsorted(keys, (context + next_) * self.vocab_size) for next_ in (0, 1))
        followers, total = high - low, (sums[high] - sums[low]).clamp(min=1)
        # One entry for each follower of each context: the row of the context, and the index of the n-gram's key.
        row = torch.repeat_interleave(followers)
        index = torch.arange(len(row), device=row.device) + (low - followers.cumsum(0) + followers)[row]
        gain = (sums[index + 1] - sums[index] - discount) * (left / total)[row]
        token = keys[index] % self.vocab_size
        left = left * torch.where(followers > 0, discount * followers / total, 1.0)
        return (row * self.vocab_size + token, gain), left

    # Buffers grow when a text is counted: give them the shapes of the checkpoint before they are loaded.
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in list(self.named_buffers()):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _longest_ngrams(text: TokenStream) -> np.ndarray:
    """The length of the longest n-gram that ends at each position and lies in one document, (number of tokens,).

    An EOS token belongs to the document that it ends. As context it also belongs to the next one, whose first token so
    has length 2. The EOS token at the very beginning of the text ends no document: 0.
    """
    position = np.arange(len(text.tokens))
    document = np.searchsorted(np.asarray(text.starts), position, side="right" if text.eos_id is None else "left") - 1
    return np.where(document < 0, 0, position - text.starts[document] + 1)


def _estimate_discount(counts: np.ndarray) -> float:
    """Ney's estimate ones / (ones + 2 * twos), from how many n-grams occur once and twice.

    Adding 0.5 and 1 keeps it defined in a very small text, where it tends to 0.5.
    """
    ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
    return (ones + 0.5) / (ones + 2 * twos + 1)


class Ngrams(NamedTuple):
    """All n-grams of a text, for one n."""

    numbers: np.ndarray
    """The number of the n-gram that ends at each position, (number of tokens,); -1 where none does."""
    keys: np.ndarray
    """The keys of all n-grams, sorted."""
    first_positions: np.ndarray
    """Where each n-gram ends for the first time."""


def _number_ngrams(ids: np.ndarray, lengths: np.ndarray, order: int, vocab_size: int) -> list[Ngrams]:
    """The n-grams of a text for n from 1 to `order`; `lengths` are those of `_longest_ngrams`."""
    ngrams = [Ngrams(ids, np.arange(vocab_size), ids[:0])]  # nobody asks where a 1-gram occurs first
    for n in range(2, order + 1):
        position = np.flatnonzero(lengths >= n)
        all_keys = ngrams[-1].numbers[position - 1] * vocab_size + ids[position]
        keys, first, number = np.unique(all_keys, return_index=True, return_inverse=True)
        numbers = np.full(len(ids), -1)
        numbers[position] = number
        ngrams.append(Ngrams(numbers, keys, position[first]))
    return ngrams


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
        share = self.config.kneser_ney_share
        predicted = at_least_float32(self.gpt.head(hidden.states, weights)).softmax(-1)
        counted = self.counts(hidden.contexts.flatten(0, -2), share).view_as(predicted)
        return counted.add_(predicted, alpha=1 - share).log()

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
