"""What the three datamodules share: a prepared store, rows of one kind, and loaders that fit their Trainer."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule

from datamodules.accumulation import set_accumulation
from datamodules.agreement import check_agreement
from datamodules.batches import (
    IGNORED,
    BatchLoader,
    MicroBatches,
    Packed,
    Padded,
    Rows,
    Share,
    StreamRows,
    TrainLoader,
    Windows,
)
from datamodules.errors import UserError, check_at_least
from datamodules.options import RemembersOptions
from datamodules.prepare import NewTokenizer, Recipe, load_tokenizer_of, prepare, store_folder
from datamodules.resampling import ResampledRows
from datamodules.scoring import ScoredText, scored_split, scored_targets
from datamodules.sources import Source
from datamodules.tokenizers import Tokenizer, UnigramTokenizer
from datamodules.tokenizers.sampling import SampledTexts
from datamodules.tokens import TokenStore, TokenStream, is_complete, read_meta

RowKind = Literal["windows", "padded", "packed"]
_DEFAULT_ROWS = 32


class TextDataModule(RemembersOptions, LightningDataModule):
    """Text to batches of fixed shape; a subclass says which text, which tokenizer and which rows.

    Batches are dicts of ``input_ids``, ``targets`` (shifted, -100 where nothing is scored) and ``attention_mask``,
    (B, T) each; packed rows add ``document_ids`` (B, T), padded rows ``document`` (B,). A plain ``Trainer`` will do.

    Attributes:
        tokenizer: after ``setup``.
        stores: after ``setup``: the token store of each split there is.
        fingerprints: after ``setup``: SHA-256 of ``data`` and ``tokenizer``.

    Args:
        block_size: T, tokens in a row; None takes the model's, from ``lightning_module.config.block_size``.
        tokens_per_step: tokens of an optimizer step over all processes; None is 32 rows.
        micro_batch_size: rows of one process in one forward pass; None is all of the process's rows of a step.
        rows: how text becomes rows: ``windows``, ``padded`` or ``packed``; None is windows, for headlines
            packed.
        stride: distance of two training windows; None puts them side by side, from a random offset if shuffled.
        shuffle: whether training rows come in another order in each epoch; if not, they follow the text from its first
            token on, in every epoch alike: without random offset, batch after batch.
        mask_first: training targets at the start of each window (or document) that are left out of the loss.
        train_eval_rows: rows of the training split that are evaluated too, 0 for none; None is as many as the
            validation split has.
        predict_source: the text that ``predict`` scores; None is the validation split.
        seed: decides, with the epoch, how training rows are shuffled and cut.
        num_workers: processes that build batches; 0 builds them in this one.
        cache_dir: where token stores are kept; None is ``$XDG_CACHE_HOME/lit_gpt`` or ``~/.cache/lit_gpt``.
    """

    # Where classes differ in a default, the parameter's is None: when another class is chosen, the command line keeps
    # the defaults of the one it starts from.
    default_rows: RowKind = "windows"
    subword_sampling: float = 0.0  # an option of the classes whose tokenizer can be a unigram
    tokenizer: Tokenizer
    stores: dict[str, TokenStore]
    fingerprints: dict[str, str]

    def __init__(
        self,
        *,
        block_size: int | None = None,
        tokens_per_step: int | None = None,
        micro_batch_size: int | None = None,
        rows: RowKind | None = None,
        stride: int | None = None,
        shuffle: bool = True,
        mask_first: int = 0,
        train_eval_rows: int | None = None,
        predict_source: str | None = None,
        seed: int = 1337,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.tokens_per_step, self.micro_batch_size = tokens_per_step, micro_batch_size
        self.rows, self.stride, self.mask_first = rows or self.default_rows, stride, mask_first
        self.shuffle = shuffle
        self.train_eval_rows, self.predict_source = train_eval_rows, predict_source
        self.seed, self.num_workers, self.cache_dir = seed, num_workers, cache_dir
        for name in ("block_size", "tokens_per_step", "micro_batch_size"):
            check_at_least(1, f"The data's {name}", getattr(self, name))
        for name in ("train_eval_rows", "seed", "num_workers"):
            check_at_least(0, f"The data's {name}", getattr(self, name))
        self._given: Tokenizer | None = None
        self._trained: Tokenizer | None = None

    @abstractmethod
    def recipe(self) -> Recipe:
        """Which text and tokenizer."""

    @abstractmethod
    def open_predict_source(self, spec: str) -> Source:
        """The documents to predict, read like those of the training text."""

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Takes a checkpoint's tokenizer instead of making one. Call it before ``setup``."""
        self._given = tokenizer

    def go_on_with(self, tokenizer: Tokenizer) -> None:
        """Takes the tokenizer of a run that goes on, where the options ask for one to be trained that may be this one:
        a second training need not give it again. Call it before ``setup``.
        """
        self._trained = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, after ``setup``."""
        return self.tokenizer.vocab_size

    def prepare_data(self) -> None:
        """Prepares the token stores that are not in the cache."""
        self._folder = self._prepared()
        if self.predict_source is not None:
            self._predict_folder()

    def setup(self, stage: str | None = None) -> None:
        """Opens the store and divides the rows among the Trainer's processes."""
        folder = self._folder = self._prepared()
        meta = read_meta(folder)
        self.tokenizer, self.fingerprints = load_tokenizer_of(folder), meta["fingerprints"]
        check_agreement(self.fingerprints)
        self.stores = {split: TokenStore(folder, split) for split in meta["splits"]}
        self._size = self._chosen_block_size()
        self._scored: dict[str, ScoredText] = {}
        self._check_rows()
        self._check_sampling()
        if stage == "fit" and self.trainer is not None:
            set_accumulation(self.trainer, self._share(0).accumulation)
            if "val" not in self.stores:  # nothing is held out: Lightning would warn of loaders without batches
                self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> BatchLoader:
        """Micro-batches of the epoch; the same few rows over and over under ``overfit_batches``."""
        rows = self.make_rows("train", training=True)
        dataset = MicroBatches(rows, self._share(rows.count))
        fixed = bool(getattr(self.trainer, "overfit_batches", 0))
        return (BatchLoader if fixed else TrainLoader)(dataset, self.num_workers)

    def val_dataloader(self) -> list[BatchLoader]:
        """The validation split, and the evaluated part of the training split."""
        self._need("val")
        rows, subset = self._train_eval()
        loaders = [self._eval_loader(self.make_rows("val"))]
        return [*loaders, self._eval_loader(rows, subset)] if len(subset) else loaders

    def test_dataloader(self) -> BatchLoader:
        """The test split."""
        self._need("test")
        return self._eval_loader(self.make_rows("test"))

    def predict_dataloader(self) -> BatchLoader:
        """Padded rows of the documents of ``predict_source``; ``document`` (B,) says which document a row is of."""
        if self.predict_source is not None:
            return self._eval_loader(Padded(TokenStore(self._predict_folder(), "train"), self._size))
        self._need("val")
        return self._eval_loader(Padded(self.stores["val"], self._size))

    def scored_text(self, split: str) -> ScoredText:
        """What one whole evaluation pass scores. ``split`` is train_eval, val or test."""
        if split not in self._scored:
            train_eval = split == "train_eval"
            self._scored[split] = (
                scored_targets(self._train_eval_targets(), self.tokenizer)
                if train_eval
                else scored_split(self.stores[split], self.tokenizer)
            )
        return self._scored[split]

    def text_name(self, split: str) -> str:
        """What people are shown of the text that a split is of; ``split`` is val, test or predict."""
        if split == "predict":
            return str(self.predict_source or self.text_name("val"))
        own = {"val": self._recipe.val_source, "test": self._recipe.test_source}[split]
        return (own or self._recipe.source).name

    # Stores

    def _prepared(self) -> Path:
        recipe = self._recipe
        given = self._given or self._trained_as(recipe.tokenizer)
        if given is None:
            return prepare(recipe, self.cache_dir)
        own = store_folder(recipe, self.cache_dir)  # of the run that trained the tokenizer: the same tokens
        if is_complete(own) and read_meta(own)["fingerprints"]["tokenizer"] == given.fingerprint:
            return own
        self._check_given(given, recipe.tokenizer)
        return prepare(replace(recipe, tokenizer=given), self.cache_dir)

    def _trained_as(self, wanted: Tokenizer | NewTokenizer) -> Tokenizer | None:
        """The tokenizer of the run that goes on, if that is what training would be for."""
        trained = self._trained
        return trained if trained and isinstance(wanted, NewTokenizer) and wanted.may_give(trained) else None

    @cached_property
    def _recipe(self) -> Recipe:
        return self.recipe()

    def _check_given(self, given: Tokenizer, wanted: Tokenizer | NewTokenizer) -> None:
        """Refuses an option that names another tokenizer than the checkpoint's; one to be trained is already there."""
        if isinstance(wanted, Tokenizer) and wanted.fingerprint != given.fingerprint:
            raise UserError(
                f"The data's tokenizer option names one of {wanted.vocab_size} tokens, but the checkpoint has its own, "
                f"of {given.vocab_size}, which differs; leave the option out or give the one of that run."
            )

    def _predict_folder(self) -> Path:
        assert self.predict_source is not None
        tokenizer = load_tokenizer_of(self._folder)
        recipe = Recipe(self.open_predict_source(self.predict_source), tokenizer, joined=False)
        return prepare(recipe, self.cache_dir)

    # Rows

    def _need(self, split: str) -> None:
        if split not in self.stores:
            raise UserError(f"There is no {split} split: set {split}_fraction or {split}_source.")

    def _chosen_block_size(self) -> int:
        module = getattr(self.trainer, "lightning_module", None)
        most = getattr(getattr(module, "config", None), "block_size", None)
        size = most if self.block_size is None else self.block_size
        if size is None:
            raise UserError("The data needs a block_size, and no model with one is attached; set block_size.")
        if most is not None and size > most:
            raise UserError(f"The data's block_size {size} exceeds the model's, {most}: leave it out, or give {most}.")
        return int(size)

    def _check_rows(self) -> None:
        self._check_windows()
        self._check_mask()
        if self.rows != "windows" and self.tokenizer.eos_id is None:
            raise UserError(
                f"rows {self.rows!r} need a tokenizer with an end mark, and this one has none; use windows."
            )
        for split, store in self.stores.items():
            if self.rows == "windows" and len(store) <= self._size:
                raise UserError(
                    f"The {split} split of {self._recipe.source.name} has {len(store)} tokens, fewer than one row's "
                    f"{self._size + 1} (block_size {self._size} + 1): give more text, a smaller block_size or another "
                    "split."
                )

    def _check_windows(self) -> None:
        if self.stride is not None and self.rows != "windows":
            raise UserError(f"stride {self.stride} is the distance of windows, and rows are {self.rows}: leave it out.")
        if self.stride is not None and not 1 <= self.stride <= self._size:
            raise UserError(
                f"A stride of {self.stride} leaves out text or repeats it: choose 1 to block_size = {self._size}."
            )

    def _check_mask(self) -> None:
        windows = self.rows == "windows"
        targets = self._size if windows or not self.mask_first else int(np.diff(self.stores["train"].starts).max())
        if not 0 <= self.mask_first < targets:
            what = f"a window of {targets}" if windows else f"the longest document to train on, of {targets} targets"
            raise UserError(
                f"mask_first {self.mask_first} leaves no target of {what}: choose 0 (off) to {targets - 1}."
            )

    def make_rows(self, split: str, training: bool = False) -> Rows:
        """The split cut into rows, for training or for evaluation."""
        cut = self._cut(training)
        if not (training and self.subword_sampling):
            return cut(self.stores[split])
        assert isinstance(self.tokenizer, UnigramTokenizer)  # by _check_sampling
        documents = (self.tokenizer.decode(ids.tolist()) for ids in self.stores[split].documents())
        return ResampledRows(SampledTexts(self.tokenizer, documents, self.subword_sampling), cut, self.seed)

    def _cut(self, training: bool) -> Callable[[TokenStream], StreamRows]:
        kind = {"windows": Windows, "padded": Padded, "packed": Packed}[self.rows]
        options: dict[str, Any] = {"block_size": self._size}
        if training:
            options |= {"seed": self.seed if self.shuffle else None, "mask_first": self.mask_first}
            options |= {"stride": self.stride} if self.rows == "windows" else {}
        return partial(kind, **options)

    def _check_sampling(self) -> None:
        if self.subword_sampling < 0:
            raise UserError(f"subword_sampling {self.subword_sampling} is negative: choose 0 (off) or 0.1 to 1.")
        if self.subword_sampling and not isinstance(self.tokenizer, UnigramTokenizer):
            raise UserError(
                f"subword_sampling {self.subword_sampling} draws the segmentations of a unigram tokenizer, and the "
                "data's is of another kind: set tokenizer to unigram, or subword_sampling to 0."
            )

    def _train_eval(self) -> tuple[Rows, np.ndarray]:
        """Rows of the training split, and which of them are evaluated."""
        rows = self.make_rows("train")
        wanted = self.make_rows("val").count if self.train_eval_rows is None else self.train_eval_rows
        count = min(wanted, rows.count)
        return rows, np.arange(count) * rows.count // max(count, 1)

    def _train_eval_targets(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows, subset = self._train_eval()
        for start in range(0, len(subset), 1024):
            batch = rows.batch(0, subset[start : start + 1024])
            scored = batch["targets"] != IGNORED
            yield batch["input_ids"][scored], batch["targets"][scored]

    # Processes

    @property
    def _place(self) -> tuple[int, int]:
        """This process's rank among those that see different data, and their number."""
        kwargs = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (kwargs["rank"], kwargs["num_replicas"]) if kwargs else (0, 1)

    def _share(self, rows: int) -> Share:
        """This process's part of an epoch of training."""
        rank, world = self._place
        step = self._rows_per_step()
        micro = self.micro_batch_size or step // world
        if micro * world == 0 or step % (micro * world):
            raise UserError(
                f"A step of {step} rows (tokens_per_step / block_size) cannot be divided among {world} process(es) in "
                f"micro-batches of {micro or 1} row(s): choose another tokens_per_step or micro_batch_size."
            )
        return Share(rows, step, micro, rank, world)

    def _rows_per_step(self) -> int:
        if self.tokens_per_step is None:
            return _DEFAULT_ROWS
        rows, rest = divmod(self.tokens_per_step, self._size)
        if rest or rows == 0:
            raise UserError(
                f"tokens_per_step {self.tokens_per_step} is not a multiple of block_size {self._size}; "
                f"choose {max(rows, 1) * self._size} or {(rows + 1) * self._size}."
            )
        return rows

    def _eval_loader(self, rows: Rows, subset: np.ndarray | None = None) -> BatchLoader:
        rank, world = self._place
        micro = self.micro_batch_size or -(-self._rows_per_step() // world)
        count = rows.count if subset is None else len(subset)
        return BatchLoader(
            MicroBatches(rows, Share(count, micro * world, micro, rank, world), subset), self.num_workers
        )
