"""Training set-ups with one fault each: in our own modules and data, and in a plain LightningModule."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from datamodules import CharDataModule, HeadlinesDataModule
from datamodules.batches import BatchLoader
from datamodules.tokenizers import CharTokenizer
from lit_gpt import GPT, GPTConfig, LitGPT, OptimizerConfig
from lit_gpt.model import Block

SIZE = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1}


@dataclass
class Fault:
    """A fault.

    Attributes:
        line: The check that has to name it.
        build: Makes module and datamodule, from a text of one document and one of many lines.
        follows: Checks that may fail with it, because they see its consequences.
        options: Of the Trainer.
    """

    line: str
    build: Callable[[Path, Path], tuple[LightningModule, LightningDataModule]]
    follows: tuple[str, ...] = ()
    options: dict[str, Any] | None = None


def chars(text: Path, **options: Any) -> CharDataModule:
    return CharDataModule(str(text), **{"tokens_per_step": 128, **options})


def lines(text: Path, cls: type[HeadlinesDataModule] = HeadlinesDataModule, **options: Any) -> HeadlinesDataModule:
    return cls(str(text), **{"tokenizer": "char", "tokens_per_step": 128, "block_size": 32, **options})


def gpt(
    net: type[GPT] = GPT, module: type[LitGPT] = LitGPT, optimizer: dict[str, Any] | None = None, **config: Any
) -> LitGPT:
    class WithNet(module):  # type: ignore[misc, valid-type]
        def build_network(self) -> GPT:
            return net(self.config)

    return WithNet(GPTConfig(**{**SIZE, **config}), OptimizerConfig(**{"lr": 3e-3, **(optimizer or {})}))


def wide(**config: Any) -> dict[str, Any]:
    """For packed lines."""
    return {"block_size": 32, **config}


# ---- faults of a network


class Softmax(GPT):
    def head(self, hidden: Tensor, weights: Any = None) -> Tensor:
        return super().head(hidden, weights).softmax(-1)


class SeesAll(GPT):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config, causal=False) for _ in range(config.n_layer))
        self.reset_parameters()


class Rolls(GPT):
    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        return super().hidden(input_ids, **context) + self.wte(input_ids.roll(-1, 1))


class Detached(GPT):
    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        return super().hidden(input_ids, **context).detach()


class Frozen(GPT):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.blocks.requires_grad_(False)


class SeesOtherDocuments(GPT):
    def hidden(self, input_ids: Tensor, *, document_ids: Any = None, **context: Any) -> Tensor:
        return super().hidden(input_ids, **context)


class PositionsFromTheEnd(GPT):
    """A row of T tokens takes the last T positions of the block: wrong in rows shorter than it."""

    def hidden(self, input_ids: Tensor, *, cache: Any = None, **context: Any) -> Tensor:
        assert self.wpe is not None
        usual, T = self.wpe.weight.data, input_ids.size(1)
        shifted = self.wpe(torch.arange(self.config.block_size - T, self.config.block_size))
        self_wpe, self.wpe = self.wpe, None
        embed = self.wte.forward
        self.wte.forward = lambda ids, **kw: embed(ids, **kw) + shifted  # type: ignore[method-assign]
        try:
            return super().hidden(input_ids, cache=cache, **context)
        finally:
            self.wte.forward, self.wpe = embed, self_wpe  # type: ignore[method-assign]
            assert usual is not None


class CacheForgetsPositions(GPT):
    def _cos_sin(self, past_length: int, T: int, device: torch.device) -> Any:
        return super()._cos_sin(0, T, device)


class SeesPads(GPT):
    def hidden(self, input_ids: Tensor, *, attention_mask: Any = None, **context: Any) -> Tensor:
        return super().hidden(input_ids, **context)


class MaskOfTheWidth(GPT):
    """The causal mask covers the first n_embd tokens; those after them see all."""

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        x = super().hidden(input_ids, **context)
        beyond = torch.arange(x.size(1)) >= self.config.n_embd
        return x + 0.1 * x.mean(1, keepdim=True) * beyond[:, None]


class HugeHead(GPT):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        assert self.lm_head is not None
        with torch.no_grad():
            self.lm_head.weight.mul_(200)


class DropoutStaysOn(GPT):
    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        return F.dropout(super().hidden(input_ids, **context), 0.1)


class NanInBfloat16(GPT):
    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        x = super().hidden(input_ids, **context)
        y = F.linear(x, torch.eye(x.size(-1)))  # autocast computes it in bfloat16
        return x + (y.float() - x).abs().sum(-1, keepdim=True).mul(-1e9).exp().log().clamp(max=0).nan_to_num(
            neginf=math.nan
        )


class UntiedCopy(GPT):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        assert self.lm_head is not None
        self.lm_head.weight = nn.Parameter(self.wte.weight.detach().clone())


class KeepsStateOutside(GPT):
    """A scale that grows with every batch, and that no checkpoint has."""

    scale = 1.0

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.scale += 0.01
        return super().hidden(input_ids, **context) * self.scale


# ---- faults of a module


class ShiftsAgain(LitGPT):
    def batch_cross_entropy(self, batch: Any, net: Any) -> Tensor:
        targets = F.pad(batch["targets"][:, 1:], (0, 1), value=-100)
        return super().batch_cross_entropy({**batch, "targets": targets}, net)


class MeanOfMeans(LitGPT):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self._step_sums, self._scored_counts = 0, []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * batch["targets"].numel() / (batch["targets"] >= 0).sum()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        LightningModule.optimizer_step(self, *args, **kwargs)


class CountsUnscored(LitGPT):
    def batch_cross_entropy(self, batch: Any, net: Any) -> Tensor:
        return super().batch_cross_entropy({**batch, "targets": batch["targets"].clamp(min=0)}, net)


class EvaluatesInTrainMode(LitGPT):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.net.train()
        super().validation_step(batch, batch_idx, dataloader_idx)


class EvaluatesAnother(LitGPT):
    def on_fit_start(self) -> None:
        super().on_fit_start()
        torch.manual_seed(7)
        self.other = [GPT(self.config).eval()]

    def token_scores(self, batch: Any) -> Any:
        trained, self.net = self.net, self.other[0]
        try:
            return super().token_scores(batch)
        finally:
            self.net = trained


class EvaluatesHalfRows(LitGPT):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step({k: v[:, : v.size(1) // 2] for k, v in batch.items()}, batch_idx, dataloader_idx)


class HalvesNats(LitGPT):
    """Probabilities that sum to more than 1."""

    def token_scores(self, batch: Any) -> Any:
        nats, rank = super().token_scores(batch)
        return nats / 2, rank


class DecaysLate(LitGPT):
    def _total_steps(self) -> int:
        return 10 * super()._total_steps()


class DecaysBiases(LitGPT):
    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        for group in made["optimizer"].param_groups:  # type: ignore[index, call-overload]
            group["weight_decay"] = 0.1
        return made


class ForgetsTheHead(LitGPT):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for n, p in self.named_parameters() if "lm_head" not in n], lr=0.1)


# ---- faults of data


class Changed(BatchLoader):
    """A loader whose batches are changed."""

    def __init__(self, loader: BatchLoader, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        super().__init__(loader.dataset)
        self.change = change

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(self.change, super().__iter__())


def _unshifted(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**batch, "targets": batch["input_ids"].where(batch["targets"] >= 0, torch.tensor(-100))}


class Unshifted(CharDataModule):
    def train_dataloader(self) -> BatchLoader:
        return Changed(super().train_dataloader(), _unshifted)


class Repeats(CharDataModule):
    def train_dataloader(self) -> BatchLoader:
        loader = super().train_dataloader()
        first = next(iter(loader))
        return Changed(loader, lambda batch: {name: value.clone() for name, value in first.items()})


class DropsTheLastBatch(CharDataModule):
    def val_dataloader(self) -> Any:
        loaders = super().val_dataloader()
        loaders[0].dataset.share = replace(loaders[0].dataset.share, rows=loaders[0].dataset.share.rows - 8)
        return loaders


class ScoresPads(HeadlinesDataModule):
    def train_dataloader(self) -> BatchLoader:
        def score(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {**batch, "targets": batch["targets"].where(batch["attention_mask"], torch.tensor(0))}

        return Changed(super().train_dataloader(), score)


class PadIsEos(HeadlinesDataModule):
    """Takes every EOS token for a pad."""

    def train_dataloader(self) -> BatchLoader:
        eos = self.tokenizer.eos_id

        def mask(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {**batch, "targets": batch["targets"].masked_fill(batch["targets"] == eos, -100)}

        return Changed(super().train_dataloader(), mask)


class LosesCapitals(CharTokenizer):
    def encode_array(self, text: str, start: bool = True) -> np.ndarray:
        return super().encode_array(text.lower(), start)


class Lossy(CharDataModule):
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.tokenizer.__class__ = LosesCapitals


class LossyAfterTheFirst(LosesCapitals):
    """Leaves the first document as it is."""

    read = 0

    def encode_array(self, text: str, start: bool = True) -> np.ndarray:
        self.read += 1
        return super().encode_array(text, start) if self.read > 1 else CharTokenizer.encode_array(self, text, start)


class LossyLines(HeadlinesDataModule):
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.tokenizer.__class__ = LossyAfterTheFirst


class Overlapping(CharDataModule):
    """Validates on stretches of the training text."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.stores["val"] = self.stores["train"]


def ours() -> dict[str, Fault]:
    """Faults of our own modules and data, by name."""
    loss = ("overfits one batch", "loss falls", "first loss")
    return {
        "softmax before the loss": Fault("logits", lambda a, b: (gpt(Softmax), chars(a)), loss),
        "attention sees later tokens": Fault(
            "causality",
            lambda a, b: (gpt(SeesAll), chars(a)),
            ("KV cache", "short rows", "padding"),
        ),
        "a roll to the left": Fault(
            "causality",
            lambda a, b: (gpt(Rolls), chars(a)),
            ("KV cache", "short rows", "padding", *loss),
        ),
        "targets are not shifted": Fault(
            "targets shifted once", lambda a, b: (gpt(), Unshifted(str(a), tokens_per_step=128)), loss
        ),
        "targets are shifted twice": Fault(
            "input of each target",
            lambda a, b: (gpt(module=ShiftsAgain), chars(a)),
            ("short rows", "unscored targets", *loss),
        ),
        "a frozen part": Fault("gradients", lambda a, b: (gpt(Frozen), chars(a)), loss),
        "a detached part": Fault("gradients", lambda a, b: (gpt(Detached), chars(a)), ("every parameter moves", *loss)),
        "evaluation in train mode": Fault(
            "evaluation mode",
            lambda a, b: (gpt(module=EvaluatesInTrainMode), chars(a)),
            ("mean over tokens",),
        ),
        "dropout stays on": Fault(
            "evaluation mode",
            lambda a, b: (gpt(DropoutStaysOn), chars(a)),
            (
                "mean over tokens",
                "accumulation",
                "short rows",
                "KV cache",
                "padding",
                "unscored targets",
                "probabilities",
                "resume",
                *loss,
            ),
        ),
        "another model is evaluated": Fault(
            "evaluated weights",
            lambda a, b: (gpt(module=EvaluatesAnother), chars(a)),
            ("mean over tokens",),
        ),
        "the last batch is not evaluated": Fault(
            "whole validation", lambda a, b: (gpt(), DropsTheLastBatch(str(a), tokens_per_step=128))
        ),
        "half of each row is evaluated": Fault(
            "mean over tokens", lambda a, b: (gpt(module=EvaluatesHalfRows), chars(a))
        ),
        "probabilities sum to more than 1": Fault("probabilities", lambda a, b: (gpt(module=HalvesNats), chars(a))),
        "pads are scored": Fault(
            "pads are not scored",
            lambda a, b: (gpt(**wide()), lines(b, ScoresPads, rows="padded")),
            ("EOS token",),
        ),
        "-100 counts": Fault(
            "unscored targets",
            lambda a, b: (gpt(module=CountsUnscored, **wide()), lines(b, rows="padded")),
            (
                "causality",
                "input of each target",
                "accumulation",
                "short rows",
                "probabilities",
                *loss,
            ),
        ),
        "documents see each other": Fault("documents", lambda a, b: (gpt(SeesOtherDocuments, **wide()), lines(b))),
        "positions from the end of the block": Fault(
            "short rows",
            lambda a, b: (gpt(PositionsFromTheEnd, learned_positions=True, rope=False), chars(a)),
            ("KV cache", "padding", "every parameter moves", "gradients"),
        ),
        "positions of cached tokens": Fault("KV cache", lambda a, b: (gpt(CacheForgetsPositions), chars(a))),
        "prompts see pads": Fault("padding", lambda a, b: (gpt(SeesPads), chars(a))),
        "a mask of the width": Fault(
            "causality",
            lambda a, b: (gpt(MaskOfTheWidth, block_size=32), chars(a)),
            ("short rows", "KV cache", "padding"),
        ),
        "a schedule that ends too late": Fault("schedule", lambda a, b: (gpt(module=DecaysLate), chars(a))),
        "weight decay on biases": Fault(
            "weight decay",
            lambda a, b: (gpt(module=DecaysBiases, norm="layernorm", norm_gain=True, bias=True), chars(a)),
            ("resume",),  # the schedule restores the decay that the groups were built with
        ),
        "a head in no group": Fault("every parameter moves", lambda a, b: (gpt(module=ForgetsTheHead), chars(a))),
        "an untied copy": Fault("tied weights", lambda a, b: (gpt(UntiedCopy), chars(a))),
        "a loader that repeats": Fault(
            "rows differ", lambda a, b: (gpt(), Repeats(str(a), tokens_per_step=128)), ("loss falls",)
        ),
        "a split that overlaps": Fault(
            "new validation text",
            lambda a, b: (gpt(), Overlapping(str(a), tokens_per_step=128)),
            ("whole validation",),
        ),
        "a tokenizer that loses capitals": Fault("tokenizer", lambda a, b: (gpt(), Lossy(str(a), tokens_per_step=128))),
        "a tokenizer that loses capitals of later documents": Fault(
            "tokenizer", lambda a, b: (gpt(**wide()), lines(b, LossyLines))
        ),
        "no EOS token": Fault(
            "EOS token", lambda a, b: (gpt(**wide()), lines(b, tokenizer=str(b.parent / "no_eos.json"), rows="windows"))
        ),
        "EOS tokens taken for pads": Fault("EOS token", lambda a, b: (gpt(**wide()), lines(b, PadIsEos))),
        "NaN in bf16": Fault(
            "finite numbers",
            lambda a, b: (gpt(NanInBfloat16), chars(a)),
            ("a short run ends",),
            {"precision": "bf16-mixed"},
        ),
        "a mean of means": Fault(
            "accumulation", lambda a, b: (gpt(module=MeanOfMeans), chars(a)), ("unscored targets", "short rows")
        ),
        "a head 200 times too large": Fault("first loss", lambda a, b: (gpt(HugeHead, softcap=None), chars(a)), loss),
        "state that no checkpoint has": Fault(
            "resume",
            lambda a, b: (gpt(KeepsStateOutside), chars(a)),
            ("checkpoint", "short rows", "accumulation", "unscored targets", "causality", *loss),
        ),
    }


# ---- a plain LightningModule and plain data


class Plain(LightningModule):
    """A small transformer that knows nothing of lit_gpt."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(20, 32), nn.Embedding(16, 32)
        self.att = nn.MultiheadAttention(32, 2, batch_first=True, dropout=0.1)
        self.norm, self.fc, self.proj = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 20, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        T = ids.size(1)
        x = 0.3 * self.emb(ids) + 0.3 * self.pos(torch.arange(T))
        y = self.norm(x)
        x = x + self.att(y, y, y, attn_mask=self.mask(T), need_weights=False)[0]
        return self.head(x + self.proj(F.gelu(self.fc(x))))

    def mask(self, T: int) -> Tensor:
        return torch.ones(T, T).triu(1).bool()

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.forward(batch["input_ids"]).flatten(0, 1), batch["targets"].flatten())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.step(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.step(batch))

    def configure_optimizers(self) -> Any:
        vectors = [p for p in self.parameters() if p.ndim < 2]
        matrices = [p for p in self.parameters() if p.ndim > 1]
        optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], 3e-3)
        return [optimizer], [
            {"scheduler": LambdaLR(optimizer, lambda step: 1 - step / self.steps()), "interval": "step"}
        ]

    def steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)


class PlainNoMask(Plain):
    def mask(self, T: int) -> Tensor:
        return torch.zeros(T, T).bool()


class PlainSoftmax(Plain):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).softmax(-1)


class PlainSum(Plain):
    def step(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(
            super().forward(batch["input_ids"]).flatten(0, 1), batch["targets"].flatten(), reduction="sum"
        )


class PlainDropout(Plain):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.dropout(self.emb(ids) + self.pos(torch.arange(ids.size(1))), 0.2)) + 0.1 * super().forward(
            ids
        )


class PlainFrozen(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.att.requires_grad_(False)


class PlainDecay(Plain):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 3e-3)


class PlainUntied(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.emb.weight.detach().clone())


class PlainLate(Plain):
    def steps(self) -> int:
        return 3 * super().steps()


class PlainByEpoch(Plain):
    """A schedule for all steps that advances once an epoch, which is Lightning's default."""

    def configure_optimizers(self) -> Any:
        optimizers, schedules = super().configure_optimizers()
        return optimizers, [schedules[0]["scheduler"]]


class PlainRateOfZero(Plain):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


class PlainRowsAreTime(Plain):
    """An nn.GRU without batch_first."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(20, 20)

    def forward(self, ids: Tensor) -> Tensor:
        return self.gru(super().forward(ids))[0]


class PlainTrainsInEvalMode(Plain):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.eval()
        return super().training_step(batch, batch_idx)


class PlainSmoothedValidation(Plain):
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits, targets = self.forward(batch["input_ids"]).flatten(0, 1), batch["targets"].flatten()
        self.log("val_loss", F.cross_entropy(logits, targets, label_smoothing=0.1))


class PlainStops(Plain):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).transpose(1, 2).view(-1, 20)


class PlainEvaluatesAnother(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.other = [Plain()]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.other[0].eval().step(batch))


class PlainEqualLayers(Plain):
    """Right: nn.TransformerEncoder makes equal layers. Its loss is smoothed, as it may be in training."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = 0.3 * self.emb(ids) + 0.3 * self.pos(torch.arange(ids.size(1)))
        y = self.norm(self.layers(x, mask=self.mask(ids.size(1)))) + self.att(x[:, :1], x[:, :1], x[:, :1])[0]
        return self.head(y + self.proj(F.gelu(self.fc(y))))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.forward(batch["input_ids"]).flatten(0, 1)
        return F.cross_entropy(logits, batch["targets"].flatten(), label_smoothing=0.1)


class PlainReadsTargets(Plain):
    def step(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.forward(batch["input_ids"]) + 0.5 * self.head(self.emb(batch["targets"].clamp(min=0)))
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


class PlainData(LightningDataModule):
    """Rows of a random walk over 20 tokens."""

    shift = 1

    def setup(self, stage: str | None = None) -> None:
        walk = torch.randint(5, (2000,), generator=torch.Generator().manual_seed(0)).cumsum(0) % 20
        windows = walk.unfold(0, 17, 11)
        self.rows = [{"input_ids": row[:-1], "targets": row[1:] if self.shift else row[:-1]} for row in windows]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[:140], 8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[142:], 8)


class PlainPadded(PlainData):
    """Right: rows of different lengths. Their batches are weighed alike, which matters only where they accumulate."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        for number, row in enumerate(self.rows):
            row["attention_mask"] = torch.arange(16) < 4 + number % 13
            row["targets"] = row["targets"].masked_fill(~row["attention_mask"], -100)


class PlainUnshifted(PlainData):
    shift = 0


class PlainOverlap(PlainData):
    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[50:90], 8)


def plain(
    line: str,
    module: type[Plain] = Plain,
    data: type[PlainData] = PlainData,
    follows: tuple[str, ...] = (),
    options: dict[str, Any] | None = None,
) -> Fault:
    return Fault(line, lambda a, b: (module(), data()), follows, options)


_LOSS = ("overfits one batch", "loss falls", "first loss")
OURS = ours()
FOREIGN = {
    "softmax before the loss": plain("logits", PlainSoftmax, follows=_LOSS),
    "no mask": plain("causality", PlainNoMask, follows=("short rows",)),
    "reads its targets": plain("input of each target", PlainReadsTargets, follows=_LOSS),
    "a sum for a mean": plain(
        "first loss", PlainSum, follows=("mean over tokens", "unscored targets", "short rows", *_LOSS)
    ),
    "dropout stays on": plain(
        "evaluation mode", PlainDropout, follows=("accumulation", "short rows", "unscored targets", *_LOSS)
    ),
    "a frozen part": plain("gradients", PlainFrozen),
    "weight decay on biases": plain("weight decay", PlainDecay),
    "an untied copy": plain("tied weights", PlainUntied, follows=_LOSS),
    "a schedule that ends too late": plain("schedule", PlainLate, options={"max_steps": 60}),
    "a schedule that advances by epoch": plain("schedule", PlainByEpoch, options={"max_steps": 60}),
    "a learning rate of 0": plain("every parameter moves", PlainRateOfZero, follows=("evaluated weights",)),
    "rows taken for time": plain("causality", PlainRowsAreTime, follows=("short rows", *_LOSS)),
    "training in eval mode": plain("evaluation mode", PlainTrainsInEvalMode),
    "label smoothing in validation": plain("mean over tokens", PlainSmoothedValidation),
    "a step that raises": plain("a short run ends", PlainStops),
    "a mean of means": plain("accumulation", data=PlainPadded, options={"accumulate_grad_batches": 2}),
    "another model is evaluated": plain("evaluated weights", PlainEvaluatesAnother),
    "targets are not shifted": plain("targets shifted once", data=PlainUnshifted, follows=_LOSS),
    "validation rows of training": plain("new validation text", data=PlainOverlap),
}
