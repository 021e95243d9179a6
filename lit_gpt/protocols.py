"""The interfaces of a network and of a datamodule, with a default for every member that is optional.

A network of your own subclasses `Network`, sets `config` and writes `hidden`, `head` and, where the head has
parameters, `head_weights`. A datamodule of your own yields batches with ``input_ids`` and ``targets``. All members of
`TextData` are optional: `data_of` gives a default for each that is missing. docs/extending.md builds one of each.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from datamodules.errors import UserError
from lit_gpt.fused_loss import LinearHead

#: What a data loader yields: tensors by name, among them ``input_ids`` (B, T) and ``targets`` (B, T).
Batch = dict[str, Tensor]


class Cache(Protocol):
    """State that decoding keeps between forward passes, such as a KV cache. `Network.new_cache` makes one.

    Decoding needs these two members. The rest is between a network and its cache.
    """

    @property
    def length(self) -> int:
        """Number of tokens of each row in the cache, padding included."""

    def reset(self) -> None:
        """Drop all tokens, and keep the memory for others."""


class Network(nn.Module):
    """Base class of every language model: `hidden` computes hidden states, `head` turns them into logits.

    The two are separate so that loss and metrics can run `head` on a few tokens at a time: the logits of all tokens
    would need too much memory.

    Attributes:
        config: A dataclass with at least ``block_size`` (the longest context, in tokens) and ``vocab_size``.
        causal: Whether a position predicts the token after it from itself and those before. False for an encoder: a
            position predicts its own token, masked in the input, from both sides. It cannot continue a text, so
            ``generate`` and ``inspect`` refuse its checkpoints, and ``fit`` draws no samples.
    """

    config: Any
    causal: bool = True

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
        """Hidden states of every position, (B, T) to (B, T, C).

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: True for real tokens, (B, T). Generation passes it for prompts that are padded on the left.
                With a cache it covers the new tokens alone, and the network keeps that of the earlier ones.
            document_ids: The id of each token's document, (B, T). Passed where rows are packed.
            cache: A `Cache` from `new_cache`, with the state of the tokens before `input_ids`. The network adds these
                to it. None: the tokens are the first.
        """
        raise NotImplementedError

    def hidden_of_batch(self, batch: Batch) -> Tensor:
        """Hidden states (B, T, C) of a batch of training or evaluation.

        Rows are padded on the right. There causal attention already hides pads from real tokens. So the default does
        not pass attention_mask, and attention can use its fast causal kernel. An encoder overrides this.
        """
        return self.hidden(batch["input_ids"], document_ids=batch.get("document_ids"))

    def head(self, hidden: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Logits of hidden states, (..., C) to (..., V).

        Args:
            hidden: What `hidden` returned.
            weights: What `head_weights` returned, or copies in autocast's dtype; None: the network's own.
        """
        raise NotImplementedError

    def head_weights(self, ids: Tensor | None = None) -> list[Tensor]:
        """All parameters that `head` uses. The loss sums their gradients over chunks, and refuses a head that uses
        another.

        The default is for a head without parameters.

        Args:
            ids: Token ids whose rows are returned, (K,); None: all rows. Only the sampled softmax passes ids.
        """
        return []

    @property
    def linear_head(self) -> LinearHead | None:
        """Describes a `head` that is one matmul with `head_weights`, perhaps followed by a softcap, so that a GPU
        computes its loss and metrics faster. None, the default: `head` is called, and may be anything.
        """
        return None

    @property
    def probability_head(self) -> Callable[[Any, list[Tensor]], Tensor] | None:
        """A function with the arguments of `head` that returns probabilities, at least in float32, of which `head` is
        the logarithm. Evaluation then computes neither the logarithms of all tokens nor a softmax of them. None, the
        default: there is none.
        """
        return None

    def new_cache(self, batch_size: int) -> Any:
        """An empty `Cache` for a batch of `batch_size`. None: the network has no cache, and decoding passes the full
        context for every new token.
        """
        return None

    def trained_nets(self) -> list[Any]:
        """The networks that have a loss and a gradient norm of their own: this one, or the members of an ensemble."""
        return [self]

    def num_parameters(self, *, embeddings: bool = True, positions: bool = True) -> int:
        """Number of parameters. The default counts all. `GPT` leaves out token embeddings or learned positions if a
        flag is False.
        """
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, T: int | None = None) -> int | None:
        """Floating-point operations of a forward and a backward pass, per token, at sequence length T; None: unknown.

        Without it, model FLOPs utilisation (``train/mfu``) is not logged.
        """
        return None

    def expected_initial_loss(self) -> float | None:
        """Cross-entropy per token before training, in nats; None: unknown.

        `doctor` compares it with the measured one. The default is ln V, the loss of equal probabilities.
        """
        return math.log(self.config.vocab_size)

    def prepare(self, data: "TextData") -> None:
        """Compute what gradient descent does not learn, such as n-gram counts, from the training text.

        Every ``fit`` calls it before its first step, a resumed one too.
        """

    def fold(self) -> "Network":
        """A network with the same logits and less to compute, for inference. It may be this one, changed in place.

        For example, embeddings that are sums of several tables become one table.
        """
        return self


class TextData(Protocol):
    """Members that a datamodule may have. Each is optional, and its description says what is lost without it.

    ``datamodule`` is no member of a datamodule: `data_of` adds it.
    """

    datamodule: Any
    """The datamodule itself, None where there is none."""
    tokenizer: Any
    """Encodes and decodes text. Without it: no samples, no token's text from ``predict``, and the verb ``generate``
    refuses the checkpoint."""
    vocab_size: int | None
    """Number of token ids. Without it: ``model.config.vocab_size`` has to be set."""
    fingerprints: Mapping[str, str]
    """Hashes of the text and of the tokenizer, with the keys ``data`` and ``tokenizer``. Without them: a resumed run
    does not notice that the text changed."""
    stores: Mapping[str, Any]
    """Token ids of each split, as `datamodules.tokens.TokenStream`. Without them: no n-gram counts, and the verb
    ``data`` prints batches alone."""

    masked: bool | None
    """Whether targets are masked tokens of the input itself, for an encoder, and not the tokens after. Without it:
    nobody checks that network and data are of one kind."""

    @property
    def text_facts(self) -> Any:
        """Sizes of the text, and the losses of models without a network, as `datamodules.text_facts.TextFacts`.
        Without them: the table at the start of ``fit`` has "-" in their place.
        """

    @property
    def step_size(self) -> Any:
        """Rows of an optimizer step, as `datamodules.step_size.StepSize`. Without it: the table has "-" likewise."""

    def scored_text(self, split: str) -> Any:
        """Numbers of characters and bytes of a split (``val``, ``test``, ``train_eval``), as `datamodules.ScoredText`.
        None: unknown. Without it: no bits per byte (``bpb``) and no ``nats_per_char``.
        """

    def text_name(self, split: str) -> str | None:
        """The name of a split's text, to be printed (``val``, ``test``, or ``predict`` if that is a separate text).
        Without it: ``validate``, ``test`` and ``predict`` do not print what they score.
        """

    def extra_metrics(self, split: str, nats: float) -> dict[str, float]:
        """More metrics of a split, such as a challenge's score, from its total cross-entropy in nats. They are logged
        as ``SPLIT/NAME``. If only a part of the split was scored and its text is known, ``nats`` is scaled up to all of
        it.
        """

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Use a checkpoint's tokenizer instead of making one. Every verb but ``fit`` calls it, before ``setup``."""

    def reuse_tokenizer(self, tokenizer: Any) -> None:
        """Use the tokenizer of the run that ``fit`` resumes, instead of training it again."""


class _WithDefaults:
    """A datamodule with a default for every member of `TextData` that it lacks."""

    def __init__(self, data: Any) -> None:
        self.tokenizer = getattr(data, "tokenizer", None)
        self.vocab_size: int | None = getattr(data, "vocab_size", None)
        self.fingerprints: Mapping[str, str] = getattr(data, "fingerprints", {})
        self.stores: Mapping[str, Any] = getattr(data, "stores", {})
        self.masked: bool | None = getattr(data, "masked", None)
        self.datamodule = data

    @property
    def text_facts(self) -> Any:
        """See `TextData`."""
        return getattr(self.datamodule, "text_facts", None)

    @property
    def step_size(self) -> Any:
        """See `TextData`. It is computed from the Trainer's processes, so not before it is asked for."""
        return getattr(self.datamodule, "step_size", None)

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
    """The datamodule of a Trainer (or of None), with a default for every member of `TextData` that it lacks."""
    return with_defaults(getattr(trainer, "datamodule", None))


def with_defaults(datamodule: Any) -> TextData:
    """A datamodule (or None), with defaults for the members of `TextData` that it lacks. Many do before ``setup``."""
    return _WithDefaults(datamodule)


def check_targets(net: Network, data: TextData) -> None:
    """Refuse data of masked tokens for a network of next tokens, and the other way round.

    Both would train without an error: an encoder reads the next token off its input.
    """
    if data.masked is None or data.masked != net.causal:
        return
    name, source = type(net).__name__, type(data.datamodule).__name__
    if net.causal:
        raise UserError(
            f"a {name} predicts the next token, and {source} masks tokens for an encoder: give --model LitBERT, or "
            "other data."
        )
    raise UserError(
        f"a {name} fills masked tokens, and the targets of {source} are next tokens, which an encoder would read off "
        "its input: give --data BertDataModule, or --model LitGPT."
    )


def check_batch(batch: Any) -> None:
    """Refuse batches that are no dict with ``input_ids`` and ``targets``, such as a pair of tensors."""
    missing = [name for name in ("input_ids", "targets") if not isinstance(batch, dict) or name not in batch]
    if missing:
        kind = f"dict of {', '.join(map(str, batch))}" if isinstance(batch, dict) else type(batch).__name__
        raise UserError(
            f"the data's batches are each a {kind}, without {' and '.join(missing)}: let its dataset return dicts of "
            "input_ids (T,) and targets (T,), where targets[i] is the token after input_ids[i]."
        )
