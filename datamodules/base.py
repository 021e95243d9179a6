"""The base class of the datamodules: a prepared token store, its rows, and loaders for each process."""

import os
import sys
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch import LightningDataModule

from datamodules.accumulation import set_accumulation
from datamodules.agreement import DATA_FIXES, check_agreement, facts_of_data
from datamodules.batches import BatchLoader, MicroBatches, TrainLoader
from datamodules.byte_sizes import parsed_size
from datamodules.cores import check_workers
from datamodules.cutting import Cutting, Packing, RowKind
from datamodules.errors import UserError, check_at_least
from datamodules.first_bytes import FirstBytes
from datamodules.given_tokenizers import GivenTokenizers
from datamodules.options import RemembersOptions
from datamodules.prepare import Recipe, Share, find_store, load_tokenizer_of, prepare, prepare_share
from datamodules.remote import is_url
from datamodules.remote_store import hint_of_window
from datamodules.rows import IGNORE_INDEX, Rows
from datamodules.scoring import ScoredText, scored_split, scored_targets
from datamodules.sources import Source
from datamodules.step_size import RankShare, StepSize, rows_per_micro_batch, rows_per_step
from datamodules.text_facts import TextFacts, read_text_facts
from datamodules.token_recipe import TokenRecipe
from datamodules.tokens import TokenStore, read_meta

_DEFAULT_SEED = 1337


class TextDataModule(GivenTokenizers, RemembersOptions, LightningDataModule):
    """Text to batches of fixed shape. A subclass chooses the text, the tokenizer and how the text is split.

    A batch is a dict of ``input_ids``, ``targets`` (shifted by one; -100 where nothing is scored) and
    ``attention_mask``, (B, T) each. Packed rows add ``document_ids`` (B, T), padded rows ``document`` (B,). It works
    with a plain ``Trainer``.

    Attributes:
        tokenizer: the tokenizer, after ``setup``.
        stores: the token store of each split, after ``setup``.
        fingerprints: the SHA-256 of ``data`` and of ``tokenizer``, after ``setup``.
        text_facts: the sizes of the text and the losses of models that know next to nothing, after ``setup``.

    Args:
        block_size: T, the tokens of a row; None is the model's, from ``lightning_module.config.block_size``.
        tokens_per_step: tokens of an optimizer step, over all processes; None is 32 rows.
        micro_batch_size: rows of one process in a forward pass; None is all rows that the process has of a step, and
            auto as many of them as fit into the memory: ``fit`` tries that before the first step.
        rows: how text becomes rows: ``windows`` of the running text, ``padded`` (one document a row), or ``packed``
            (several documents a row); None is windows, for headlines packed.
        packing: how packed rows are filled for training. ``wrapped`` puts the documents end to end and cuts them at the
            end of each row. ``best_fit`` places them so that no document is cut that fits into a row; rows have nearly
            no padding. Evaluation never cuts a document that fits.
        stride: distance of two training windows; None puts them side by side, from a random offset on if shuffled.
        val_stride: distance of two evaluation windows, and of the rows of a document longer than a row. Each token is
            scored once, with at least block_size - val_stride tokens before it, where the text has them. None is
            block_size, which is fastest: a token then has half a block before it on average, the first of a window
            none. Half a block takes twice the time and gives a lower loss: 1.237 instead of 1.284 for
            ``configs/char.yaml``.
        shuffle: whether training rows are shuffled anew in each epoch. If not, every epoch reads the text in its order,
            from its first token on.
        shuffle_window: bytes of tokens, such as 4GB, inside of which rows are shuffled. Such windows of the text come
            one after the other, in another order in each epoch, so that few shards are in use at a time: for stores
            at a URL that are larger than ``max_cache_size``. None shuffles over the whole split.
        mask_first: number of training targets at the start of each window (or document) that are left out of the loss.
        train_eval_rows: rows of the training split that each validation evaluates too, 0 for none; None is as many as
            the validation split has.
        predict_source: the text that ``predict`` scores; None is the validation split.
        max_bytes: use only the beginning of each of ``source``, ``val_source`` and ``test_source``: this many bytes of
            UTF-8; None is all of it.
        seed: decides, with the epoch, how training rows are shuffled and cut. None is the run's seed, from
            ``seed_everything``, or 1337 without one. The splits never depend on it.
        num_workers: number of processes that build batches; 0 builds them in the training process.
        cache_dir: folder of the token stores, or a URL such as ``s3://bucket/folder`` (any that fsspec reads); None is
            ``$XDG_CACHE_HOME/lit_gpt`` or ``~/.cache/lit_gpt``. With a URL, that folder has downloads and copies.
        max_cache_size: most bytes of this machine's disk for tokens that are read of a URL, such as 10GB. What was not
            used for longest is removed.
        max_shard_size: most bytes of a file of tokens when a store is made, such as 64MB or 1GB. A larger split becomes
            several files, its shards. Batches do not depend on it.
    """

    # A default that differs between classes is an attribute, and the parameter's default is None: when another class is
    # chosen on the command line, it keeps the parameters' defaults of the class that it started from.
    default_rows: RowKind = "windows"
    masked = False  # targets are next tokens
    subword_sampling: float = 0.0  # an option of the classes whose tokenizer can be a unigram
    source: str | list[str]
    val_source: str | list[str] | None
    test_source: str | list[str] | None
    stores: dict[str, TokenStore]
    fingerprints: dict[str, str]
    text_facts: TextFacts

    def __init__(
        self,
        *,
        block_size: int | None = None,
        tokens_per_step: int | None = None,
        micro_batch_size: int | Literal["auto"] | None = None,
        rows: RowKind | None = None,
        packing: Packing = "wrapped",
        stride: int | None = None,
        val_stride: int | None = None,
        shuffle: bool = True,
        shuffle_window: int | str | None = None,
        mask_first: int = 0,
        train_eval_rows: int | None = None,
        predict_source: str | None = None,
        max_bytes: int | None = None,
        seed: int | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
        max_cache_size: int | str = "10GB",
        max_shard_size: int | str = "1GB",
    ) -> None:
        super().__init__()
        self._check_complete()
        self.block_size = block_size
        self.tokens_per_step, self.finds_micro_batch = tokens_per_step, micro_batch_size == "auto"
        self.micro_batch_size: int | None = None if micro_batch_size == "auto" else micro_batch_size
        self.rows, self.packing = rows or self.default_rows, packing
        self.stride, self.mask_first = stride, mask_first
        self.shuffle, self.val_stride = shuffle, val_stride
        self.train_eval_rows, self.predict_source = train_eval_rows, predict_source
        self.max_bytes = max_bytes
        self.seed, self.num_workers, self.cache_dir = seed, num_workers, cache_dir
        for name in ("block_size", "tokens_per_step", "micro_batch_size", "max_bytes"):
            check_at_least(1, f"the data's {name}", getattr(self, name))
        for name in ("train_eval_rows", "seed", "num_workers"):
            check_at_least(0, f"the data's {name}", getattr(self, name))
        check_workers(num_workers)
        self.window_bytes = None if shuffle_window is None else parsed_size("the data's shuffle_window", shuffle_window)
        self.cache_bytes = parsed_size("the data's max_cache_size", max_cache_size)
        self.shard_bytes = parsed_size("the data's max_shard_size", max_shard_size, least=100)

    def _check_complete(self) -> None:
        """Refuses a base class, which Python does not do here: Lightning's class is no ABC."""
        for name in ("recipe", "open_text"):
            if getattr(getattr(type(self), name), "__isabstractmethod__", False):
                raise UserError(
                    f"{type(self).__name__} is a base class without {name}: give one that has it, such as "
                    "CharDataModule."
                )

    @abstractmethod
    def recipe(self) -> Recipe | TokenRecipe:
        """The text, its tokenizer and how it is split."""

    @abstractmethod
    def open_text(self, spec: str | list[str]) -> Source:
        """The source that ``spec`` names, read with the options of this datamodule."""

    def opened_sources(self) -> tuple[Source, Source | None, Source | None]:
        """The source to split, and the separate sources of validation and test or None."""
        val, test = (None if spec is None else self._beginning(spec) for spec in (self.val_source, self.test_source))
        return self._beginning(self.source), val, test

    def _beginning(self, spec: str | list[str]) -> Source:
        """The source that ``spec`` names, up to ``max_bytes``."""
        source = self.open_text(spec)
        return source if self.max_bytes is None else FirstBytes(source.name, source, self.max_bytes)

    def use_micro_batch_size(self, rows: int) -> None:
        """Takes the number that ``auto`` was found to be. The checkpoints of the run store it as the option."""
        self.micro_batch_size, self.finds_micro_batch = rows, False
        self.init_args["micro_batch_size"] = rows

    def prepare_data(self, verify: bool = False) -> None:
        """Prepares the token stores that are missing or damaged in the cache.

        Args:
            verify: whether to compare existing stores with their checksums as a whole (see `prepare`).
        """
        self._folder = self._prepared(verify)
        if self.predict_source is not None:
            self._prepare_predict_store(verify)

    def prepare_share(self, share: Share) -> Path | None:
        """Prepares this machine's share of the token store: its folder, or None if other shares are missing."""
        return prepare_share(self._store_recipe(), share, self.cache_dir, self.shard_bytes)

    def setup(self, stage: str | None = None) -> None:
        """Opens the token store and checks the options against it and the Trainer."""
        folder = self._folder = self._prepared()
        meta = read_meta(folder)
        self.tokenizer, self.fingerprints = load_tokenizer_of(folder), meta["fingerprints"]
        self.text_facts = read_text_facts(folder)
        check_agreement(facts_of_data(meta, self.vocab_size), DATA_FIXES)
        self.stores = {split: TokenStore(folder, split, self.cache_bytes) for split in meta["splits"]}
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
            self.packing,
            self.window_bytes,
        )
        self._cutting.check(self.stores, self.tokenizer, self._recipe.source.name)
        if stage == "fit" and self.trainer is not None:
            set_accumulation(self.trainer, self._share(0).accumulation)
            self._print_hint()
            if "val" not in self.stores:  # otherwise Lightning would warn of a loader without batches
                self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> BatchLoader:
        """The training batches. Under ``overfit_batches`` every epoch has the same ones."""
        rows = self.make_rows("train", training=True)
        dataset = MicroBatches(rows, self._share(rows.count))
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        return (BatchLoader if overfit else TrainLoader)(dataset, self.num_workers, self._is_remote)

    def val_dataloader(self) -> list[BatchLoader]:
        """The loader of the validation split, and that of the evaluated part of the training split."""
        self._check_split("val")
        rows, subset = self._train_eval_rows()
        loaders = [self._eval_loader(self.make_rows("val"))]
        return [*loaders, self._eval_loader(rows, subset)] if len(subset) else loaders

    def test_dataloader(self) -> BatchLoader:
        """The loader of the test split."""
        self._check_split("test")
        return self._eval_loader(self.make_rows("test"))

    def predict_dataloader(self) -> BatchLoader:
        """The loader of ``predict_source`` in padded rows; ``document`` (B,) is the number of each row's document."""
        if self.predict_source is not None:
            return self._eval_loader(
                self._cutting.documents(TokenStore(self._prepare_predict_store(), "train", self.cache_bytes))
            )
        self._check_split("val")
        return self._eval_loader(self._cutting.documents(self.stores["val"]))

    def scored_text(self, split: str) -> ScoredText | None:
        """The size of the text that an evaluation of a split scores. ``split`` is train_eval, val or test.

        None if the tokenizer loses a part of the text, such as capitals: nobody has predicted that.
        """
        if not self.tokenizer.lossless:
            return None
        if split not in self._scored:
            train_eval = split == "train_eval"
            self._scored[split] = (
                scored_targets(self._train_eval_targets(), self.tokenizer)
                if train_eval
                else scored_split(self.stores[split], self.tokenizer)
            )
        return self._scored[split]

    def text_name(self, split: str) -> str | None:
        """The name of the text of a split, for messages. ``split`` is val, test or predict.

        None for predict where that scores the validation split.
        """
        if split == "predict":
            return self.predict_source
        separate = {"val": self._recipe.val_source, "test": self._recipe.test_source}[split]
        return (separate or self._recipe.source).name

    # Stores

    def _prepared(self, verify: bool = False) -> Path:
        return prepare(self._store_recipe(verify), self.cache_dir, verify, self.shard_bytes)

    def _store_recipe(self, verify: bool = False) -> Recipe:
        """The recipe, with the tokenizer of the checkpoint or of the run that is resumed, if there is one."""
        recipe = self._recipe
        assert isinstance(recipe, Recipe)  # `TokensDataModule` has its own `_prepared`
        tokenizer = self._checkpoint_tokenizer or self._reusable(recipe.tokenizer)
        if tokenizer is None:
            return recipe
        trained = find_store(recipe, self.cache_dir, verify)  # it may be the one that the tokenizer was trained for
        if trained is not None and read_meta(trained)["fingerprints"]["tokenizer"] == tokenizer.fingerprint:
            return recipe
        self._check_same(recipe.tokenizer, tokenizer)
        return replace(recipe, tokenizer=tokenizer)

    @cached_property
    def _recipe(self) -> Recipe | TokenRecipe:
        return self.recipe()

    def _prepare_predict_store(self, verify: bool = False) -> Path:
        assert self.predict_source is not None
        tokenizer = load_tokenizer_of(self._folder)
        recipe = Recipe(self.open_text(self.predict_source), tokenizer, joined=False)
        return prepare(recipe, self.cache_dir, verify, self.shard_bytes)

    @property
    def _is_remote(self) -> bool:
        return is_url(self.cache_dir)

    def _print_hint(self) -> None:
        """Prints a line where the order of rows will make reading from storage slow."""
        is_asked = self._is_remote and self.shuffle and not self.window_bytes and self._rank_and_world[0] == 0
        hint = hint_of_window(self.stores["train"], self.cache_bytes) if is_asked else None
        if hint:
            print(hint, file=sys.stderr, flush=True)

    # Rows

    @property
    def step_size(self) -> StepSize:
        """Rows of an optimizer step and of a micro-batch, after ``setup``."""
        return self.step_of(self._size, self._rank_and_world[1])

    def step_of(self, block_size: int, processes: int) -> StepSize:
        """The same for rows of ``block_size`` tokens and some processes. It needs no text."""
        self._size = block_size
        share = self._share(0, (0, processes))
        return StepSize(share.rows_per_batch, share.micro, share.accumulation, block_size, self.rows == "packed")

    def _check_split(self, split: str) -> None:
        if split not in self.stores:
            raise UserError(
                f"there is no {split} split: set --data.{split}_source, or --data.{split}_fraction in `fit`."
            )

    def _order_seed(self) -> int:
        """The option ``seed``, or the run's seed, which Lightning's ``seed_everything`` keeps in the environment."""
        run_seed = os.environ.get("PL_GLOBAL_SEED", "")
        return self.seed if self.seed is not None else int(run_seed) if run_seed.isdecimal() else _DEFAULT_SEED

    def _chosen_block_size(self) -> int:
        module = getattr(self.trainer, "lightning_module", None)
        longest = getattr(getattr(module, "config", None), "block_size", None)
        size = longest if self.block_size is None else self.block_size
        if size is None:
            raise UserError("the data needs a block_size, and no model with one is attached; set block_size.")
        if longest is not None and size > longest:
            raise UserError(
                f"the data's block_size {size} exceeds the model's, {longest}: leave it out, or give {longest}."
            )
        return int(size)

    def make_rows(self, split: str, training: bool = False) -> Rows:
        """The rows of a split, for training or for evaluation."""
        store = self.stores[split]
        return self._cutting.training_rows(store, self.tokenizer) if training else self._cutting.evaluation_rows(store)

    def _train_eval_rows(self) -> tuple[Rows, np.ndarray]:
        """The rows of the training split, and the numbers of those that are evaluated, evenly spaced."""
        rows = self.make_rows("train")
        count = self.make_rows("val").count if self.train_eval_rows is None else self.train_eval_rows
        count = min(count, rows.count)
        return rows, np.arange(count) * rows.count // max(count, 1)

    def _train_eval_targets(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets (n,) that an evaluation of the training split scores, 1024 rows at a time."""
        rows, subset = self._train_eval_rows()
        for start in range(0, len(subset), 1024):
            batch = rows.batch(0, subset[start : start + 1024])
            scored = batch["targets"] != IGNORE_INDEX
            yield batch["input_ids"][scored], batch["targets"][scored]

    # Processes

    @property
    def _rank_and_world(self) -> tuple[int, int]:
        """This process's rank among the processes that get different data, and their number."""
        kwargs = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (kwargs["rank"], kwargs["num_replicas"]) if kwargs else (0, 1)

    def _share(self, rows: int, rank_and_world: tuple[int, int] | None = None) -> RankShare:
        """This process's part of an epoch of training."""
        rank, world = rank_and_world or self._rank_and_world
        step = self._rows_per_step()
        micro = rows_per_micro_batch(step, self.micro_batch_size, self._size, world)
        return RankShare(rows, step, micro, rank, world)

    def _rows_per_step(self) -> int:
        return rows_per_step(self.tokens_per_step, self._size)

    def _eval_loader(self, rows: Rows, subset: np.ndarray | None = None) -> BatchLoader:
        rank, world = self._rank_and_world
        micro = self.micro_batch_size or -(-self._rows_per_step() // world)
        count = rows.count if subset is None else len(subset)
        share = RankShare(count, micro * world, micro, rank, world)
        return BatchLoader(MicroBatches(rows, share, subset), self.num_workers, self._is_remote)
