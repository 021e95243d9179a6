"""Export to and import from Hugging Face's ``tokenizer.json``. Ids are equal on both sides, or it is refused."""

from typing import Any

from datamodules.errors import UserError
from datamodules.tokenizers.base import EOS_TOKEN, Tokenizer
from datamodules.tokenizers.bpe import PATTERNS, BPETokenizer
from datamodules.tokenizers.byte_level import (
    PREPEND,
    ByteLevelTokenizer,
    check_ids,
    from_visible,
    huggingface_state,
    library_tokenizer,
    special_tokens,
)
from datamodules.tokenizers.simple import UNKNOWN_TOKEN, ByteTokenizer, CharTokenizer
from datamodules.tokenizers.unigram import UnigramTokenizer
from datamodules.tokenizers.wordpiece import WordPieceTokenizer, wordpiece_of

#: Names of the EOS token in published tokenizers, by preference.
_EOS_NAMES = (EOS_TOKEN, "<|end_of_text|>", "</s>", "<eos>")

#: So many ids without a token are allowed in a small vocabulary; in a large one as many as tokens.
_UNUSED = 1024

#: A text that an imported tokenizer must encode as Hugging Face does, besides the tokens of its own vocabulary. It has
#: capitals, digits, contractions, sequences of white space, scripts, combining marks and emoji.
_PROBE = (
    " It's  I'LL 12345 x=1\n\n\tend  \r\n été cafe\u0301 Ελλάδα Привет 你好\uff0c世界 مرحبا हिन्दी "
    "\U0001f44d\U0001f3fd ½ \uff12 \u00a0\u2003\x0b !!!...\n- _a_B\x00"
)


def to_huggingface(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a ``tokenizer.json`` that gives equal ids in `tokenizers` and `transformers`.

    Inside a text, those libraries encode the *name* of the EOS token as the EOS token, unless
    ``encode_special_tokens=True`` is set. This project never does.

    Raises:
        UserError: a BPE with ids that no list of merges gives.
    """
    match tokenizer:
        case BPETokenizer() | UnigramTokenizer():
            model = tokenizer.huggingface_model()
            return huggingface_state(model, tokenizer.pattern, tokenizer.specials, tokenizer.prefix_space)
        case ByteTokenizer():
            specials = {} if tokenizer.eos_id is None else {EOS_TOKEN: tokenizer.eos_id}
            tokens = [chr(byte) for byte in range(256)] + [""] * len(specials)
            return to_huggingface(BPETokenizer(tokens, PATTERNS["none"], specials))
        case CharTokenizer():
            return _characters(tokenizer)
        case WordPieceTokenizer():
            return tokenizer.huggingface_state()
    raise AssertionError(f"no export for {type(tokenizer).__name__}")


def _characters(tokenizer: CharTokenizer) -> dict[str, Any]:
    """A "WordLevel" model of single characters. Without ``<unk>`` an unknown character is an error there too."""
    vocab = {character: token_id for token_id, character in enumerate(tokenizer.chars)}
    ids = {UNKNOWN_TOKEN: tokenizer.unk_id, EOS_TOKEN: tokenizer.eos_id}
    specials = {name: token_id for name, token_id in ids.items() if token_id is not None}
    model = {"type": "WordLevel", "vocab": vocab | specials, "unk_token": UNKNOWN_TOKEN}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    state = huggingface_state(model, "", {}) | {"pre_tokenizer": split, "decoder": {"type": "Fuse"}}
    return state | {"added_tokens": special_tokens(specials)}


def from_huggingface(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json``. Its EOS token is ``<|endoftext|>`` or another usual name, if it has one.

    Raises:
        UserError: it is neither byte-level BPE or Unigram nor BERT's WordPiece, or its ids would differ here, as with
            another normaliser or with ids that are not in the order of merges.
    """
    model = state["model"]
    specials = {token["content"]: token["id"] for token in state.get("added_tokens") or []}
    eos = next((name for name in _EOS_NAMES if name in specials), None)
    prefix_space = state.get("normalizer") == PREPEND
    match model.get("type"):
        case "BPE":
            tokens = _tokens(model["vocab"], specials)
            bpe = BPETokenizer(tokens, _pattern(state), specials, eos, prefix_space)
            _check_merges(bpe, model)
            tokenizer: ByteLevelTokenizer = bpe
        case "Unigram":
            tokens = _tokens({token: i for i, (token, _) in enumerate(model["vocab"])}, specials)
            scores = [0.0 if token in specials else score for token, score in model["vocab"]]
            scores += [0.0] * (len(tokens) - len(scores))
            tokenizer = UnigramTokenizer(tokens, _pattern(state), specials, eos, scores, prefix_space)
        case "WordPiece":
            return wordpiece_of(state)
        case kind:
            raise UserError(f"its model is {kind}; only byte-level BPE, Unigram and WordPiece can be imported.")
    _check_ids(tokenizer, state)
    return tokenizer


def _tokens(vocab: dict[str, int], specials: dict[str, int]) -> list[str]:
    ids = {**vocab, **specials}
    check_ids(ids, 2 * len(ids) + _UNUSED)  # a forged id of a billion would take the memory of a billion tokens
    tokens = [""] * (1 + max([*vocab.values(), *specials.values()]))
    for token, token_id in vocab.items():
        if token not in specials:
            tokens[token_id] = from_visible(token)
    return tokens


def _pattern(state: dict[str, Any]) -> str:
    """The regular expression of the pre-tokenizer. A ByteLevel one without another has GPT-2's."""
    outer = state.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    splits = [step["pattern"]["Regex"] for step in steps if step.get("type") == "Split" and "Regex" in step["pattern"]]
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    use_regex = any(step.get("use_regex", True) for step in byte_level)
    if not byte_level or len(steps) > 2 or len(splits) + use_regex > 1:
        raise UserError("its pre-tokenizer is not one pattern followed by bytes, which is all that can be imported.")
    return splits[0] if splits else PATTERNS["gpt2" if use_regex else "none"]


def _check_merges(tokenizer: BPETokenizer, model: dict[str, Any]) -> None:
    """Checks that ids are merge ranks, from which tiktoken derives the merges."""
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    by_id = [tuple(pair) for pair in tokenizer.huggingface_model()["merges"]]
    if by_id != merges:
        raise UserError("its ids are not in the order of its merges, so tiktoken would give other ids.")


def _check_ids(tokenizer: ByteLevelTokenizer, state: dict[str, Any]) -> None:
    library = library_tokenizer(state)
    library.encode_special_tokens = True
    words = [tokenizer.decode([token_id]) for token_id in range(tokenizer.vocab_size)]
    for text in [_PROBE, "".join(words), *words[:: max(1, len(words) // 2000)]]:
        if tokenizer.encode(text) != library.encode(text, add_special_tokens=False).ids:
            raise UserError(f"it encodes {text[:20]!r} in a way that is not plain byte-level BPE or Unigram.")
