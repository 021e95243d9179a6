"""The datamodule for masked language models such as BERT."""

import sys
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from datamodules.base import TextDataModule
from datamodules.batches import BatchLoader, TrainLoader
from datamodules.errors import UserError
from datamodules.length_baseline import pairs_line
from datamodules.masked_baselines import masked_baselines
from datamodules.masked_rows import MaskedRows, PackedStretches, WholeSegments
from datamodules.masking import EVALUATION_SEED, Masker, Masking, MaskKind
from datamodules.prepare import NewTokenizer, Recipe
from datamodules.sentence_pairs import BalancedPairs, GooglePairs, PairKind, PairRows
from datamodules.sources import Documents, Source, open_source
from datamodules.step_totals import StepBatches
from datamodules.text_facts import TextFacts
from datamodules.tokenizers import Tokenizer, WordPieceTokenizer, load_tokenizer
from datamodules.tokens import TokenStore

BertRowKind = Literal["pairs", "packed", "padded"]
#: Tokens at the beginning of the text that are looked at for unknown words, and the share that is named: English prose
#: has below 0.1 % with bert-base-uncased's vocabulary.
_LOOK, _MOST_UNKNOWN = 1 << 20, 0.02
#: [CLS], A, [SEP], B and [SEP] with two tokens in A and in B, and one to spare.
_SHORTEST_ROW = 8


class BertDataModule(TextDataModule):
    """Masked tokens, and pairs of sentences, for BERT. The text is split into contiguous parts.

    A batch is a dict of ``input_ids`` (B, T) with masks; ``targets`` (B, T), the original ids where a token is masked,
    and -100 elsewhere; ``attention_mask`` and ``token_type_ids`` (B, T). Pairs add ``next_sentence_label`` (B,): 0 if B
    follows A, 1 if it is random, -100 for none. Packed rows add ``document_ids`` (B, T). Training batches have
    ``step_targets`` and ``step_pairs`` (1,): the targets and labels of the whole optimizer step.

    Args:
        source: a file, folder or glob, the name of a download, or a list of these; None is ``embedded``, the
            documentation of the running Python.
        val_source: text to validate on, all of it, instead of a part of ``source``.
        test_source: text to test on, all of it, instead of a part of ``source``.
        documents: what a document is: a whole ``file``, a ``line``, or a value in a ``column`` of a table; None is a
            file.
        column: the column to read, with ``documents: column``.
        strip: whether to remove white space at both ends of each document.
        val_fraction: share of the characters of ``source`` to validate on; it follows the training part.
        test_fraction: share of the characters of ``source`` to test on, at its end.
        tokenizer: ``wordpiece``, which is trained once and kept with the tokens; or a file: a ``vocab.txt`` or a
            ``tokenizer.json``.
        vocab_size: number of tokens of a trained tokenizer, special tokens included; None is 30,522.
        uncased: whether text is lower-cased and loses its accents, as for bert-base-uncased; of a ``tokenizer.json``
            that file decides.
        rows: ``pairs`` of sentences, [CLS] A [SEP] B [SEP]; ``packed``, several documents a row, which do not see each
            other; or ``padded``, one document a row. None is pairs.
        pairs: ``balanced`` draws the label first and gives a random B the length of the true one; ``google`` makes
            pairs as BERT's data did, of which more than half are random and lengths give labels away.
        masking: how training masks: ``exact`` takes ``mlm_probability`` of each row's tokens, rounded, as BERT's data
            did; ``bernoulli`` takes each token by a coin. Evaluation always masks exactly 15 %, at fixed places.
        mlm_probability: share of the tokens that training masks.
        max_predictions: the most masked tokens of a row in training; None is no limit. BERT's data had 20 of 128 tokens
            and 80 of 512, which 15 % does not reach.
        whole_words: whether training masks all pieces of a word together.
        **options: the options of every datamodule. ``stride``, ``val_stride``, ``mask_first``,
            ``packing`` and ``shuffle_window`` are refused here.
    """

    default_rows = "padded"
    masked = True

    def __init__(
        self,
        source: str | list[str] | None = None,
        val_source: str | list[str] | None = None,
        test_source: str | list[str] | None = None,
        documents: Documents | None = None,
        column: str | None = None,
        strip: bool = False,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        tokenizer: str = "wordpiece",
        vocab_size: int | None = None,
        uncased: bool = True,
        rows: BertRowKind | None = None,
        pairs: PairKind = "balanced",
        masking: MaskKind = "exact",
        mlm_probability: float = 0.15,
        max_predictions: int | None = None,
        whole_words: bool = False,
        **options: Any,
    ) -> None:
        self.row_kind: BertRowKind = rows or "pairs"
        super().__init__(rows="packed" if rows == "packed" else "padded", **options)
        self.source = "embedded" if source is None else source
        self.val_source, self.test_source = val_source, test_source
        self.documents, self.column, self.strip = documents or "file", column, strip
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.tokenizer_name, self.wanted_vocab_size, self.uncased = tokenizer, vocab_size, uncased
        self.pairs = pairs
        self.masking = Masking(masking, mlm_probability, max_predictions, whole_words)
        self._masked_facts: TextFacts | None = None
        usual = {"stride": None, "val_stride": None, "mask_first": 0, "packing": "wrapped", "window_bytes": None}
        for name in (name for name, value in usual.items() if getattr(self, name) != value):
            option = {"window_bytes": "shuffle_window"}.get(name, name)
            raise UserError(f"the data's {option} is for models that predict the next token: leave it out for BERT.")

    # Text and tokenizer

    def recipe(self) -> Recipe:
        """The text, cut at character positions."""
        return Recipe.contiguous(
            self.chosen_tokenizer(), self.opened_sources(), (self.val_fraction, self.test_fraction)
        )

    def open_text(self, spec: str | list[str]) -> Source:
        """See `TextDataModule`."""
        return open_source(
            spec, documents=self.documents, column=self.column, strip=self.strip, cache_dir=self.cache_dir
        )

    def chosen_tokenizer(self) -> Tokenizer | NewTokenizer:
        """The tokenizer of the options."""
        name, size = self.tokenizer_name, self.wanted_vocab_size
        if name == "wordpiece":
            return NewTokenizer("wordpiece", size, uncased=self.uncased)
        return self.named_tokenizer(name, lambda: self._opened(name), size)

    def _opened(self, name: str) -> Tokenizer:
        return load_tokenizer(name) if name.endswith(".json") else WordPieceTokenizer.from_file(name, self.uncased)

    def setup(self, stage: str | None = None) -> None:
        """See `TextDataModule`. ``fit`` begins with a line about the labels of pairs."""
        super().setup(stage)
        self._masked_facts = None
        if not isinstance(self.tokenizer, WordPieceTokenizer):
            raise UserError(
                f"masked rows need a WordPiece tokenizer, and {self.tokenizer_name} is a "
                f"{type(self.tokenizer).__name__}: give a vocab.txt, or leave it out."
            )
        if self._size < _SHORTEST_ROW:
            raise UserError(f"a block_size of {self._size} has no room for a pair: give at least {_SHORTEST_ROW}.")
        for split, store in self.stores.items():
            if not store.counts.text_tokens:
                raise UserError(
                    f"the {split} split of {self._recipe.source.name} has no token: give a text with words."
                )
        self._check_unknown(stage == "fit")
        if stage == "fit" and self.row_kind == "pairs":
            self._print_pairs()

    def _check_unknown(self, prints: bool) -> None:
        """Refuses a text in which the vocabulary knows no word, and names a large share of unknown ones."""
        assert isinstance(self.tokenizer, WordPieceTokenizer)
        ids = np.asarray(self.stores["train"].tokens[:_LOOK])
        share = float((ids == self.tokenizer.unk_id).sum() / max((ids != self.tokenizer.sep_id).sum(), 1))
        if share <= _MOST_UNKNOWN:
            return
        fix = "check --data.uncased, or give a vocabulary of this language"
        what = f"of the tokens of {self._recipe.source.name}, {share:.0%} are [UNK], which is not trained on"
        if share == 1.0:
            raise UserError(f"{what}: {fix}.")
        if prints:
            _print_line(f"{what}: {fix}")

    @rank_zero_only
    def _print_pairs(self) -> None:
        rows = self.make_rows("train", training=True)
        assert isinstance(rows, PairRows)
        print(pairs_line(rows), flush=True)

    @property
    def text_facts(self) -> TextFacts:
        """Sizes of the text, and losses of masked tokens without a network (see `masked_baselines`)."""
        if self._masked_facts is None:
            facts = self._facts
            if "val" in self.stores:
                losses = masked_baselines(self.stores["train"], self.make_rows("val"), self.vocab_size)
                facts = replace(facts, baselines=losses)
            self._masked_facts = facts
        return self._masked_facts

    @text_facts.setter
    def text_facts(self, facts: TextFacts) -> None:
        self._facts = facts

    def scored_text(self, split: str) -> None:
        """None: some tokens of a text are scored, so their loss is none of its bytes or characters."""
        return

    # Rows

    def make_rows(self, split: str, training: bool = False) -> MaskedRows:
        """See `TextDataModule`."""
        return self._rows_of(self.stores[split], training)

    def _rows_of(self, store: TokenStore, training: bool = False) -> MaskedRows:
        tokenizer = self.tokenizer
        assert isinstance(tokenizer, WordPieceTokenizer)
        seed = self._order_seed() if training else EVALUATION_SEED
        m = self.masking
        masking = Masking(m.kind, m.probability, m.most, m.whole_words, seed) if training else Masking()
        shared = store, self._size, tokenizer, Masker(masking, tokenizer), seed if training and self.shuffle else None
        if self.row_kind == "pairs":
            return (GooglePairs if self.pairs == "google" else BalancedPairs)(*shared, pair_seed=seed)
        if self.row_kind == "packed" and training:
            return PackedStretches(*shared)
        return WholeSegments(*shared, packed=self.row_kind == "packed")

    def train_dataloader(self) -> BatchLoader:
        """See `TextDataModule`."""
        rows = self.make_rows("train", training=True)
        dataset = StepBatches(rows, self._share(rows.count))
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        return (BatchLoader if overfit else TrainLoader)(dataset, self.num_workers, self._is_remote)

    def predict_dataloader(self) -> BatchLoader:
        """The loader of ``predict_source``, with the fixed masks of evaluation; None is the validation split."""
        if self.predict_source is None:
            self._check_split("val")
            return self._eval_loader(self.make_rows("val"))
        return self._eval_loader(self._rows_of(TokenStore(self._prepare_predict_store(), "train", self.cache_bytes)))

    def _print_hint(self) -> None:
        """Nothing: rows are not shuffled in windows here."""


@rank_zero_only
def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
