"""The datamodule for tokens that another tool has made."""

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import TextDataModule
from datamodules.errors import UserError
from datamodules.prepare import Share
from datamodules.remote import is_url
from datamodules.sources import Source, open_source
from datamodules.splitting import Split
from datamodules.token_files import TokenSource, open_tokens
from datamodules.token_recipe import TokenRecipe, prepare_tokens
from datamodules.tokenizers import Tokenizer, open_tokenizer


class TokensDataModule(TextDataModule):
    """Tokens that another tool has made, read where they are: nothing is copied.

    It reads the ``train.bin`` of nanoGPT, the ``.bin`` shards of llm.c and modded-nanogpt, and the ``.ds`` shards of
    datatrove with their ``.ds.index``. Several files are one text. Documents end where the index says, or else at the
    tokenizer's EOS token. The first start reads all ids once, to check them and to measure their text.

    Args:
        source: a file, a glob, a folder of ``.ds`` files, or a list of these.
        val_source: tokens to validate on, all of them, instead of a part of ``source``.
        test_source: tokens to test on, all of them, instead of a part of ``source``.
        tokenizer: the tokenizer that the tokens were made with: ``gpt2``, ``cl100k_base``, ``o200k_base``, ``byte``, a
            tokenizer file, or nanoGPT's ``meta.pkl``.
        val_fraction: share of the tokens of ``source`` to validate on, without ``val_source``; it follows the training
            part.
        test_fraction: share of the tokens of ``source`` to test on, without ``test_source``; at its end.
        **options: the options of every datamodule. ``predict_source`` is text.
    """

    def __init__(
        self,
        source: str | list[str] | None = None,
        val_source: str | list[str] | None = None,
        test_source: str | list[str] | None = None,
        tokenizer: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not source:
            raise UserError("there are no tokens to train on: set --data.source to files such as train.bin.")
        if not tokenizer:
            raise UserError("set --data.tokenizer to the tokenizer that the tokens were made with, such as gpt2.")
        if is_url(self.cache_dir):
            raise UserError(
                f"cache_dir {self.cache_dir} is for tokens that are made here: leave it out, or give a folder."
            )
        self.source, self.val_source, self.test_source = source, val_source, test_source
        self.tokenizer_name, self.val_fraction, self.test_fraction = tokenizer, val_fraction, test_fraction

    def recipe(self) -> TokenRecipe:
        """The tokens, cut at positions of tokens."""
        tokenizer = self.chosen_tokenizer()

        source = self._opened(self.source, tokenizer)
        specs = self.val_source, self.test_source
        val, test = (None if spec is None else self._opened(spec, tokenizer) for spec in specs)
        split = Split(val=0.0 if val else self.val_fraction, test=0.0 if test else self.test_fraction)
        return TokenRecipe(source, tokenizer, split, val, test)

    def _opened(self, spec: str | list[str], tokenizer: Tokenizer) -> TokenSource:
        """The tokens that ``spec`` names, up to ``max_bytes`` of their text."""
        source = open_tokens(spec, tokenizer.vocab_size)
        if self.max_bytes is None:
            return source
        lengths = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
        if tokenizer.eos_id is not None:
            lengths[tokenizer.eos_id] = 0
        return source.beginning(lengths, self.max_bytes)

    def chosen_tokenizer(self) -> Tokenizer:
        """The named tokenizer."""
        return self.named_tokenizer(self.tokenizer_name, lambda: open_tokenizer(self.tokenizer_name))

    def prepare_share(self, share: Share) -> Path | None:
        """See `TextDataModule`. There is nothing to share: the tokens are made, and one process checks them."""
        return self._prepared()

    def _prepared(self, verify: bool = False) -> Path:
        """See `TextDataModule`. To verify is to read all ids again."""
        recipe = self._recipe
        assert isinstance(recipe, TokenRecipe)
        if self._checkpoint_tokenizer is not None:
            self._check_same(recipe.tokenizer, self._checkpoint_tokenizer)
        folder = prepare_tokens(recipe, self.cache_dir)
        if verify:
            recipe.verify(folder)
        return folder

    def open_text(self, spec: str | list[str]) -> Source:
        """The text of ``predict_source``; a file is a document."""
        return open_source(spec, cache_dir=self.cache_dir)
