"""A GPT of lit-gpt for `transformers`. An export copies this file and the network's own into the model's folder, and
``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` runs them; lit-gpt need not be installed.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from lit_gpt.config import GPTConfig
from lit_gpt.model import GPT


class LitGPTConfig(PretrainedConfig):
    """The configuration for `transformers`. Its ``gpt`` holds the fields of `GPTConfig`."""

    model_type = "lit_gpt"


class _KVCache:
    """Gives a cache of `transformers` the members of `KVCache`.

    Beam search reorders the rows of that cache, so all state must be in it.
    """

    def __init__(self, cache: Cache, n_layer: int) -> None:
        if not isinstance(cache, DynamicCache):
            raise ValueError(f"past_key_values is a {type(cache).__name__}: use a DynamicCache, which is the default.")
        self.layers = [SimpleNamespace(append=partial(cache.update, layer_idx=i)) for i in range(n_layer)]
        self.length = cache.get_seq_length()

    def extend_mask(self, attention_mask: Tensor | None, input_ids: Tensor) -> Tensor | None:
        return attention_mask  # it covers all tokens already, cached ones too


class LitGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """`GPT` with the interface of `transformers`: logits, loss, `generate` with a cache and padding on either side."""

    config_class = LitGPTConfig
    base_model_prefix = "net"  # weights may be stored with and without it

    def __init__(self, config: LitGPTConfig) -> None:
        super().__init__(config)
        self.net = GPT(GPTConfig(**config.gpt))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: `GPT` has initialised its weights."""

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.net.wte

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, (B, T) to (B, T, V). Pads in the mask do not count as positions."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        cache: Any = None if past_key_values is None else _KVCache(past_key_values, self.net.config.n_layer)
        mask = None if attention_mask is None or attention_mask.all() else attention_mask.bool()
        # Without an EOS token, the pad token is the id after the vocabulary, which has no embedding. Pads are masked,
        # so any embedding will do.
        input_ids = input_ids.masked_fill(input_ids == self.config.vocab_size, 0)
        hidden = self.net.hidden(input_ids, attention_mask=mask, cache=cache)
        logits = self.net.head(hidden[:, -logits_to_keep:])  # 0 keeps all
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.size(-1), **options)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
