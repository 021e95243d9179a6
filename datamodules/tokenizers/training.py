"""Trains a tokenizer on texts, by the `tokenizers` library."""

import json
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from datamodules.errors import UserError
from datamodules.reading import cut
from datamodules.tokenizers.base import END_MARK, Tokenizer, check_unicode
from datamodules.tokenizers.bpe import PATTERNS, BPETokenizer, PatternName
from datamodules.tokenizers.byte_level import from_visible, huggingface_state
from datamodules.tokenizers.simple import ByteTokenizer, CharTokenizer
from datamodules.tokenizers.unigram import UnigramTokenizer

if TYPE_CHECKING:
    from tokenizers.trainers import Trainer

Kind = Literal["bpe", "unigram", "char", "byte"]

_SMALLEST = 257
_TRAINING_PIECE = 1 << 16


def train_tokenizer(
    kind: Kind,
    texts: Iterable[str],
    vocab_size: int | None = None,
    *,
    pattern: PatternName = "cl100k",
    eos: bool = True,
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

    Raises:
        UserError: ``vocab_size`` missing, too small, or given to a kind that has none of its own; no text.
    """
    if kind in ("char", "byte"):
        if vocab_size is not None:
            raise UserError(f"vocab_size={vocab_size} means nothing to a {kind} tokenizer: its text decides; leave it.")
        return CharTokenizer.from_texts(texts, eos=eos) if kind == "char" else ByteTokenizer(eos)
    if vocab_size is None or vocab_size < _SMALLEST:
        raise UserError(f"vocab_size={vocab_size} is too small for {kind}: give at least {_SMALLEST}, for 256 bytes.")
    vocab = _trained_vocabulary(kind, texts, vocab_size - eos, PATTERNS[pattern])
    tokens = [from_visible(token) for token, _ in vocab] + [""] * eos
    specials = {END_MARK: len(vocab)} if eos else {}
    end_mark = END_MARK if eos else None
    if kind == "bpe":
        return BPETokenizer(tokens, PATTERNS[pattern], specials, end_mark)
    scores = [score for _, score in vocab] + [0.0] * eos
    return UnigramTokenizer(tokens, PATTERNS[pattern], specials, end_mark, scores)


def _trained_vocabulary(kind: Kind, texts: Iterable[str], size: int, pattern: str) -> list[tuple[str, float]]:
    """(visible token, score) in order of ids; the score of a BPE token is 0."""
    from tokenizers import Tokenizer as Library

    empty: dict[str, Any] = {"type": "BPE", "vocab": {}, "merges": []}
    if kind == "unigram":
        empty = {"type": "Unigram", "unk_id": None, "vocab": [], "byte_fallback": False}
    library = Library.from_str(json.dumps(huggingface_state(empty, pattern, specials={})))
    library.train_from_iterator(_pieces(texts, whole=pattern == PATTERNS["none"]), _trainer(kind, size))
    # A process forked after the library's threads ran would be warned about, unless told that it will use none.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if kind == "bpe":
        return [(token, 0.0) for token, _ in sorted(library.get_vocab().items(), key=lambda item: item[1])]
    return _limited([(token, score) for token, score in json.loads(library.to_str())["model"]["vocab"]], size)


def _limited(vocab: list[tuple[str, float]], size: int) -> list[tuple[str, float]]:
    """The bytes and the likeliest others: asked for 256, the library gives hundreds, as it only stops at equality."""
    others = [token for token, _ in vocab if len(token) > 1]
    kept = set(others[: size - 256])
    return [(token, score) for token, score in vocab if len(token) == 1 or token in kept]


def _trainer(kind: Kind, size: int) -> "Trainer":
    from tokenizers import pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "bpe":
        return trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    return trainers.UnigramTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)


def _pieces(texts: Iterable[str], whole: bool) -> Iterator[str]:
    """Texts as the trainer takes them: valid, and cut so that one long document is shared among threads."""
    found = False
    for text in texts:
        check_unicode(text)
        found = found or bool(text)
        yield from [text] if whole else (piece.text for piece in cut([text], _TRAINING_PIECE))
    if not found:
        raise UserError("There is no text to train a tokenizer on; give a source that is not empty.")
