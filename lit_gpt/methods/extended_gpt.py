"""`build_network` builds what an `ExtendedGPTConfig` describes. `ExtendedGPT` is a GPT whose token embedding may add
shared parts and n-grams.
"""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.tokenizers import token_parts
from lit_gpt.bounds import check_memory
from lit_gpt.config import GPTConfig
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.counts_gpt import GPTOnCounts
from lit_gpt.methods.ensemble import GPTEnsemble
from lit_gpt.methods.kneser_ney import GPTWithCounts
from lit_gpt.methods.ngrams import HistoryCache, NgramEmbedding, tokens_so_far
from lit_gpt.methods.token_parts import PartsEmbedding
from lit_gpt.model import GPT, TokenEmbedding
from lit_gpt.protocols import TextData


class ExtendedEmbedding(TokenEmbedding):
    """A token's own embedding, plus, if configured, those of its parts and of the n-grams that end at it."""

    def __init__(self, config: ExtendedGPTConfig) -> None:
        """`config.n_parts` must be known if `config.token_parts` is true."""
        super().__init__(config.padded_vocab_size, config.n_embd)
        self.parts = _build_parts(config)
        self.ngrams = _build_ngrams(config)

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """(B, T) to (B, T, C). Arguments are those of `GPT.hidden`."""
        x = self.rows(input_ids)
        if self.ngrams is None:
            return x
        tokens = tokens_so_far(input_ids, attention_mask, None if cache is None else cache.history)
        return x + self.ngrams(tokens, input_ids.size(1), document_ids)

    def rows(self, ids: Tensor | None = None) -> Tensor:
        """See `TokenEmbedding.rows`; with the parts, but without n-grams, which depend on the earlier tokens."""
        own = super().rows(ids)
        return own if self.parts is None else own + self.parts(ids)

    def reset(self) -> None:
        """Set what parts and n-grams add to zero, so that a new network predicts as one without them."""
        for part in (self.parts, self.ngrams):
            if part is not None:
                part.reset()

    @torch.no_grad()
    def fold(self) -> TokenEmbedding:
        """Add the parts to the table, once for all. Without n-grams the result is a plain `TokenEmbedding`."""
        table = nn.Parameter(self.rows().clone(), requires_grad=False)
        if self.ngrams is None:
            # On meta: no memory for weights that are replaced below.
            plain = TokenEmbedding(table.size(0), table.size(1), device="meta")
            plain.weight = table
            return plain
        self.weight, self.parts = table, None
        return self


def _build_parts(config: ExtendedGPTConfig) -> PartsEmbedding | None:
    if not config.token_parts:
        return None
    assert config.n_parts is not None, "ExtendedGPTConfig.n_parts is not set: the data's tokenizer decides it"
    return PartsEmbedding(config.padded_vocab_size, config.n_parts, config.n_embd)


def _build_ngrams(config: ExtendedGPTConfig) -> NgramEmbedding | None:
    if not config.ngrams:
        return None
    return NgramEmbedding(config.ngrams, config.ngram_rows, config.ngram_width, config.n_embd)


class ExtendedGPT(GPT):
    """A GPT with an `ExtendedEmbedding`."""

    config: ExtendedGPTConfig
    wte: Any
    cache_class = HistoryCache

    def build_embedding(self) -> TokenEmbedding:
        """The token embedding for ``self.config``, with parts and n-grams."""
        return ExtendedEmbedding(self.config)

    def fold(self) -> GPT:
        """Merge the parts into the token embedding, for inference; without n-grams the result is a plain `GPT`."""
        self.wte = self.wte.fold()
        if isinstance(self.wte, ExtendedEmbedding):
            return self
        options = {field.name: getattr(self.config, field.name) for field in fields(GPTConfig)}
        with torch.device("meta"):  # no memory for weights that are replaced below
            plain = GPT(GPTConfig(**options))
        plain.load_state_dict(self.state_dict(), assign=True)
        return plain.train(self.training)

    def prepare(self, data: TextData) -> None:
        """Get the parts of each token from the data's tokenizer, unless they were loaded from a checkpoint."""
        parts = self.wte.parts
        if parts is not None and data.tokenizer is not None and not parts.table.any():
            parts.assign(token_parts(data.tokenizer))


Network = ExtendedGPT | GPTEnsemble | GPTOnCounts | GPTWithCounts


def build_network(config: ExtendedGPTConfig) -> Network:
    """Build the network of a configuration: one GPT or an ensemble, alone or mixed with n-gram counts.

    Raises:
        UserError: The weights in float32 need more memory than there is.
    """
    check_memory(config.matrix_parameters, lower="config.n_embd, config.n_layer or the vocabulary")
    if config.kneser_ney_folds:
        return GPTOnCounts(config)
    if config.kneser_ney:
        return GPTWithCounts(config, build_network(replace(config, kneser_ney=0)))
    if config.members == 1:
        return ExtendedGPT(config)
    return GPTEnsemble(config, [ExtendedGPT(replace(config, members=1)) for _ in range(config.members)])
