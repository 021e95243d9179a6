"""Two ways to pack documents into rows: padding, documents that are cut, and tokens a second.

    python -m benchmarks.packing [--titles FILE] [--paragraphs FILE] [--block_size 256]

Lines of the first file are documents, and of the second its paragraphs. Without files it takes synthetic headlines and
the documentation of the running Python. Rates are the median of five, from one process, 64 rows a batch.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from datamodules.best_fit import BestFit
from datamodules.packing import Packed
from datamodules.rows import IGNORE_INDEX, StreamRows
from datamodules.sources import open_source
from datamodules.tokenizers import train_tokenizer
from datamodules.tokens import TokenArrays

_KINDS: dict[str, Callable[..., StreamRows]] = {"wrapped": Packed, "best_fit": BestFit}
_BATCHES = 200


def main() -> None:
    """Prints a table for each text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--titles", default="embedded_headlines", help="a source of titles, one a line")
    parser.add_argument("--paragraphs", default="embedded", help="a source of paragraphs")
    parser.add_argument("--block_size", type=int, default=256, help="tokens of a row")
    options = parser.parse_args()
    titles = list(open_source(options.titles, documents="line").documents())
    text = "\n".join(open_source(options.paragraphs).documents())
    _compare("titles", titles, options.block_size)
    _compare("paragraphs", [part.strip() for part in text.split("\n\n") if part.strip()], options.block_size)


def _compare(name: str, documents: list[str], block_size: int) -> None:
    store = _tokens(documents)
    lengths = np.diff(store.starts)
    print(
        f"{len(documents):,} {name}, {len(store.tokens):,} tokens, {lengths.mean():.1f} a document, "
        f"{(lengths > block_size).mean():.1%} longer than a row of {block_size}"
    )
    for kind, make in _KINDS.items():
        started = time.perf_counter()
        rows = make(store, block_size, seed=0)
        rows.prepare(0)
        seconds = time.perf_counter() - started
        padding, pieces = _measured(rows)
        rate = statistics.median(_rate(rows) for _ in range(5)) / 1e6
        print(
            f"  {kind:9} {rows.count:,} rows, padding {padding:.3%}, {pieces / len(documents):.4f} pieces a document, "
            f"planned in {seconds:.3f} s, {rate:.1f} million tokens/s"
        )


def _tokens(documents: list[str]) -> TokenArrays:
    """Documents with EOS tokens around them, by a BPE of 16,000 tokens that is trained on them."""
    tokenizer = train_tokenizer("bpe", documents, 16_000)
    assert tokenizer.eos_id is not None
    eos = np.array([tokenizer.eos_id], np.uint16)
    parts = [part for document in documents for part in (eos, tokenizer.encode_array(document).astype(np.uint16))]
    starts = np.cumsum([0, *(len(part) + 1 for part in parts[1::2])])
    return TokenArrays(np.concatenate([*parts, eos]), starts, tokenizer.eos_id)


def _measured(rows: StreamRows) -> tuple[float, int]:
    """The share of padding in an epoch, and the number of pieces of documents."""
    scored = pieces = 0
    for low in range(0, rows.count, 256):
        batch = rows.batch(0, np.arange(low, min(low + 256, rows.count)))
        scored += int((batch["targets"] != IGNORE_INDEX).sum())
        pieces += int((batch["document_ids"].max(1) + 1).sum())
    return 1 - scored / (rows.count * rows.block_size), pieces


def _rate(rows: StreamRows) -> float:
    random = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(_BATCHES):
        rows.batch(0, random.integers(0, rows.count, 64))
    return _BATCHES * 64 * rows.block_size / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
