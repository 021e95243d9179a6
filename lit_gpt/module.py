"""`LitGPT`, the LightningModule of a GPT. Training itself is in `lit_gpt.language_model`."""

from typing import Any, Literal

import torch

from datamodules.errors import UserError
from lit_gpt.config import GPTConfig
from lit_gpt.interop.importing import load_pretrained
from lit_gpt.language_model import LitLanguageModel, print_rank_zero
from lit_gpt.model import GPT
from lit_gpt.optim import OptimizerConfig
from lit_gpt.protocols import Network, data_of

#: How often a block and the kernels of the loss may be compiled in a process, for all of its networks together.
RECOMPILE_LIMIT = 200


class LitTransformer(LitLanguageModel):
    """What the modules of a GPT and of a BERT have in common: compiled blocks, activation checkpointing, and weights to
    start from. The options are those of `LitGPT`.
    """

    net: Network

    def __init__(
        self,
        config: Any,
        optimizer: Any,
        compile: bool,
        activation_checkpointing: bool,
        init_from: str | None,
        **more: Any,
    ) -> None:
        # The base class stores these with the hyper-parameters.
        options = {"compile": compile, "activation_checkpointing": activation_checkpointing, "init_from": init_from}
        super().__init__(config, optimizer, **options, **more)
        self._init_from = init_from

    def _add_network(self) -> None:
        """Build the network, and apply ``activation_checkpointing`` and ``compile``.

        Both belong to training. `build_network` also rebuilds a checkpoint's network for inference, without them.
        """
        super()._add_network()
        is_compiled = self.options["compile"]
        if is_compiled:
            # It splits graphs where DDP sends gradients. A block is smaller than what DDP sends at a time, and would be
            # cut in two.
            torch._dynamo.config.optimize_ddp = False
            # torch compiles a function 8 times in a process, then runs blocks uncompiled, and refuses the loss. Each
            # network takes 2 or more of these times: a notebook's fifth would be slow or refused.
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        for net in self.net.trained_nets():
            net.activation_checkpointing = self.options["activation_checkpointing"]
            net.compiled = is_compiled
            for block in net.blocks if is_compiled else ():
                block.compile()

    def on_fit_start(self) -> None:
        """Load the weights of ``init_from``, once, unless a checkpoint was loaded."""
        if self._init_from is not None:
            tokenizer = data_of(self._trainer).tokenizer
            nets = self.net.trained_nets()
            if len(nets) > 1:
                raise UserError(f"init_from starts one GPT, and this network has {len(nets)}: leave it out.")
            notes = load_pretrained(nets[0], self._init_from, tokenizer)
            print_rank_zero([f"starting from the weights of {self._init_from}", *notes])
            self._init_from = None  # a second fit continues from its own weights
        super().on_fit_start()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `LitLanguageModel`. The checkpoint's weights take the place of ``init_from``."""
        super().on_load_checkpoint(checkpoint)
        self._init_from = None


class LitGPT(LitTransformer):
    """Trains a GPT.

    Args:
        config: Size and options of the network.
        optimizer: Algorithm, learning rates, weight decay and schedule.
        compile: Compile each block with torch.compile, in place. Off by default: it needs a C++ compiler and takes
            about a minute.
        activation_checkpointing: Compute each block again in the backward pass instead of keeping its activations: a
            third more arithmetic in a step, and one activation in memory for each block instead of 17.
        init_from: Weights that a new run starts from: a checkpoint, a folder that `export` wrote, a Hugging Face
            folder, or the name of a model on the hub, such as gpt2. The configuration must equal that of the weights,
            except for dropout and a smaller block_size. A resumed run ignores it.
        residual_dtype: bfloat16 halves the memory traffic between blocks on a GPU, for a mixed precision. Each block
            then rounds the residual stream to 8 bits, which costs a little accuracy.
    """

    config_class = GPTConfig

    def __init__(
        self,
        config: GPTConfig = GPTConfig(),  # noqa: B008 (the base class copies it)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        compile: bool = False,
        activation_checkpointing: bool = False,
        init_from: str | None = None,
        residual_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(config, optimizer, compile, activation_checkpointing, init_from, residual_dtype=residual_dtype)

    def build_network(self) -> Network:
        """The GPT of ``self.config``."""
        return GPT(self.config)

    def _add_network(self) -> None:
        """See `LitTransformer`; also applies ``residual_dtype``."""
        super()._add_network()
        for gpt in self.net.trained_nets():
            gpt.residual_dtype = self._residual_dtype()

    def _residual_dtype(self) -> torch.dtype | None:
        """That of the option; None for the one that the network has by itself."""
        if self.options["residual_dtype"] == "float32":
            return None
        precision = None if self._trainer is None else str(self._trainer.precision)
        if precision is not None and not precision.endswith("-mixed"):
            raise UserError(
                f"residual_dtype bfloat16 is for a mixed precision, and the Trainer's is {precision}: set "
                "--trainer.precision bf16-mixed, or --model.residual_dtype float32."
            )
        return torch.bfloat16
