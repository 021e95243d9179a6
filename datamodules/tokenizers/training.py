"""Trains a tokenizer on texts, with the `tokenizers` library."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

from datamodules.errors import UserError
from datamodules.reading import cut
from datamodules.tokenizers.base import EOS_TOKEN, Tokenizer, check_unicode
from datamodules.tokenizers.bpe import PATTERNS, BPETokenizer, PatternName
from datamodules.tokenizers.byte_level import from_visible, huggingface_state, library_tokenizer
from datamodules.tokenizers.simple import ByteTokenizer, CharTokenizer
from datamodules.tokenizers.unigram import UnigramTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

Kind = Literal["bpe", "unigram", "char", "byte"]

_SMALLEST = 257
_LARGEST = 10_000_000
#: A character that stands for no byte (see `_with_common_words`).
_AFTER_WORD = "\ue000"
#: A word that occurs so often may become a token. Of 2, 3, 5, 8, 12 and 20, 5 gave held-out titles the lowest loss.
_COMMON = 5
_TRAINING_PIECE = 1 << 16


def train_tokenizer(
    kind: Kind,
    texts: Iterable[str],
    vocab_size: int | None = None,
    *,
    pattern: PatternName = "cl100k",
    eos: bool = True,
    prefix_space: bool = False,
) -> Tokenizer:
    """A tokenizer trained on ``texts``, which should be the training split only.

    Training BPE is deterministic. Training Unigram is not, as its sums run in parallel: train it once and save it.

    Args:
        kind: ``bpe`` or ``unigram`` (byte-level, lossless), ``char`` (the alphabet of the texts) or ``byte``.
        texts: the texts, read once. Long ones are cut between words.
        vocab_size: number of ids, the EOS token included; for ``bpe`` and ``unigram`` only, at least 257. Texts with
            too few different words give a tokenizer with fewer: read its ``vocab_size``.
        pattern: how text is split into words, which no token crosses. ``none`` lets BPE merges cross words, as byte BPE
            without a pattern does. Training then takes time in proportion to the square of a text's length.
        eos: whether to add the EOS token ``<|endoftext|>``, as the last id.
        prefix_space: whether each text is encoded with a space before it, for ``bpe`` and ``unigram`` only. Its first
            word is then the same token as inside a text. `Tokenizer.decode` removes the space.

    Raises:
        UserError: ``vocab_size`` is missing, too small, or given for ``char`` or ``byte``; or there is no text.
    """
    if kind in ("char", "byte"):
        if prefix_space:
            raise UserError(f"prefix_space means nothing to a {kind} tokenizer, which has no words: leave it out.")
        if vocab_size is not None:
            raise UserError(f"vocab_size={vocab_size} means nothing to a {kind} tokenizer: its text decides; leave it.")
        return CharTokenizer.from_texts(texts, eos=eos) if kind == "char" else ByteTokenizer(eos)
    if vocab_size is None or vocab_size < _SMALLEST:
        raise UserError(f"vocab_size={vocab_size} is too small for {kind}: give at least {_SMALLEST}, for 256 bytes.")
    if vocab_size > _LARGEST:  # the library allocates memory for all at once, and would end the process
        raise UserError(f"vocab_size={vocab_size} is too large for {kind}: give at most {_LARGEST}.")
    if prefix_space:
        texts = (f" {text}" for text in texts if text)
    vocab = _trained_vocabulary(kind, texts, vocab_size - eos, PATTERNS[pattern])
    tokens = [from_visible(token) for token, _ in vocab] + [""] * eos
    specials = {EOS_TOKEN: len(vocab)} if eos else {}
    eos_token = EOS_TOKEN if eos else None
    if kind == "bpe":
        return BPETokenizer(tokens, PATTERNS[pattern], specials, eos_token, prefix_space)
    scores = [score for _, score in vocab] + [0.0] * eos
    return UnigramTokenizer(tokens, PATTERNS[pattern], specials, eos_token, scores, prefix_space)


def _trained_vocabulary(kind: Kind, texts: Iterable[str], size: int, pattern: str) -> list[tuple[str, float]]:
    """(visible token, score) in order of ids; the score of a BPE token is 0."""
    pieces = _pieces(texts, whole=pattern == PATTERNS["none"])
    vocabulary = _bpe(pieces, size, pattern) if kind == "bpe" else _unigram(pieces, size, pattern)
    # Without this, the library warns in a process that is forked after its threads ran.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return vocabulary


def _bpe(pieces: Iterator[str], size: int, pattern: str) -> list[tuple[str, float]]:
    from tokenizers import pre_tokenizers, trainers

    library = _library({"type": "BPE", "vocab": {}, "merges": []}, pattern)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(pieces, trainer)
    return [(token, 0.0) for token, _ in sorted(library.get_vocab().items(), key=lambda item: item[1])]


def _unigram(pieces: Iterator[str], size: int, pattern: str) -> list[tuple[str, float]]:
    from tokenizers import pre_tokenizers, trainers

    library = _library({"type": "Unigram", "unk_id": None, "vocab": [], "byte_fallback": False}, pattern)
    split, library.pre_tokenizer = library.pre_tokenizer.pre_tokenize_str, None
    words = Counter(word for piece in pieces for word, _ in split(piece))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.UnigramTrainer(vocab_size=size + 1, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(_with_common_words(words), trainer)
    vocabulary = json.loads(library.to_str())["model"]["vocab"]
    return _limited([(token, score) for token, score in vocabulary if _AFTER_WORD not in token], size)


def _library(model: dict[str, Any], pattern: str) -> "Library":
    return library_tokenizer(huggingface_state(model, pattern, specials={}))


def _with_common_words(words: Counter[str]) -> Iterator[str]:
    """Every word as often as it was counted, and each common one once more with a character behind it.

    The library's first candidates are strings that are followed by two different characters. Nothing follows a whole
    word, so `` from`` would be no candidate, and would stay `` fro`` and ``m`` (the library's issue 1027).
    """
    for word, count in words.items():
        yield from repeat(word, count)
        if count >= _COMMON:
            yield word + _AFTER_WORD


def _limited(vocab: list[tuple[str, float]], size: int) -> list[tuple[str, float]]:
    """All single bytes and the most likely other tokens, ``size`` in all.

    The library stops only at exactly the size asked for, so for one near 256 it gives hundreds of tokens more.
    """
    others = [token for token, _ in vocab if len(token) > 1]
    likeliest = set(others[: size - 256])
    return [(token, score) for token, score in vocab if len(token) == 1 or token in likeliest]


def _pieces(texts: Iterable[str], whole: bool) -> Iterator[str]:
    """The texts for the trainer: of valid Unicode, and cut so that threads share one long document."""
    has_text = False
    for text in texts:
        check_unicode(text)
        has_text = has_text or bool(text)
        yield from [text] if whole else (piece.text for piece in cut([text], _TRAINING_PIECE))
    if not has_text:
        raise UserError("there is no text to train a tokenizer on; give a source that is not empty.")
