"""WordPiece, BERT's tokenizer: words are cut greedily into the longest pieces of a vocabulary; ``##`` continues a word.

It is run by the `tokenizers` library. Ids are those of Hugging Face's BertTokenizer. It is not lossless: white space is
dropped, an uncased one also drops capitals and accents, and a word that the vocabulary cannot spell becomes ``[UNK]``.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.errors import UserError
from datamodules.files import expanded
from datamodules.reading import cut
from datamodules.tokenizers.base import Ids, Tokenizer, check_unicode
from datamodules.tokenizers.byte_level import LONGEST, library_tokenizer, special_tokens

if TYPE_CHECKING:
    import tokenizers

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
#: Of a trained vocabulary. BERT's own has 30,522 tokens.
DEFAULT_SIZE = 30_522
_SMALLEST, _LARGEST = 64, 10_000_000
#: The largest published vocabulary has 501,153 lines (4 MB). A larger file is something else.
_LARGEST_FILE = 64_000_000
#: At most so many characters, and at most a quarter of the vocabulary, are tokens of a trained vocabulary, each
#: twice: at the start of a word and inside. A text with rarer characters would fill a small vocabulary with them.
_MOST_CHARACTERS = 1000


class WordPieceTokenizer(Tokenizer):
    """WordPiece with BERT's five special tokens.

    No text encodes to a special token but ``[UNK]``. The EOS token, which divides documents in a token store, is
    ``[SEP]``.

    Attributes:
        pad_id, unk_id, cls_id, sep_id, mask_id: the ids of the special tokens.

    Args:
        vocab: the token of each id, as in a ``vocab.txt``.
        uncased: whether text is lower-cased and loses its accents before it is encoded.
    """

    lossless = False

    def __init__(self, vocab: list[str], uncased: bool = True) -> None:
        if not (isinstance(vocab, list) and all(isinstance(token, str) and token for token in vocab)):
            raise UserError("the vocabulary is not a list of tokens.")
        if not isinstance(uncased, bool):
            raise UserError(f"the uncased of a WordPiece vocabulary is {uncased!r}: give true or false.")
        self.vocab, self.uncased, self.vocab_size = vocab, uncased, len(vocab)
        self._ids = {token: token_id for token_id, token in enumerate(vocab)}
        if len(self._ids) < len(vocab):
            twice = next(token for token, count in Counter(vocab).items() if count > 1)
            raise UserError(f"the vocabulary has the token {twice[:40]!r} twice.")
        if missing := [name for name in SPECIALS if name not in self._ids]:
            raise UserError(f"the vocabulary lacks {', '.join(missing)}.")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (self._ids[name] for name in SPECIALS)
        self.eos_id = self.sep_id

    @classmethod
    def from_file(cls, path: str | Path, uncased: bool = True) -> "WordPieceTokenizer":
        """The tokenizer of a ``vocab.txt``, which has one token in each line.

        Raises:
            UserError: the file cannot be read, or is no vocabulary.
        """
        try:
            return cls(_lines_of(expanded(path)), uncased)
        except UserError as error:
            fix = "give a vocab.txt with one token in each line, [PAD], [UNK], [CLS], [SEP] and [MASK] among them"
            raise UserError(f"{path} is no WordPiece vocabulary ({str(error).rstrip('.')}): {fix}.") from None

    def encode_array(self, text: str, start: bool = True) -> Ids:
        """See `Tokenizer`."""
        check_unicode(text)
        pieces = [text] if len(text) <= LONGEST else [piece.text for piece in cut([text], LONGEST)]
        parts = [self._library.encode(piece, add_special_tokens=False).ids for piece in pieces]
        return np.concatenate([np.array(part, np.uint32) for part in parts])

    def decode(self, ids: Iterable[int]) -> str:
        """The words with one space between them. White space, and of an uncased one capitals and accents, are lost."""
        return super().decode(ids).removeprefix(" ")

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`. A token that begins a word has a space before it."""
        token = self.vocab[token_id]
        return (token[len(CONTINUES) :] if self.continues[token_id] else f" {token}").encode()

    def token_text(self, token_id: int) -> str:
        """The token as it stands in a ``vocab.txt``."""
        return self.vocab[token_id]

    def to_dict(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"kind": "wordpiece", "vocab": self.vocab, "uncased": self.uncased}

    @cached_property
    def continues(self) -> np.ndarray:
        """Which ids continue a word, (V,) bool."""
        return np.array([token.startswith(CONTINUES) and len(token) > len(CONTINUES) for token in self.vocab])

    @cached_property
    def special_ids(self) -> np.ndarray:
        """The ids of the five special tokens, sorted."""
        return np.array(sorted(self._ids[name] for name in SPECIALS))

    def huggingface_state(self) -> dict[str, Any]:
        """The content of a Hugging Face ``tokenizer.json``, which puts ``[CLS]`` before and ``[SEP]`` behind a text."""
        around = {"sep": [SEP, self.sep_id], "cls": [CLS, self.cls_id]}
        return self._plain_state() | {
            "added_tokens": special_tokens({name: self._ids[name] for name in SPECIALS}),
            "post_processor": {"type": "BertProcessing", **around},
        }

    def _plain_state(self) -> dict[str, Any]:
        """The same without special tokens in texts and around them."""
        rest = {"unk_token": UNK, "continuing_subword_prefix": CONTINUES, "max_input_chars_per_word": 100}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": _normalizer(self.uncased),
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": None,
            "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": True},
            "model": {"type": "WordPiece", **rest, "vocab": self._ids},
        }

    @cached_property
    def _library(self) -> "tokenizers.Tokenizer":
        return library_tokenizer(self._plain_state())


def _normalizer(uncased: bool) -> dict[str, Any]:
    """Hugging Face's settings for BERT. Accents are stripped where text is lower-cased."""
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": uncased,
    }


def _lines_of(path: Path) -> list[str]:
    """The lines of a vocabulary."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"it has {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"it is not UTF-8 at byte {error.start:,}") from None
    lines = text.removesuffix("\n").split("\n")
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise UserError(f"its line {empty[0]} is empty")
    return lines


def train_wordpiece(texts: Iterable[str], vocab_size: int | None = None, uncased: bool = True) -> WordPieceTokenizer:
    """A WordPiece tokenizer trained on texts, which should be the training split only. It is deterministic.

    Args:
        texts: the texts, read once.
        vocab_size: number of ids, special tokens included; None is 30,522. A short text gives fewer.
        uncased: as for `WordPieceTokenizer`.

    Raises:
        UserError: ``vocab_size`` is too small or too large, or there is no text.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import models, trainers

    size = DEFAULT_SIZE if vocab_size is None else vocab_size
    if not _SMALLEST <= size <= _LARGEST:
        raise UserError(f"vocab_size={size} is none for wordpiece: give {_SMALLEST} to {_LARGEST:,}.")
    words = _counted_words(texts, uncased)
    library, characters = Library(models.WordPiece(unk_token=UNK)), _alphabet(words, min(_MOST_CHARACTERS, size // 4))
    # Left alone, the library gives its tokens `##a`, `##b`, ... ids in the random order of a hash map, and two
    # trainings differ in every tenth token. So they are named as special tokens, which have the first ids in order.
    first = [*SPECIALS, *characters, *(CONTINUES + character for character in characters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=first, initial_alphabet=characters, limit_alphabet=len(characters),
        min_frequency=2, show_progress=False,
    )  # fmt: skip
    library.train_from_iterator(_repeated(words), trainer)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # see `training`
    by_id = sorted(library.get_vocab().items(), key=lambda item: item[1])
    return WordPieceTokenizer([token for token, _ in by_id], uncased)


def _counted_words(texts: Iterable[str], uncased: bool) -> Counter[str]:
    """How often each word occurs, after normalisation."""
    from tokenizers import normalizers, pre_tokenizers

    normalize = normalizers.BertNormalizer(lowercase=uncased).normalize_str
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    words: Counter[str] = Counter()
    for text in texts:
        check_unicode(text)
        for piece in cut([text], LONGEST):
            words.update(word for word, _ in split(normalize(piece.text)))
    if not words:
        raise UserError("there is no text to train a tokenizer on; give a source that is not empty.")
    return words


def _alphabet(words: Counter[str], most: int) -> list[str]:
    """The most frequent characters, sorted."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:most])


def _repeated(words: Counter[str]) -> Iterator[str]:
    for word in sorted(words):
        yield from repeat(word, words[word])


def wordpiece_of(state: dict[str, Any]) -> WordPieceTokenizer:
    """The tokenizer of a Hugging Face ``tokenizer.json`` with a WordPiece model.

    Raises:
        UserError: its ids would differ here, as with another normaliser.
    """
    model, normalizer = state["model"], dict(state.get("normalizer") or {})
    if normalizer.get("strip_accents") == normalizer.get("lowercase"):
        normalizer["strip_accents"] = None  # which means the same
    vocab = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if [model["vocab"][token] for token in vocab] != list(range(len(vocab))):
        raise UserError("its ids are not 0, 1, 2 and so on, one for each token.")
    tokenizer = WordPieceTokenizer(vocab, bool(normalizer.get("lowercase")))
    same = tokenizer._plain_state()
    for part, given in (("normalizer", normalizer), ("pre_tokenizer", state.get("pre_tokenizer"))):
        if given != same[part]:
            raise UserError(f"its {part} is not BERT's, and its ids would differ here.")
    ours, theirs = ({k: v for k, v in m.items() if k != "vocab"} for m in (same["model"], model))
    if ours != theirs:
        raise UserError("its model has other settings than BERT's, and its ids would differ here.")
    return tokenizer
