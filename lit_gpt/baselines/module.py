"""The LightningModule of the bigram baselines."""

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lit_gpt.baselines.bigram import Bigram, BigramConfig, CountBigram, build_bigram
from lit_gpt.distributed import summed_over_processes
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.optim import OptimizerConfig
from lit_gpt.protocols import Batch, data_of


class LitBigram(LitLanguageModel):
    """A bigram baseline, learned by gradient descent or counted. It has the same commands and metrics as a GPT.

    Args:
        config: Kind, row length and smoothing.
        optimizer: Algorithm, learning rates, weight decay and schedule of the neural kind.
    """

    config_class = BigramConfig
    net: Bigram

    def __init__(
        self,
        config: BigramConfig = BigramConfig(),  # noqa: B008 (copied, never changed)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
    ) -> None:
        super().__init__(config, optimizer)
        # Lightning counts the steps of an optimizer, so the counting kind needs one. It updates this parameter alone,
        # which no prediction depends on.
        self.dummy = nn.Parameter(torch.zeros(())) if self.config.kind == "counts" else None

    def build_network(self) -> Bigram:
        """The network of ``self.config``."""
        return build_bigram(self.config)

    def on_fit_start(self) -> None:
        """Choose what is counted: the training text, or the first epoch's batches if the datamodule has no text."""
        self._counts_batches = "train" not in data_of(self._trainer).stores
        super().on_fit_start()

    def batch_cross_entropy(self, batch: Batch, net: Bigram) -> Tensor:
        """Summed cross-entropy of the batch in nats. The counting kind may then count the batch, see `on_fit_start`."""
        nats = super().batch_cross_entropy(batch, net)
        if not isinstance(net, CountBigram) or self.dummy is None:
            return nats
        if self._counts_batches and self.current_epoch == 0:
            pairs = net.pairs(batch["input_ids"], batch["targets"])
            net.counts += summed_over_processes(pairs, self.trainer.world_size)
        return nats + 0 * self.dummy  # so that the loss has a gradient

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See `LitLanguageModel`; the counting kind has an optimizer without effect."""
        if self.dummy is not None:
            return torch.optim.SGD([self.dummy], lr=0.0)
        return super().configure_optimizers()
