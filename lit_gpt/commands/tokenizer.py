"""``tokenizer train``, ``tokenizer eval`` and ``tokenizer export``: train, measure and export a tokenizer."""

import json
import shlex
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np

from datamodules.files import expanded, write_text
from datamodules.sources import Documents, open_source
from datamodules.tokenizers import (
    PatternName,
    Tokenizer,
    is_written_here,
    open_tokenizer,
    save_tokenizer,
    to_huggingface,
    train_tokenizer,
)
from lit_gpt.outputs import check_output


def train(
    source: str,
    out: str,
    kind: Literal["bpe", "unigram", "char"] = "bpe",
    vocab_size: int | None = None,
    pattern: PatternName = "cl100k",
    prefix_space: bool = False,
    documents: Documents = "file",
    column: str | None = None,
) -> None:
    """Train a tokenizer on a text and write it to a file.

    ``fit`` trains a tokenizer if it needs one, on the training split only. Train one here to share it among runs. Then
    leave the validation text out of ``source``.

    Args:
        source: a file, folder or glob, or the name of a source.
        out: the file to write, JSON.
        kind: ``bpe`` or ``unigram`` (on bytes, lossless for any text), or ``char``.
        vocab_size: number of tokens, the EOS token included; 16,000 by default, and not for ``char``.
        pattern: how text is split into words, which no token crosses: as ``cl100k`` or ``gpt2`` do; ``none`` does not
            split.
        prefix_space: whether each document is encoded with a space before it. Its first word is then the same token as
            inside a text.
        documents: what a document is: a ``file``, a ``line``, or a value in a ``column`` (csv, tsv, jsonl, parquet).
        column: the column to read, with ``--documents column``.
    """
    if vocab_size is None and kind != "char":
        vocab_size = 16_000
    text = open_source(source, documents=documents, column=column)
    check_output("--out", out, "tokenizer", is_written_here, text.paths)
    texts = (piece.text for piece in text.pieces())
    start = time.perf_counter()
    tokenizer = train_tokenizer(kind, texts, vocab_size, pattern=pattern, prefix_space=prefix_space)
    print(f"{kind} tokenizer of {tokenizer.vocab_size:,} tokens, trained in {time.perf_counter() - start:.1f} s: {out}")
    if vocab_size is not None and tokenizer.vocab_size < vocab_size:
        print(f"That is fewer than {vocab_size:,}: the text has no more to merge.")
    save_tokenizer(tokenizer, out)
    reading = {"source": source, "documents": None if documents == "file" else documents, "column": column}
    print(f"Judge it:  python -m lit_gpt tokenizer eval {_as_flags('', tokenizer=out, **reading)}")
    print(f"Use it:    python -m lit_gpt fit --data BPEDataModule {_as_flags('data.', **reading, tokenizer=out)}")


def evaluate(tokenizer: str, source: str, documents: Documents = "file", column: str | None = None) -> None:
    """Print how well a tokenizer fits a text: bytes per token, speed, vocabulary use, and whether decoding is exact.

    Args:
        tokenizer: a file of ``tokenizer train``, a tokenizer.json, or gpt2, cl100k_base, o200k_base or byte.
        source: a file, folder or glob, or the name of a source.
        documents: what a document is, as for ``tokenizer train``.
        column: the column to read, with ``--documents column``.
    """
    text = open_source(source, documents=documents, column=column)
    for name, value in _statistics(open_tokenizer(tokenizer), (piece.text for piece in text.pieces())):
        print(f"{name:<18} {value}")
    print(f"Use it:            python -m lit_gpt fit --data BPEDataModule {_as_flags('data.', tokenizer=tokenizer)}")


def export(tokenizer: str, out: str) -> None:
    """Write a tokenizer as a Hugging Face tokenizer.json, with which Hugging Face's libraries give equal ids.

    Args:
        tokenizer: a file of ``tokenizer train``, or gpt2, cl100k_base, o200k_base, byte.
        out: the file to write.
    """
    check_output("--out", out, "tokenizer", is_written_here, [expanded(tokenizer).resolve()])
    opened = open_tokenizer(tokenizer)
    state = to_huggingface(opened)
    write_text(out, json.dumps(state, ensure_ascii=False))
    eos = next((token["content"] for token in state["added_tokens"] if token["id"] == opened.eos_id), None)
    special = "" if eos is None else f", eos_token={eos!r}, pad_token={eos!r}"
    print(f"Read it with transformers.PreTrainedTokenizerFast(tokenizer_file={out!r}{special})")
    print(f"or with {_as_flags('data.', tokenizer=out)}")


def _as_flags(prefix: str, /, **options: str | None) -> str:
    """The options that are not None as flags of a command, quoted for a shell."""
    flags = ((f"--{prefix}{name}", value) for name, value in options.items() if value is not None)
    return shlex.join(part for flag in flags for part in flag)


def _statistics(tokenizer: Tokenizer, texts: Iterator[str]) -> Iterator[tuple[str, str]]:
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    chars = size = lost = 0
    seconds = 0.0
    tokenizer.encode("")  # builds its tables now, so that the time is not measured
    for text in texts:
        start = time.perf_counter()
        ids = tokenizer.encode_array(text)
        seconds += time.perf_counter() - start
        counts += np.bincount(ids, minlength=len(counts))
        chars, size = chars + len(text), size + len(text.encode())
        lost += tokenizer.decode(ids.tolist()) != text
    tokens, used = int(counts.sum()), int((counts > 0).sum())
    yield "text", f"{chars:,} characters, {size:,} bytes"
    yield "tokens", f"{tokens:,}"
    yield "bytes per token", f"{size / tokens:.3f}"
    yield "tokens per second", f"{tokens / seconds:,.0f} ({size / seconds / 1e6:.1f} MB/s, one thread)"
    yield "vocabulary used", f"{used:,} of {tokenizer.vocab_size:,} ({used / tokenizer.vocab_size:.1%})"
    yield "round trip", "exact" if not lost else f"NOT exact: {lost} of the pieces it was read in came back changed"


VERBS = {"train": train, "eval": evaluate, "export": export}
