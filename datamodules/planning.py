"""What is known of a datamodule's text and batches before anything is downloaded, trained or encoded."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.base import TextDataModule
from datamodules.bert import BertDataModule
from datamodules.downloads import offline
from datamodules.errors import UserError
from datamodules.files import cache_folder
from datamodules.prepare import Recipe, store_folder
from datamodules.step_size import StepSize
from datamodules.subword import SubwordDataModule
from datamodules.text_facts import Baselines, TextFacts, read_text_facts
from datamodules.token_data import TokensDataModule
from datamodules.tokenizers import ENCODINGS, Tokenizer
from datamodules.tokenizers.wordpiece import DEFAULT_SIZE
from datamodules.tokens import META

#: Texts with more bytes than this are not read to find their token store, whose name is their checksum: 1 s.
MAX_BYTES = 500_000_000
#: The number of characters that a text is assumed to have, where nothing says it: about that of English prose.
ASSUMED_CHARACTERS = 100


def known_store(data: Any) -> Path | None:
    """The folder of the token store of a datamodule's options. None if it is not there, or the text is not."""
    if not isinstance(data, TextDataModule):
        return None
    with offline(), contextlib.suppress(UserError, OSError, ImportError):
        recipe = data.recipe()
        if not isinstance(recipe, Recipe) or _bytes_of(recipe) <= MAX_BYTES:
            cache = data.cache_dir
            folder = store_folder(recipe, cache) if isinstance(recipe, Recipe) else cache_folder(cache) / recipe.key
            return folder if (folder / META).is_file() else None
    return None


def known_facts(store: Path | None, data: Any = None) -> TextFacts | None:
    """The facts of the store of a datamodule. None: there is none, or it is damaged, which `fit` mends.

    The losses in a store are those of next tokens, not of masked ones.
    """
    with contextlib.suppress(OSError, LookupError, TypeError, ValueError):
        facts = read_text_facts(store) if store else None
        if facts and isinstance(data, BertDataModule):
            return replace(facts, baselines=Baselines(facts.baselines.uniform))
        return facts
    return None


def _bytes_of(recipe: Recipe) -> int:
    """Bytes of the files that the recipe's checksum is computed from."""
    sources = (recipe.source, recipe.val_source, recipe.test_source)
    stamps = [stamp for source in sources if source for stamp in source.stamps()]
    return sum(stamp[0] for stamp in stamps if isinstance(stamp, tuple))


def vocab_size_of_options(data: Any) -> tuple[int, str | None]:
    """The number of ids that a datamodule's options say, and a note where it is assumed."""
    if isinstance(data, SubwordDataModule | TokensDataModule | BertDataModule):
        name, size = data.tokenizer_name, getattr(data, "wanted_vocab_size", None)
        if name == "wordpiece":
            return size or DEFAULT_SIZE, None
        if name in ("bpe", "unigram"):
            return size or 16_000, None
        if name in ENCODINGS:
            return ENCODINGS[name], None
        with contextlib.suppress(UserError):
            if isinstance(tokenizer := data.chosen_tokenizer(), Tokenizer):
                return tokenizer.vocab_size, None
    note = f"the vocabulary is unknown before the text is prepared: {ASSUMED_CHARACTERS} tokens are assumed"
    return ASSUMED_CHARACTERS, note


def planned_step(data: Any, block_size: int, processes: int) -> StepSize | None:
    """The size of an optimizer step, by the options. None for a datamodule of another kind."""
    if not isinstance(data, TextDataModule):
        return None
    data.block_size = data.block_size or block_size
    return data.step_of(data.block_size, processes)
