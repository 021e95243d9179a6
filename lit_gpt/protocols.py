"""What the training code asks of a network and of a datamodule, and the defaults for what one does not offer.

A network of your own subclasses `Network` and writes `hidden` and `head`. A datamodule of your own yields batches with
``input_ids`` and ``targets``; whatever else it has of `TextData` is used, and `data_of` supplies the rest.
docs/extending.md builds one of each.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class Cache(Protocol):
    """What decoding keeps between forward passes, such as keys and values. `Network.new_cache` makes one."""

    @property
    def length(self) -> int:
        """Number of tokens of each row in the cache, padding included."""

    def reset(self) -> None:
        """Forget all tokens; the memory is kept."""


class Network(nn.Module):
    """Base of every network over tokens: `hidden` computes features, `head` turns them into logits.

    They are split so that the loss and the metrics never hold the logits of all tokens at once.

    Attributes:
        config: A dataclass with at least ``block_size`` (the longest context, in tokens) and ``vocab_size``.
    """

    config: Any

    def forward(self, input_ids: Tensor, **context: Any) -> Tensor:
        """Logits of the next token at every position, (B, T) to (B, T, V). Arguments are those of `hidden`."""
        return self.head(self.hidden(input_ids, **context))

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Features of every position, (B, T) to (B, T, C).

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: True for real tokens, (B, T); given where prompts are padded on the left.
            document_ids: The document of every token, (B, T); given where rows are packed.
            cache: What `new_cache` returned; it holds the tokens before these. None without a cache.
        """
        raise NotImplementedError

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Logits of features, (..., C) to (..., V).

        Args:
            hidden: From `hidden`.
            weights: From `head_weights`, possibly in another dtype; None means the network's own.
        """
        raise NotImplementedError

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        """Parameters that `head` multiplies with; the loss adds up their gradients chunk by chunk.

        Args:
            ids: Rows that are wanted, (K,); None for all. Only the sampled softmax asks for some.
        """
        return []

    def new_cache(self, batch_size: int) -> Any:
        """An empty `Cache` for `batch_size` rows; None where decoding reads the whole context for every token."""
        return None

    def trained_nets(self) -> list[Any]:
        """The networks that are trained each on their own: itself, or the members of an ensemble."""
        return [self]

    def num_parameters(self, *, embeddings: bool = True, positions: bool = True) -> int:
        """Number of parameters; a network may leave out its embeddings or learned positions where asked."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, T: int | None = None) -> int | None:
        """Floating-point operations of one forward and backward pass, per token of rows of T; None where unknown.

        Without it no model FLOPs utilisation (``train/mfu``) is logged.
        """
        return None

    def prepare(self, data: "TextData") -> None:
        """Take what is not learned by gradient descent from the training text. Called before the first step."""

    def fold(self) -> "Network":
        """The same function for inference alone, with less to compute; may change the network in place."""
        return self


class TextData(Protocol):
    """What a datamodule may offer. Each member can be missing; `data_of` says what is lost then."""

    datamodule: Any
    """The datamodule itself, None where there is none."""
    tokenizer: Any
    """Reads and writes text. Without it: no samples, no token's text from ``predict``, and ``generate`` refuses the
    checkpoint."""
    vocab_size: int | None
    """Number of token ids. Without it: ``model.config.vocab_size`` has to be set."""
    fingerprints: Mapping[str, str]
    """Hashes under ``data`` and ``tokenizer``. Without them: a resume cannot tell that the text changed."""
    stores: Mapping[str, Any]
    """Token ids of each split, as `datamodules.tokens.TokenStream`. Without them: no n-gram counts, and of the verb
    ``data`` the batches alone."""

    def scored_text(self, split: str) -> Any:
        """Characters and bytes of a split (``val``, ``test``, ``train_eval``), as `datamodules.ScoredText`; None where
        unknown. Without it: no ``bpb`` and no ``nats_per_char``.
        """

    def text_name(self, split: str) -> str | None:
        """What people are shown of the text that a split is of (``val``, ``test``, or ``predict`` where that is a text
        of its own). Without it: ``validate``, ``test`` and ``predict`` do not say what they score.
        """

    def extra_metrics(self, split: str, nats: float) -> dict[str, float]:
        """Further metrics of a split, by name, from the cross-entropy summed over it in nats. They are logged as
        ``SPLIT/NAME``. Of a split that was scored in part, ``nats`` is what the whole would have where its text is
        known.
        """

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Take a checkpoint's tokenizer instead of making one; called before ``setup``, by every verb but ``fit``."""

    def reuse_tokenizer(self, tokenizer: Any) -> None:
        """Take the tokenizer of a run that ``fit`` goes on with, instead of training it again."""


class _Adapted:
    """A datamodule with every member of `TextData`."""

    def __init__(self, data: Any) -> None:
        self.tokenizer = getattr(data, "tokenizer", None)
        self.vocab_size: int | None = getattr(data, "vocab_size", None)
        self.fingerprints: Mapping[str, str] = getattr(data, "fingerprints", {})
        self.stores: Mapping[str, Any] = getattr(data, "stores", {})
        self.datamodule = data

    def scored_text(self, split: str) -> Any:
        """See `TextData`."""
        return self._call("scored_text", split)

    def text_name(self, split: str) -> str | None:
        """See `TextData`."""
        return self._call("text_name", split)

    def extra_metrics(self, split: str, nats: float) -> dict[str, float]:
        """See `TextData`."""
        return self._call("extra_metrics", split, nats) or {}

    def use_tokenizer(self, tokenizer: Any) -> None:
        """See `TextData`."""
        self._call("use_tokenizer", tokenizer)

    def reuse_tokenizer(self, tokenizer: Any) -> None:
        """See `TextData`."""
        self._call("reuse_tokenizer", tokenizer)

    def _call(self, name: str, *arguments: Any) -> Any:
        method = getattr(self.datamodule, name, None)
        return None if method is None else method(*arguments)


def data_of(trainer: Any) -> TextData:
    """The datamodule of a Trainer (or None) with every member of `TextData`; members that it lacks have defaults."""
    return adapted(getattr(trainer, "datamodule", None))


def adapted(datamodule: Any) -> TextData:
    """A datamodule (or None) with every member of `TextData`; before its ``setup`` it may lack most."""
    return _Adapted(datamodule)
