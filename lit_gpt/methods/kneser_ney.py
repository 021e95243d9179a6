"""Counts of the training text beside a network: what followed the same few tokens there, mixed into its prediction.

A small network smooths over what a small corpus holds only once or twice; a table of runs remembers just that and
little else, so both together predict better than either (of recurrent networks: Mikolov et al. 2011; of large ones:
Liu et al. 2024, "Infini-gram"). Counting takes seconds, and training knows nothing of it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from datamodules.tokens import TokenStream
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.ngrams import TokenHistory, shift_right, tokens_so_far
from lit_gpt.protocols import Network, TextData

#: Above all keys, so that a search always ends at one.
_LAST = 2**62


class KneserNey(nn.Module):
    """Interpolated Kneser-Ney probabilities of the token after up to ``order - 1`` others, with one discount for each
    length of runs (Kneser and Ney 1995; Chen and Goodman 1999).

    A run of tokens has a number: a single token its id; a longer one its place among the keys of its length, which are
    sorted: (number of the run without its last token) * V + last token. What follows a context is a stretch of keys.
    """

    unigrams: Tensor  # (V,), probabilities; empty before `count`
    discounts: Tensor  # (order + 1,), that of runs of k tokens at k

    def __init__(self, order: int, vocab_size: int) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self.order, self.vocab_size = order, vocab_size
        self.register_buffer("unigrams", torch.zeros(0))
        self.register_buffer("discounts", torch.zeros(order + 1))
        for k in range(2, order + 1):
            self.register_buffer(f"keys_{k}", torch.empty(0, dtype=torch.int64))
            self.register_buffer(f"sums_{k}", torch.empty(0, dtype=torch.int64))  # cumulative counts, from 0 on

    def count(self, text: TokenStream) -> None:
        """Count the runs inside the documents of a text; a document's first token follows its end mark."""
        lengths = _ngram_lengths(text)
        ngrams = _ngram_ids(text.tokens.astype(np.int64), lengths, self.order, self.vocab_size)
        self.discounts = torch.full((self.order + 1,), 0.5, device=self.discounts.device)
        for k, (numbers, keys, _) in enumerate(ngrams, start=1):
            # A run counts each time; a shorter one once for each kind of token before it, and each time without one.
            counted = lengths >= k
            if k < self.order:
                counted = lengths == k
                counted[ngrams[k][-1]] = True
            self._keep(k, keys, np.bincount(numbers[counted], minlength=len(keys)))

    def _keep(self, k: int, keys: np.ndarray, times: np.ndarray) -> None:
        device, discount = self.discounts.device, _discount(times)
        self.discounts[k] = discount
        if k == 1:
            rest = discount * (times > 0).sum() / self.vocab_size
            shares = (np.maximum(times - discount, 0) + rest) / times.sum()
            self.unigrams = torch.tensor(shares, dtype=torch.float32, device=device)
            return
        setattr(self, f"keys_{k}", torch.from_numpy(np.append(keys, _LAST)).to(device))
        setattr(self, f"sums_{k}", torch.from_numpy(np.append(0, times).cumsum()).to(device))

    @property
    def is_counted(self) -> bool:
        """Whether there is anything to predict from."""
        return len(self.unigrams) > 0

    def contexts(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Numbers of the runs of 1 to order - 1 tokens that end at each place, (B, S, order - 1); -1 for one that the
        text does not hold or that another document begins.

        Args:
            tokens: Ids, (B, S), and -1 for what is no token.
            document_ids: The document of every token, (B, S).
        """
        found = [tokens]
        for k in range(2, self.order):
            keys, before = getattr(self, f"keys_{k}"), shift_right(found[-1], 1, -1)
            if document_ids is not None:
                before = before.where(document_ids == shift_right(document_ids, 1, -1), -1)
            wanted = before * self.vocab_size + tokens
            place = torch.searchsorted(keys, wanted)
            known = (before >= 0) & (tokens >= 0) & (keys[place] == wanted)
            found.append(place.where(known, -1))
        return torch.stack(found, dim=-1)

    def forward(self, contexts: Tensor) -> Tensor:
        """Probabilities of every next token, (N, V), after ``contexts`` (N, order - 1)."""
        probabilities = self.unigrams.repeat(len(contexts), 1)
        for k in range(2, self.order + 1):
            self._refine(probabilities, k, contexts[:, k - 2])
        return probabilities

    def _refine(self, probabilities: Tensor, k: int, context: Tensor) -> None:
        """From the probabilities of runs of k - 1 tokens to those of k, in place: a discount of each that has followed
        goes to all, as the shorter runs have it.
        """
        keys, sums, discount = getattr(self, f"keys_{k}"), getattr(self, f"sums_{k}"), self.discounts[k]
        low, high = (torch.searchsorted(keys, (context + more) * self.vocab_size) for more in (0, 1))
        kinds, total = high - low, (sums[high] - sums[low]).clamp(min=1)
        probabilities.mul_(torch.where(kinds > 0, discount * kinds / total, 1.0)[:, None])
        row = torch.repeat_interleave(kinds)
        place = torch.arange(len(row), device=row.device) + (low - kinds.cumsum(0) + kinds)[row]
        seen = (sums[place + 1] - sums[place] - discount) / total[row]
        probabilities.view(-1).index_add_(0, row * self.vocab_size + keys[place] % self.vocab_size, seen)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in list(self.named_buffers()):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _ngram_lengths(text: TokenStream) -> np.ndarray:
    """The longest run that ends at each place and lies in one document, (n,). An end mark belongs to the document that
    it ends, and as context also to the one that it begins; the very first is no run.
    """
    place = np.arange(len(text.tokens))
    document = np.searchsorted(np.asarray(text.starts), place, side="right" if text.eos_id is None else "left") - 1
    return np.where(document < 0, 0, place - text.starts[document] + 1)


def _discount(times: np.ndarray) -> float:
    """Ney's estimate from what occurs once and twice, which a text too small for it moves towards a half."""
    ones, twos = int((times == 1).sum()), int((times == 2).sum())
    return (ones + 0.5) / (ones + 2 * twos + 1)


Ngrams = tuple[np.ndarray, np.ndarray, np.ndarray]


def _ngram_ids(ids: np.ndarray, lengths: np.ndarray, order: int, vocab_size: int) -> list[Ngrams]:
    """For runs of 1 to `order` tokens: the number of the one that ends at each place, (n,), the keys of all numbers,
    and the first place of each.
    """
    found = [(ids, np.arange(vocab_size), ids[:0])]
    for k in range(2, order + 1):
        place = np.flatnonzero(lengths >= k)
        wanted = found[-1][0][place - 1] * vocab_size + ids[place]
        keys, first, number = np.unique(wanted, return_index=True, return_inverse=True)
        numbers = np.full(len(ids), -1)
        numbers[place] = number
        found.append((numbers, keys, place[first]))
    return found


@dataclass(frozen=True)
class CountedFeatures:
    """Features (..., C) and the n-grams that end at the same places (..., order - 1), indexed and cut together.

    The head of `GPTWithCounts` needs both. N-gram ids stay int64, which float features could not hold exactly.
    """

    features: Tensor
    contexts: Tensor

    @property
    def is_cpu(self) -> bool:
        """Whether both are on the CPU."""
        return self.features.is_cpu

    def __getitem__(self, index: Any) -> "CountedFeatures":
        return CountedFeatures(self.features[index], self.contexts[index])

    def flatten(self, start: int, end: int) -> "CountedFeatures":
        """As of a tensor."""
        return CountedFeatures(self.features.flatten(start, end), self.contexts.flatten(start, end))

    def split(self, rows: int) -> list["CountedFeatures"]:
        """As of a tensor."""
        parts = zip(self.features.split(rows), self.contexts.split(rows), strict=True)
        return [CountedFeatures(features, contexts) for features, contexts in parts]


class GPTWithCounts(Network):
    """A GPT, or an ensemble, mixed with n-gram counts of its training text, behind the interface of one GPT."""

    def __init__(self, config: ExtendedGPTConfig, gpt: Network) -> None:
        """`gpt` is a `GPT` or a `GPTEnsemble`; it alone is trained."""
        super().__init__()
        assert config.vocab_size is not None
        self.config, self.gpt = config, gpt
        self.counts = KneserNey(config.kneser_ney, config.vocab_size)

    def trained_nets(self) -> list[Any]:
        """Those of the network without counts."""
        return self.gpt.trained_nets()

    def prepare(self, data: TextData) -> None:
        """Prepare the network, and count the training text unless a checkpoint has brought the counts."""
        self.gpt.prepare(data)
        if self.counts.is_counted:
            return
        if "train" not in data.stores:
            raise UserError("config.kneser_ney counts the text of lit-gpt's datamodules only: leave it out.")
        self.counts.count(data.stores["train"])

    def fold(self) -> "GPTWithCounts":
        """Fold the network."""
        self.gpt = self.gpt.fold()
        return self

    def hidden(self, input_ids: Tensor, *, cache: "CountsCache | None" = None, **context: Any) -> Any:
        """The GPT's features, as `CountedFeatures` once the text is counted."""
        features = self.gpt.hidden(input_ids, cache=None if cache is None else cache.gpt, **context)
        if not self.counts.is_counted:
            return features
        history = None if cache is None else cache.history
        T, tokens = input_ids.size(1), tokens_so_far(input_ids, context.get("attention_mask"), history) - 1
        recent = tokens[:, -(T + self.counts.order - 2) :]  # no n-gram reaches further back
        return CountedFeatures(features, self.counts.contexts(recent, context.get("document_ids"))[:, -T:])

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        """The GPT's."""
        return self.gpt.head_weights(ids)

    def head(self, hidden: Any, weights: list[Tensor] | None = None) -> Tensor:
        """Logarithms of the mixed probabilities, (..., V) in float32; the GPT's logits where nothing is counted."""
        if not self.counts.is_counted:
            return self.gpt.head(hidden, weights)
        share = self.config.kneser_ney_share
        mixed = self.gpt.head(hidden.features, weights).float().softmax(-1) * (1 - share)
        counted = self.counts(hidden.contexts.flatten(0, -2)).view_as(mixed)
        return mixed.add_(counted, alpha=share).log()

    def new_cache(self, batch_size: int) -> "CountsCache":
        """An empty cache of the GPT, and of the tokens read."""
        return CountsCache(self.gpt.new_cache(batch_size))

    def num_parameters(self, **counted: bool) -> int:
        """See `GPT.num_parameters`: counts are none."""
        return self.gpt.num_parameters(**counted)

    def flops_per_token(self, T: int | None = None) -> int | None:
        """See `GPT.flops_per_token`."""
        return self.gpt.flops_per_token(T)


class CountsCache:
    """What decoding keeps: the GPT's cache, and the tokens read so far."""

    def __init__(self, gpt: Any) -> None:
        self.gpt = gpt
        self.history = TokenHistory()

    @property
    def length(self) -> int:
        """Number of tokens of each row in the cache, padding included."""
        return int(self.gpt.length)

    def reset(self) -> None:
        """Forget all tokens; the memory is kept."""
        self.gpt.reset()
        self.history.tokens = None
