"""The LightningModule of a GPT with methods for small corpora."""

import math
from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from datamodules.errors import UserError
from datamodules.tokenizers import token_parts
from lit_gpt.bounds import MAX_INT
from lit_gpt.loss import LossInputs
from lit_gpt.methods import extended_gpt
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.r_drop import r_drop_sum
from lit_gpt.methods.sampled_softmax import MULTIPLE, sample
from lit_gpt.model import GPT
from lit_gpt.module import LitGPT
from lit_gpt.optim import OptimizerConfig
from lit_gpt.protocols import Batch, TextData


class LitExtendedGPT(LitGPT):
    """A causal GPT with methods for small corpora, which combine with each other.

    Args:
        config: Shape and options of the network.
        optimizer: Algorithm, learning rates, weight decay and schedule.
        compile: Compile each block with torch.compile, in place. Off by default: it needs a C++ compiler and takes
            about a minute.
        activation_checkpointing: Recompute blocks in the backward pass instead of keeping their activations. A step
            takes a third more time and less memory.
        init_from: Weights that a new run starts from: a checkpoint, a folder that `export` wrote, a Hugging Face
            folder, or the name of a model on the hub, such as gpt2. The configuration must be that of the weights,
            except for dropout and a smaller block_size. A resumed run ignores this option.
        residual_dtype: bfloat16 halves the memory traffic between blocks on a GPU, for a mixed precision. Each block
            then rounds the residual stream to 8 bits, which costs a little accuracy.
        r_drop: R-Drop's alpha (Wu et al. 2021), often 0.5 to 5; 0 for none. Each batch passes through the network twice
            with different dropout, which gives the predictions p and q. The loss is the mean cross-entropy of both,
            plus r_drop * (KL(p||q) + KL(q||p)) / 4: half of the paper's loss. train/loss is the cross-entropy alone,
            train/r_drop the mean of the two KL divergences in nats per scored target. A step takes a little more than
            twice the time.
        r_drop_start: Fraction of the run's steps after which R-Drop begins. With 0.6 most of its gain remains, for two
            fifths of the extra time.
        sampled_softmax: Train with the softmax over a sample of the vocabulary: the targets of the batch and this many
            other tokens, drawn anew in each step (a few more, to make the sample a multiple of 256). 0 for the whole
            vocabulary. Saves time for a large vocabulary and a small network on a CPU, where the LM head is most of the
            work. train/loss is then an estimate; evaluation uses the whole vocabulary.
        sampled_softmax_until: Fraction of the run's steps after which training uses the whole vocabulary again.
    """

    config_class = ExtendedGPTConfig

    def __init__(
        self,
        config: ExtendedGPTConfig = ExtendedGPTConfig(),  # noqa: B008 (copied, never changed)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        compile: bool = False,
        activation_checkpointing: bool = False,
        init_from: str | None = None,
        residual_dtype: Literal["float32", "bfloat16"] = "float32",
        r_drop: float = 0.0,
        r_drop_start: float = 0.0,
        sampled_softmax: int = 0,
        sampled_softmax_until: float = 0.6,
    ) -> None:
        super().__init__(config, optimizer, compile, activation_checkpointing, init_from, residual_dtype)
        if not 0 <= r_drop < math.inf:
            raise UserError(f"r_drop is {r_drop}: give 0 for none, or a positive weight.")
        if not 0 <= r_drop_start < 1:
            raise UserError(f"r_drop_start is {r_drop_start}: give a share of the run, from 0 to below 1.")
        if not 0 <= sampled_softmax <= MAX_INT:
            raise UserError(f"sampled_softmax is {sampled_softmax}: give 0 for all tokens, or a number of tokens.")
        if not 0 < sampled_softmax_until <= 1:
            raise UserError(f"sampled_softmax_until is {sampled_softmax_until}: give a share of the run, up to 1.")
        if sampled_softmax and self.config.kneser_ney_folds:
            raise UserError("sampled_softmax does not work with config.kneser_ney_folds: set one of them to 0.")
        self.options |= {"r_drop": r_drop, "r_drop_start": r_drop_start}
        self.options |= {"sampled_softmax": sampled_softmax, "sampled_softmax_until": sampled_softmax_until}
        self._store_hyper_parameters()
        self.passes = 2 if r_drop else 1  # of each batch through the network
        self._full_softmax_step = math.inf
        self._head_rows: int | None = None  # how many tokens' logits the last step computed; None for all

    def complete_config(self, data: TextData) -> None:
        """Take the vocabulary size from the data, and the number of parts that its tokens share."""
        super().complete_config(data)
        if not self.config.token_parts:
            return
        if data.tokenizer is not None:
            self.config.n_parts = max(map(max, filter(None, token_parts(data.tokenizer))), default=1)
        elif self.config.n_parts is None:
            raise UserError("config.token_parts needs the data's tokenizer, and it has none: leave it out.")

    def assume_vocabulary(self, size: int) -> list[str]:
        """See `LitLanguageModel`; tokens are assumed to share half as many parts."""
        notes = super().assume_vocabulary(size)
        if self.config.token_parts and self.config.n_parts is None:
            self.config.n_parts = size // 2
            notes.append(f"the tokens are assumed to share {size // 2:,} parts")
        return notes

    def build_network(self) -> extended_gpt.Network:
        """The network of ``self.config``."""
        return extended_gpt.build_network(self.config)

    def not_shardable(self) -> str | None:
        """See `LitLanguageModel`; of the methods, those that change the network."""
        methods = {
            "an ensemble (config.members)": self.config.members > 1,
            "a table of counts (config.kneser_ney)": self.config.kneser_ney,
            "a sum of embeddings (config.token_parts)": self.config.token_parts,
            "a sum of embeddings (config.ngrams)": self.config.ngrams,
        }
        used = [name for name, value in methods.items() if value]
        return used[0] if used else super().not_shardable()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See `LitLanguageModel`; compute the steps at which R-Drop begins and the sampled softmax ends."""
        weight = self.options["r_drop"]
        if weight and not max(self.config.dropout, self.config.resolved_attention_dropout):
            raise UserError(
                f"r_drop {weight} compares passes that differ by dropout alone, and config.dropout is 0: set it, to "
                "0.1 for example, or --model.r_drop 0."
            )
        self._r_drop_step = self._step_after("r_drop_start") if weight else 0
        sampled = self.options["sampled_softmax"]
        self._full_softmax_step = self._step_after("sampled_softmax_until") if sampled else math.inf
        return super().configure_optimizers()

    def prepare_trial(self) -> None:
        """See `LitLanguageModel`: the whole vocabulary, and as many passes as R-Drop has."""
        self._full_softmax_step = 0

    def _step_after(self, option: str) -> float:
        """The step at which the fraction of the run has passed that an option gives."""
        fraction = self.options[option]
        if fraction in (0, 1):  # the number of steps need not be known
            return math.inf if fraction else 0
        return float(fraction * self._steps_for(option))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Choose the number of passes: two with R-Drop, once it has begun."""
        self.passes = 2 if self.options["r_drop"] and self.global_step >= self._r_drop_step else 1

    def flops_per_token(self, T: int) -> float:
        """See `LitLanguageModel`; of all passes, and with a sampled softmax of the sampled tokens' logits alone."""
        flops = super().flops_per_token(T)
        if self._head_rows is not None:
            left_out = self.config.padded_vocab_size - self._head_rows
            flops -= 6 * len(self.net.trained_nets()) * self.config.n_embd * left_out  # as in `GPT.flops_per_token`
        return self.passes * flops

    def objective_of(self, batch: Batch, net: GPT) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LitLanguageModel`; with R-Drop, its loss."""
        if self.passes == 1:
            return super().objective_of(batch, net)
        # Two passes: a single one with the batch stacked twice takes 5 % longer on a CPU (256 channels, 4,096 tokens).
        hidden = torch.stack((self._hidden(batch, net), self._hidden(batch, net)))  # (2, B, T, C)
        inputs = self.loss_inputs(batch["targets"], net)
        loss, nats, kl = r_drop_sum(hidden, inputs, self.options["r_drop"])
        return loss, {"loss": nats, "r_drop": kl}

    def loss_inputs(self, targets: Tensor, net: GPT) -> LossInputs:
        """See `LitLanguageModel`; with a sampled softmax, over a sample of the vocabulary."""
        if not self.options["sampled_softmax"] or self.global_step >= self._full_softmax_step:
            self._head_rows = None
            return super().loss_inputs(targets, net)
        sampled = sample(targets, self.config.vocab_size, self.options["sampled_softmax"], MULTIPLE)
        self._head_rows = len(sampled.ids)
        weights = net.head_weights(sampled.ids)
        return LossInputs(net.head, weights, sampled.targets, len(sampled.ids), sampled.shift, net.linear_head)
