"""The LightningModule of a GPT."""

from typing import Any

from torch import Tensor

from lit_gpt.config import GPTConfig
from lit_gpt.interop import initialise
from lit_gpt.model import GPT
from lit_gpt.module import LitLanguageModel, say
from lit_gpt.optim import OptimizerConfig


class LitGPT(LitLanguageModel):
    """A causal GPT.

    Args:
        config: Shape and options of the network.
        optimizer: Rule, learning rates, decay and schedule.
        compile: Compile each block with torch.compile, in place. Off by default: it needs a C++ compiler and takes
            about a minute.
        init_from: Weights that a new run starts from: a checkpoint, a folder that `export` wrote or Hugging Face's, or
            the name of a model on the hub, such as gpt2. The configuration must be theirs. A resumed run ignores it.
    """

    config_class = GPTConfig
    net: GPT

    def __init__(
        self,
        config: GPTConfig = GPTConfig(),  # noqa: B008 (copied, never changed)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        compile: bool = False,
        init_from: str | None = None,
    ) -> None:
        super().__init__(config, optimizer, compile=compile, init_from=init_from)
        self._init_from = init_from

    def build_network(self) -> GPT:
        """The GPT of ``self.config``, its blocks compiled in place when asked for."""
        net = GPT(self.config)
        if self.options["compile"]:
            for block in net.blocks:
                block.compile()
        return net

    def on_fit_start(self) -> None:
        """Take the weights of ``init_from``, once, unless a checkpoint has brought its own."""
        if self._init_from is not None:
            initialise(self.net, self._init_from)
            say([f"starting from the weights of {self._init_from}"])
            self._init_from = None

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """See `LitLanguageModel`; the checkpoint's weights are the ones to go on with."""
        super().on_load_checkpoint(checkpoint_)
        self._init_from = None

    def head_parameters(self) -> list[Tensor]:
        """The head's weight and bias, or the embedding's weight when they are tied."""
        return list((self.net.lm_head or self.net.wte).parameters())
