"""Texts that tokenizers are tried on, and the library they are compared with."""

import json

from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from datamodules.synthetic import headlines
from datamodules.tokenizers import (
    EOS_TOKEN,
    Tokenizer,
    to_huggingface,
)

TEXTS = list(headlines(3000))
HARD = [
    "",
    " ",
    "\n\n \t\r\n x",
    "It's  I'LL 12345\u00a0e\u0301 你好\uff0c世界 👍🏽 \x00\u200b\ufeff",
    EOS_TOKEN,
    f"a{EOS_TOKEN}b <unk>",
    "".join(map(chr, range(256))),
    "\U0010ffff\ue000\u0378",
]
#: Any text that UTF-8 can hold, with more white space, letters and marks than chance would give.
VALID = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t'aAé1.<|>\u0301中👍"), max_size=60)


def library_of(tokenizer: Tokenizer) -> Library:
    """What Hugging Face's library makes of our export, told as we are to leave the names of marks in a text alone."""
    library = Library.from_str(json.dumps(to_huggingface(tokenizer)))
    library.encode_special_tokens = True
    return library
