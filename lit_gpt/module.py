"""The LightningModule of a GPT."""

import math
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from datamodules.errors import UserError
from datamodules.tokenizers import token_parts
from lit_gpt.bounds import MOST_INT
from lit_gpt.config import GPTConfig
from lit_gpt.interop.files import initialise
from lit_gpt.language_model import Batch, LitLanguageModel, say
from lit_gpt.loss import Softmax, r_drop_nats
from lit_gpt.methods.kneser_ney import GPTWithCounts
from lit_gpt.methods.networks import Network, learning_part, members_of, network
from lit_gpt.methods.sampled_softmax import MULTIPLE, sample
from lit_gpt.methods.token_parts import ComposedEmbedding
from lit_gpt.model import GPT
from lit_gpt.optim import OptimizerConfig


class LitGPT(LitLanguageModel):
    """A causal GPT.

    Args:
        config: Shape and options of the network.
        optimizer: Rule, learning rates, decay and schedule.
        compile: Compile each block with torch.compile, in place. Off by default: it needs a C++ compiler and takes
            about a minute.
        init_from: Weights that a new run starts from: a checkpoint, a folder that `export` wrote or Hugging Face's, or
            the name of a model on the hub, such as gpt2. The configuration must be theirs, but for dropout,
            recomputation and a smaller block_size. A resumed run ignores it.
        r_drop: R-Drop's alpha (Wu et al. 2021), often 0.5 to 5; 0 for none. Each batch is read twice with different
            dropout; r_drop * (KL(p||q) + KL(q||p)) / 4 is added to the passes' mean cross-entropy, half of the paper's
            loss. train/loss stays the cross-entropy; train/r_drop is the mean of the two KL in nats per scored target.
            A step takes a little more than twice the time.
        r_drop_start: Share of the run's steps after which R-Drop begins, for most of its gain at less of its cost.
        sampled_softmax: Train with the softmax over the batch's targets and so many other tokens (a few more, to make
            it 256, 512, ...), drawn anew in each step, which stand for the rest of the vocabulary; 0 for all. For a
            large vocabulary and a small network on a CPU, where the head is most of the work. train/loss is then an
            estimate; evaluation scores all tokens.
        sampled_softmax_until: Share of the run's steps after which training takes all tokens.
    """

    config_class = GPTConfig
    net: Network

    def __init__(
        self,
        config: GPTConfig = GPTConfig(),  # noqa: B008 (copied, never changed)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        compile: bool = False,
        init_from: str | None = None,
        r_drop: float = 0.0,
        r_drop_start: float = 0.0,
        sampled_softmax: int = 0,
        sampled_softmax_until: float = 0.6,
    ) -> None:
        given = {"compile": compile, "init_from": init_from, "r_drop": r_drop, "r_drop_start": r_drop_start}
        given |= {"sampled_softmax": sampled_softmax, "sampled_softmax_until": sampled_softmax_until}
        super().__init__(config, optimizer, **given)
        if not 0 <= r_drop < math.inf:
            raise UserError(f"r_drop is {r_drop}: give 0 for none, or a positive weight.")
        if not 0 <= r_drop_start < 1:
            raise UserError(f"r_drop_start is {r_drop_start}: give a share of the run, from 0 to below 1.")
        if not 0 <= sampled_softmax <= MOST_INT:
            raise UserError(f"sampled_softmax is {sampled_softmax}: give 0 for all tokens, or a number of tokens.")
        if not 0 < sampled_softmax_until <= 1:
            raise UserError(f"sampled_softmax_until is {sampled_softmax_until}: give a share of the run, up to 1.")
        self._init_from = init_from
        self._parts: list[list[int]] = []
        self.passes = 2 if r_drop else 1
        self._full_step = math.inf  # where all tokens begin
        self._head_rows: int | None = None  # of the head, that the last step multiplied; None for all

    def complete_config(self, data: Any) -> None:
        """Take the vocabulary from the data, and the parts of its tokens."""
        super().complete_config(data)
        if not self.config.token_parts:
            return
        tokenizer = getattr(data, "tokenizer", None)
        if tokenizer is not None:
            self._parts = token_parts(tokenizer)
            self.config.n_parts = max(map(max, filter(None, self._parts)), default=1)
        elif self.config.n_parts is None:
            raise UserError("config.token_parts needs the data's tokenizer, and it has none: leave it out.")

    def build_network(self) -> Network:
        """What ``self.config`` describes, blocks compiled in place when asked for."""
        net = network(self.config)
        for gpt in members_of(net):
            if isinstance(gpt.wte, ComposedEmbedding) and self._parts:
                gpt.wte.compose(self._parts)
            for block in gpt.blocks if self.options["compile"] else ():
                block.compile()
        return net

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See `LitLanguageModel`; find out when R-Drop begins and the sample ends."""
        weight = self.options["r_drop"]
        if weight and not max(self.config.dropout, self.config.score_dropout):
            raise UserError(
                f"r_drop {weight} compares passes that differ by dropout alone, and config.dropout is 0: set it, to "
                "0.1 for example, or --model.r_drop 0."
            )
        self._r_drop_step = self._step_after("r_drop_start") if weight else 0
        self._full_step = self._step_after("sampled_softmax_until") if self.options["sampled_softmax"] else math.inf
        return super().configure_optimizers()

    def _step_after(self, option: str) -> float:
        """The step with which the share of the run ends that an option gives: 0 and 1 need no end of the run."""
        share = self.options[option]
        if share in (0, 1):
            return math.inf if share else 0
        return float(share * self._steps_for(option))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Read the batch twice under R-Drop."""
        self.passes = 2 if self.options["r_drop"] and self.global_step >= self._r_drop_step else 1

    def flops_per_token(self, T: int) -> float:
        """See `LitLanguageModel`: every pass over the batch counts, and of the head what was multiplied."""
        flops = super().flops_per_token(T)
        if self._head_rows is not None:
            left_out = self.config.vocab_rows - self._head_rows
            flops -= 6 * len(self.learners()) * self.config.n_embd * left_out  # as `GPT.flops_per_token` counts them
        return self.passes * flops

    def learners(self) -> list[GPT]:
        """The members of an ensemble."""
        return members_of(self.net)

    def objective_of(self, batch: Batch, net: GPT) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed nats, with R-Drop when asked for."""
        if self.passes == 1:
            return super().objective_of(batch, net)
        # Two passes: one over the batch stacked twice takes 5 % longer on a CPU (256 channels, 4096 tokens).
        hidden = torch.stack((self._hidden(batch, net), self._hidden(batch, net)))  # (2, B, T, C)
        loss, nats, kl = r_drop_nats(hidden, *self.softmax(batch["targets"], net), weight=self.options["r_drop"])
        return loss, {"loss": nats, "r_drop": kl}

    def softmax(self, targets: Tensor, net: GPT) -> Softmax:
        """See `LitLanguageModel`; over a sample of the vocabulary when asked for."""
        if not self.options["sampled_softmax"] or self.global_step >= self._full_step:
            self._head_rows = None
            return super().softmax(targets, net)
        found = sample(targets, self.config.vocab_size, self.options["sampled_softmax"], MULTIPLE)
        self._head_rows = len(found.ids)
        weights = net.head_weights(found.ids)
        return Softmax(partial(net.head, weights=weights), weights, found.targets, len(found.ids), found.shift)

    def on_fit_start(self) -> None:
        """Take the weights of ``init_from`` and count the text, once, unless a checkpoint has brought both."""
        if self._init_from is not None:
            initialise(learning_part(self.net), self._init_from, getattr(self._data(), "tokenizer", None))
            say([f"starting from the weights of {self._init_from}"])
            self._init_from = None
        if isinstance(self.net, GPTWithCounts) and not self.net.counts.is_counted:
            stores = getattr(self._data(), "stores", None)
            if stores is None:
                raise UserError(
                    "config.kneser_ney counts the text of our datamodules, and this data is none: leave it out."
                )
            self.net.counts.count(stores["train"])

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """See `LitLanguageModel`; the checkpoint's weights are the ones to go on with."""
        super().on_load_checkpoint(checkpoint_)
        self._init_from = None
