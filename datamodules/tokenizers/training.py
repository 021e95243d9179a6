"""Trains a tokenizer on texts, by the `tokenizers` library."""

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
#: Of no byte's visible form: see `_whole_words`.
_AFTER_WORD = "\ue000"
#: Words seen so often may become tokens whole. Of 2, 3, 5, 8, 12 and 20, 5 gave held-out titles the fewest nats.
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
    """A tokenizer made from ``texts``: give it the training split only.

    BPE is deterministic; Unigram is not (its sums run in parallel), so train once, save, and load everywhere.

    Args:
        kind: ``bpe`` or ``unigram`` (byte-level, lossless), ``char`` (the alphabet of the texts) or ``byte``.
        texts: read once, in order. Long ones are cut between words, where no token would reach across.
        vocab_size: number of ids, the end mark included; for ``bpe`` and ``unigram`` only, at least 257. Texts with
            too few different words give fewer, so read the tokenizer's own ``vocab_size`` afterwards.
        pattern: how text is split into words that tokens do not cross. ``none`` lets BPE merges cross them (as in the
            reproductions of byte BPE without a pattern); its training slows with the square of a text's length.
        eos: whether to add the end mark ``<|endoftext|>``, as the last id.
        prefix_space: whether each text has a space before it, for ``bpe`` and ``unigram`` only: its first word is then
            the token that it is elsewhere. `Tokenizer.decode` takes the space away.

    Raises:
        UserError: ``vocab_size`` missing, too small, or given to a kind that has none of its own; no text.
    """
    if kind in ("char", "byte"):
        if prefix_space:
            raise UserError(f"prefix_space means nothing to a {kind} tokenizer, which has no words: leave it out.")
        if vocab_size is not None:
            raise UserError(f"vocab_size={vocab_size} means nothing to a {kind} tokenizer: its text decides; leave it.")
        return CharTokenizer.from_texts(texts, eos=eos) if kind == "char" else ByteTokenizer(eos)
    if vocab_size is None or vocab_size < _SMALLEST:
        raise UserError(f"vocab_size={vocab_size} is too small for {kind}: give at least {_SMALLEST}, for 256 bytes.")
    if vocab_size > _LARGEST:  # the library reserves room for all at once, and would end the process
        raise UserError(f"vocab_size={vocab_size} is too large for {kind}: give at most {_LARGEST}.")
    if prefix_space:
        texts = (f" {text}" for text in texts if text)
    vocab = _trained_vocabulary(kind, texts, vocab_size - eos, PATTERNS[pattern])
    tokens = [from_visible(token) for token, _ in vocab] + [""] * eos
    specials = {EOS_TOKEN: len(vocab)} if eos else {}
    end_mark = EOS_TOKEN if eos else None
    if kind == "bpe":
        return BPETokenizer(tokens, PATTERNS[pattern], specials, end_mark, prefix_space)
    scores = [score for _, score in vocab] + [0.0] * eos
    return UnigramTokenizer(tokens, PATTERNS[pattern], specials, end_mark, scores, prefix_space)


def _trained_vocabulary(kind: Kind, texts: Iterable[str], size: int, pattern: str) -> list[tuple[str, float]]:
    """(visible token, score) in order of ids; the score of a BPE token is 0."""
    pieces = _pieces(texts, whole=pattern == PATTERNS["none"])
    vocabulary = _bpe(pieces, size, pattern) if kind == "bpe" else _unigram(pieces, size, pattern)
    # A process forked after the library's threads ran would be warned about, unless told that it will use none.
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
    library.train_from_iterator(_whole_words(words), trainer)
    vocabulary = json.loads(library.to_str())["model"]["vocab"]
    return _limited([(token, score) for token, score in vocabulary if _AFTER_WORD not in token], size)


def _library(model: dict[str, Any], pattern: str) -> "Library":
    return library_tokenizer(huggingface_state(model, pattern, specials={}))


def _whole_words(words: Counter[str]) -> Iterator[str]:
    """Every word as often as it was counted, and the common ones once more with something behind them.

    The library's first candidates are the strings that are followed by two different things. Nothing ever follows a
    word, so `` from`` would be no candidate and would stay `` fro`` and ``m`` (its issue 1027).
    """
    for word, count in words.items():
        yield from repeat(word, count)
        if count >= _COMMON:
            yield word + _AFTER_WORD


def _limited(vocab: list[tuple[str, float]], size: int) -> list[tuple[str, float]]:
    """The bytes and the likeliest others: asked for 256, the library gives hundreds, as it only stops at equality."""
    others = [token for token, _ in vocab if len(token) > 1]
    kept = set(others[: size - 256])
    return [(token, score) for token, score in vocab if len(token) == 1 or token in kept]


def _pieces(texts: Iterable[str], whole: bool) -> Iterator[str]:
    """Texts as the trainer takes them: valid, and cut so that one long document is shared among threads."""
    found = False
    for text in texts:
        check_unicode(text)
        found = found or bool(text)
        yield from [text] if whole else (piece.text for piece in cut([text], _TRAINING_PIECE))
    if not found:
        raise UserError("There is no text to train a tokenizer on; give a source that is not empty.")
