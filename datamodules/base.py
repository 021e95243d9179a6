"""What the three datamodules share: a prepared store, rows of one kind, and loaders that fit their Trainer."""

import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from lightning.pytorch import LightningDataModule

from datamodules.accumulation import set_accumulation
from datamodules.agreement import check_agreement
from datamodules.batches import IGNORE_INDEX, BatchLoader, MicroBatches, RankShare, Rows, TrainLoader
from datamodules.cores import check_workers
from datamodules.cutting import Cutting, RowKind
from datamodules.errors import UserError, check_at_least
from datamodules.integrity import is_whole
from datamodules.options import RemembersOptions
from datamodules.prepare import NewTokenizer, Recipe, load_tokenizer_of, prepare, store_folder
from datamodules.scoring import ScoredText, scored_split, scored_targets
from datamodules.sources import Source
from datamodules.tokenizers import Tokenizer
from datamodules.tokens import TokenStore, read_meta

_DEFAULT_ROWS, _DEFAULT_SEED = 32, 1337


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
        val_stride: distance of two evaluation windows, and of the rows of a document longer than a row. Each token is
            scored once, and with at least block_size - val_stride tokens before it, where the text has them. None is
            block_size, the cheapest: a token has half a block before it on average, and the first of a window none.
            Half a block takes twice the time and gives a lower loss: 1.237 instead of 1.284 for ``configs/char.yaml``.
        shuffle: whether training rows come in another order in each epoch; if not, they follow the text from its first
            token on, in every epoch alike: without random offset, batch after batch.
        mask_first: training targets at the start of each window (or document) that are left out of the loss.
        train_eval_rows: rows of the training split that are evaluated too, 0 for none; None is as many as the
            validation split has.
        predict_source: the text that ``predict`` scores; None is the validation split.
        seed: decides, with the epoch, how training rows are shuffled and cut; None is the run's, that of
            ``seed_everything``, or 1337 where it was not called. The splits never depend on it.
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
        val_stride: int | None = None,
        shuffle: bool = True,
        mask_first: int = 0,
        train_eval_rows: int | None = None,
        predict_source: str | None = None,
        seed: int | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.tokens_per_step, self.micro_batch_size = tokens_per_step, micro_batch_size
        self.rows, self.stride, self.mask_first = rows or self.default_rows, stride, mask_first
        self.shuffle, self.val_stride = shuffle, val_stride
        self.train_eval_rows, self.predict_source = train_eval_rows, predict_source
        self.seed, self.num_workers, self.cache_dir = seed, num_workers, cache_dir
        for name in ("block_size", "tokens_per_step", "micro_batch_size"):
            check_at_least(1, f"The data's {name}", getattr(self, name))
        for name in ("train_eval_rows", "seed", "num_workers"):
            check_at_least(0, f"The data's {name}", getattr(self, name))
        check_workers(num_workers)
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

    def prepare_data(self, verify: bool = False) -> None:
        """Prepares the token stores that are not in the cache, or damaged there.

        Args:
            verify: whether to read all of the stores that are there, and not only what looks touched.
        """
        self._folder = self._prepared(verify)
        if self.predict_source is not None:
            self._predict_folder(verify)

    def setup(self, stage: str | None = None) -> None:
        """Opens the store and divides the rows among the Trainer's processes."""
        folder = self._folder = self._prepared()
        meta = read_meta(folder)
        self.tokenizer, self.fingerprints = load_tokenizer_of(folder), meta["fingerprints"]
        check_agreement(self.fingerprints)
        self.stores = {split: TokenStore(folder, split) for split in meta["splits"]}
        self._size = self._chosen_block_size()
        self._scored: dict[str, ScoredText] = {}
        self._cutting = Cutting(
            self.rows,
            self._size,
            self._order_seed(),
            self.shuffle,
            self.stride,
            self.val_stride,
            self.mask_first,
            self.subword_sampling,
        )
        self._cutting.check(self.stores, self.tokenizer, self._recipe.source.name)
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
            return self._eval_loader(self._cutting.documents(TokenStore(self._predict_folder(), "train")))
        self._need("val")
        return self._eval_loader(self._cutting.documents(self.stores["val"]))

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

    def _prepared(self, verify: bool = False) -> Path:
        recipe = self._recipe
        given = self._given or self._trained_as(recipe.tokenizer)
        if given is None:
            return prepare(recipe, self.cache_dir, verify)
        own = store_folder(recipe, self.cache_dir)  # of the run that trained the tokenizer: the same tokens
        if is_whole(own, verify) and read_meta(own)["fingerprints"]["tokenizer"] == given.fingerprint:
            return own
        self._check_given(given, recipe.tokenizer)
        return prepare(replace(recipe, tokenizer=given), self.cache_dir, verify)

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

    def _predict_folder(self, verify: bool = False) -> Path:
        assert self.predict_source is not None
        tokenizer = load_tokenizer_of(self._folder)
        recipe = Recipe(self.open_predict_source(self.predict_source), tokenizer, joined=False)
        return prepare(recipe, self.cache_dir, verify)

    # Rows

    def _need(self, split: str) -> None:
        if split not in self.stores:
            raise UserError(f"There is no {split} split: set {split}_fraction or {split}_source.")

    def _order_seed(self) -> int:
        """The option, or what Lightning's ``seed_everything`` has set for the whole run."""
        given = os.environ.get("PL_GLOBAL_SEED", "")
        return self.seed if self.seed is not None else int(given) if given.isdecimal() else _DEFAULT_SEED

    def _chosen_block_size(self) -> int:
        module = getattr(self.trainer, "lightning_module", None)
        most = getattr(getattr(module, "config", None), "block_size", None)
        size = most if self.block_size is None else self.block_size
        if size is None:
            raise UserError("The data needs a block_size, and no model with one is attached; set block_size.")
        if most is not None and size > most:
            raise UserError(f"The data's block_size {size} exceeds the model's, {most}: leave it out, or give {most}.")
        return int(size)

    def make_rows(self, split: str, training: bool = False) -> Rows:
        """The split cut into rows, for training or for evaluation."""
        store = self.stores[split]
        return self._cutting.training_rows(store, self.tokenizer) if training else self._cutting.evaluation_rows(store)

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
            scored = batch["targets"] != IGNORE_INDEX
            yield batch["input_ids"][scored], batch["targets"][scored]

    # Processes

    @property
    def _place(self) -> tuple[int, int]:
        """This process's rank among those that see different data, and their number."""
        kwargs = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (kwargs["rank"], kwargs["num_replicas"]) if kwargs else (0, 1)

    def _share(self, rows: int) -> RankShare:
        """This process's part of an epoch of training."""
        rank, world = self._place
        step = self._rows_per_step()
        micro = self.micro_batch_size or step // world
        if micro * world == 0 or step % (micro * world):
            raise UserError(
                f"A step of {step} rows (tokens_per_step / block_size) cannot be divided among {world} process(es) in "
                f"micro-batches of {micro or 1} row(s): choose another tokens_per_step or micro_batch_size."
            )
        return RankShare(rows, step, micro, rank, world)

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
            MicroBatches(rows, RankShare(count, micro * world, micro, rank, world), subset), self.num_workers
        )
