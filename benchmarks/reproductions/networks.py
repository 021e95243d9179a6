"""Networks that no option builds."""

from dataclasses import replace

from lit_gpt import LitGPT
from lit_gpt.model import GPT


class NoEmbeddingDropout(LitGPT):
    """A GPT whose blocks have the dropout of its config, and whose embeddings have none.

    The options are those of `LitGPT`.
    """

    def build_network(self) -> GPT:
        """The blocks keep the config that they were built with. What the GPT itself reads has no dropout."""
        net = GPT(self.config)
        net.config = replace(self.config, dropout=0.0)
        return net
