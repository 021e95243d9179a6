"""The LightningModule of the bigram baselines."""

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lit_gpt.baselines.bigram import Bigram, BigramConfig, CountBigram, bigram
from lit_gpt.distributed import summed_over_processes
from lit_gpt.language_model import Batch, LitLanguageModel
from lit_gpt.optim import OptimizerConfig
from lit_gpt.protocols import data_of


class LitBigram(LitLanguageModel):
    """A bigram baseline, by gradient descent or by counting: trained, scored and sampled by the same verbs as a GPT.

    Args:
        config: Kind, row length and smoothing.
        optimizer: Rule, learning rates, decay and schedule of the neural kind.
    """

    config_class = BigramConfig
    net: Bigram

    def __init__(
        self,
        config: BigramConfig = BigramConfig(),  # noqa: B008 (copied, never changed)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
    ) -> None:
        super().__init__(config, optimizer)
        # Lightning counts the steps of an optimizer; counting pairs has one with nothing to learn.
        self.nothing = nn.Parameter(torch.zeros(())) if self.config.kind == "counts" else None

    def build_network(self) -> Bigram:
        """The table of ``self.config``."""
        return bigram(self.config)

    def on_fit_start(self) -> None:
        """Count the training text, or else, where the data cannot give it, the batches of the first epoch."""
        self._counts_batches = "train" not in data_of(self._trainer).stores
        super().on_fit_start()

    def batch_cross_entropy(self, batch: Batch, net: Bigram) -> Tensor:
        """Summed nats; the counting kind then counts the batch where it has no text to count, in the first epoch."""
        nats = super().batch_cross_entropy(batch, net)
        if not isinstance(net, CountBigram) or self.nothing is None:
            return nats
        if self._counts_batches and self.current_epoch == 0:
            pairs = net.pairs(batch["input_ids"], batch["targets"])
            net.counts += summed_over_processes(pairs, self.trainer.world_size)
        return nats + 0 * self.nothing

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The base's, or for counts one that changes nothing."""
        if self.nothing is not None:
            return torch.optim.SGD([self.nothing], lr=0.0)
        return super().configure_optimizers()
