"""The options that decide how splits become rows, for training and for evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from datamodules.best_fit import BestFit
from datamodules.errors import UserError
from datamodules.packing import Packed, WholePacked
from datamodules.resegmented_rows import ResegmentedRows
from datamodules.rows import Padded, Rows, StreamRows, Windows
from datamodules.tokenizers import Tokenizer, UnigramTokenizer
from datamodules.tokenizers.sampling import SampledTexts
from datamodules.tokens import TokenStore, TokenStream

RowKind = Literal["windows", "padded", "packed"]
Packing = Literal["wrapped", "best_fit"]


@dataclass(frozen=True)
class Cutting:
    """Cuts splits into rows, by the options of a datamodule.

    Args:
        kind: ``windows``, ``padded`` or ``packed``.
        block_size: T.
        seed: decides, with the epoch, the order of training rows and where they are cut.
        shuffle: whether training rows are shuffled; if not, the seed is not used.
        stride: distance of two training windows.
        val_stride: distance of two evaluation windows, and of the rows of a document longer than T.
        mask_first: number of training targets at the start of each window (or document) left out of the loss.
        sampling: smoothing of the sampled segmentations of the training text; 0 does not sample.
        packing: how packed rows are filled for training: ``wrapped`` or ``best_fit``.
        window_bytes: bytes of tokens inside of which rows are shuffled; None is the whole split.
    """

    kind: RowKind
    block_size: int
    seed: int
    shuffle: bool = True
    stride: int | None = None
    val_stride: int | None = None
    mask_first: int = 0
    sampling: float = 0.0
    packing: Packing = "wrapped"
    window_bytes: int | None = None

    def training_rows(self, store: TokenStore, tokenizer: Tokenizer) -> Rows:
        """The rows to train on."""
        packed = BestFit if self.packing == "best_fit" else Packed
        kind = {"windows": Windows, "padded": Padded, "packed": packed}[self.kind]
        options: dict[str, Any] = {"block_size": self.block_size, "mask_first": self.mask_first}
        options |= {"seed": self.seed if self.shuffle else None}
        options |= {"stride": self.stride} if self.kind == "windows" else {}  # `check` refuses it for the others
        cut: Callable[[TokenStream], StreamRows] = partial(_in_windows, partial(kind, **options), self.window_bytes)
        if not self.sampling:
            return cut(store)
        assert isinstance(tokenizer, UnigramTokenizer)  # `check` refuses all others
        # The store has one segmentation. Sampling needs the text, which the store's ids decode to without loss.
        documents = (tokenizer.decode(ids.tolist()) for ids in store.documents())
        return ResegmentedRows(SampledTexts(tokenizer, documents, self.sampling), cut, self.seed)

    def evaluation_rows(self, store: TokenStore) -> Rows:
        """The rows to evaluate: every token is a scored target exactly once, in the text's order.

        They depend neither on a seed nor on an epoch, so the same weights always get the same metrics.
        """
        if self.kind == "windows":
            return Windows(store, self.block_size, self.val_stride, once=True)
        if self.kind == "packed":  # without cuts, unlike training: a cut would take away a token's context
            return WholePacked(store, self.block_size, self.val_stride)
        return self.documents(store)

    def documents(self, store: TokenStore) -> Padded:
        """Rows of one document each; every token is a scored target exactly once."""
        return Padded(store, self.block_size, val_stride=self.val_stride)

    def check(self, stores: dict[str, TokenStore], tokenizer: Tokenizer, source: str) -> None:
        """Checks that the options fit each other and the text.

        Args:
            stores: the splits, by name.
            tokenizer: the tokenizer of the splits.
            source: the name of the text in error messages.

        Raises:
            UserError: names the option.
        """
        self._check_strides()
        self._check_packing()
        self._check_window(stores["train"])
        self._check_mask(stores["train"])
        self._check_sampling(tokenizer)
        if self.kind != "windows" and stores["train"].eos_id is None:
            has = "this one has none" if tokenizer.eos_id is None else "these tokens have none between documents"
            raise UserError(f"rows {self.kind!r} need a tokenizer with an EOS token, and {has}; use windows.")
        for split, store in stores.items():
            if self.kind == "windows" and len(store) <= self.block_size:
                raise UserError(
                    f"the {split} split of {source} has {len(store)} tokens, fewer than one row's "
                    f"{self.block_size + 1} (block_size {self.block_size} + 1): give more text, a smaller block_size "
                    "or another split."
                )

    def _check_window(self, train: TokenStore) -> None:
        if self.window_bytes is None:
            return
        if not self.shuffle:
            raise UserError("shuffle_window is of rows that are shuffled, and shuffle is false: leave one of them out.")
        least = self.block_size * train.dtype.itemsize
        if self.window_bytes < least:
            raise UserError(
                f"shuffle_window is {self.window_bytes:,} bytes, less than one row's {least:,}: give the size of some "
                "shards, such as 4GB."
            )

    def _check_strides(self) -> None:
        if self.stride is not None and self.kind != "windows":
            raise UserError(f"stride {self.stride} is the distance of windows, and rows are {self.kind}: leave it out.")
        for name, stride in (("stride", self.stride), ("val_stride", self.val_stride)):
            if stride is not None and not 1 <= stride <= self.block_size:
                raise UserError(
                    f"a {name} of {stride} leaves out text or repeats it: choose 1 to block_size = {self.block_size}."
                )

    def _check_packing(self) -> None:
        if self.packing == "best_fit" and self.kind != "packed":
            raise UserError(f"packing best_fit is for packed rows, and rows are {self.kind}: set rows to packed.")
        if self.packing == "best_fit" and not self.shuffle:
            raise UserError(
                "packing best_fit takes documents by their length, and shuffle false by their order: set packing to "
                "wrapped, or shuffle to true."
            )
        if self.packing == "best_fit" and self.window_bytes is not None:
            raise UserError(
                "packing best_fit takes the documents of a row from the whole split, and shuffle_window from a part: "
                "leave one of them out."
            )

    def _check_mask(self, train: TokenStore) -> None:
        windows = self.kind == "windows"
        # The longest document decides: shorter ones may lose all their targets, as a message of three tokens does.
        targets = self.block_size if windows or not self.mask_first else int(np.diff(train.starts).max())
        if not 0 <= self.mask_first < targets:
            what = f"a window of {targets}" if windows else f"the longest document to train on, of {targets} targets"
            raise UserError(
                f"mask_first {self.mask_first} leaves no target of {what}: choose 0 (off) to {targets - 1}."
            )

    def _check_sampling(self, tokenizer: Tokenizer) -> None:
        if self.sampling < 0:
            raise UserError(f"subword_sampling {self.sampling} is negative: choose 0 (off) or 0.1 to 1.")
        if self.sampling and not isinstance(tokenizer, UnigramTokenizer):
            raise UserError(
                f"subword_sampling {self.sampling} draws the segmentations of a unigram tokenizer, and the data's is "
                "of another kind: set tokenizer to unigram, or subword_sampling to 0."
            )


def _in_windows(cut: Callable[[TokenStream], StreamRows], window_bytes: int | None, store: TokenStream) -> StreamRows:
    """The rows of a stream of tokens, to be shuffled in windows of about so many bytes."""
    rows = cut(store)
    if window_bytes is not None:
        size = len(store.tokens) * store.tokens.dtype.itemsize
        rows.windows = -(-size // window_bytes)
    return rows
