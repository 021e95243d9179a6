"""Speed, memory and exactness of the data: text to tokens, tokens to batches, tokenizers trained and sampled.

    python -m benchmarks.data [--megabytes 1000] [--text GLOB] [--titles FILE] [--record]

Needs the ``bench`` extra. Without files it takes the embedded corpus and synthetic headlines. Rates that are compared
are measured in one run, the peer's before and after ours. The last line is JSON.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks import report
from datamodules import BPEDataModule, HeadlinesDataModule, TextDataModule
from datamodules.cutting import RowKind
from datamodules.sources import open_source
from datamodules.tokenizers import UnigramTokenizer, train_tokenizer
from datamodules.tokenizers.sampling import SampledTexts

ROOT = Path(__file__).parents[1]
#: The figures in words, in the order of the page.
LABELS = {
    "cores": "CPU cores",
    "sentence_exact": "the windows of a sentence are those computed by hand",
    "gpt2_mb_per_s": "text to GPT-2's tokens, all cores, MB/s",
    "tiktoken_mb_per_s": "the same by tiktoken on one thread, MB/s",
    "gpt2_ratio": "ours over tiktoken's on one thread times the cores",
    "gpt2_ratio_to_processes": "ours over a tiktoken process on each core, all at once",
    "gpt2_peak_mb": "peak memory of that, all processes, MB",
    "gpt2_second_start_seconds": "the next start, with these tokens, to the first batch, s",
    "char_mb_per_s": "text to characters' tokens, MB/s",
    "char_peak_mb": "peak memory of that, MB",
    "windows_million_tokens_per_s": "batches of windows of the text, million tokens/s",
    "packed_million_tokens_per_s": "batches of packed titles, million tokens/s",
    "padded_million_tokens_per_s": "batches of one padded title a row, million tokens/s",
    "titles": "titles that the tokenizers are tried on",
    "bpe_seconds": "training a BPE tokenizer of 16,000 tokens on nine tenths of them, s",
    "bpe_changed_titles": "titles that it does not give back exactly",
    "unigram_seconds": "training a unigram tokenizer of 16,000 tokens on nine tenths of them, s",
    "unigram_changed_titles": "titles that it does not give back exactly",
    "sampling_cpu_seconds_once": "subword sampling of nine tenths of them: CPU time before training, s",
    "sampling_cpu_seconds_an_epoch": "and of each epoch, s",
}
SENTENCE = "I love machine learning."
PREPARE = """
import sys, time
from datamodules.prepare import NewTokenizer, Recipe, prepare
from datamodules.sources import open_source
from datamodules.splitting import Split
from datamodules.tokenizers import open_tokenizer
kind, text, cache = sys.argv[1:]
char = NewTokenizer("char", train_on="all", eos=False)
started = time.perf_counter()
prepare(Recipe(open_source(text), char if kind == "char" else open_tokenizer(kind), Split(val=0.1)), cache)
assert "torch" not in sys.modules
print(time.perf_counter() - started)
"""

SECOND_START = """
import sys, time
from datamodules import BPEDataModule
text, cache = sys.argv[1:]
started = time.perf_counter()
data = BPEDataModule(text, tokenizer="gpt2", val_fraction=0.1, block_size=256, cache_dir=cache)
data.prepare_data()
data.setup()
next(iter(data.train_dataloader()))
print(time.perf_counter() - started)
"""

TIKTOKEN = """
import sys, time
import tiktoken
encode = tiktoken.get_encoding("gpt2").encode_ordinary
with open(sys.argv[1], encoding="utf-8") as file:
    pieces = [file.read(1_000_000) for _ in range(40)]
encode(pieces[0])
started = time.perf_counter()
for piece in pieces:
    encode(piece)
print(sum(len(piece.encode()) for piece in pieces) / (time.perf_counter() - started) / 1e6)
"""


def main() -> None:
    """Runs every measurement."""
    parser = report.parser(__doc__)
    parser.add_argument("--megabytes", type=report.at_least_1, default=1000, help="size of the text that is prepared")
    parser.add_argument("--text", default="embedded", help="a source of text: a file, folder, glob or name")
    parser.add_argument("--titles", default="embedded_headlines", help="a source of titles, one a line")
    options = parser.parse_args()
    report.require(parser, "psutil")
    size = options.megabytes * 1_000_000
    figures: dict[str, object] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as folder:
        figures |= sentence(Path(folder))
        figures |= preparation(Path(folder), options.text, size)
        figures |= batches(Path(folder), options.titles)
        figures |= trained_tokenizers(options.titles)
    report.finish("data", figures, lines(figures), options)


def lines(figures: dict[str, object]) -> list[str]:
    """The page's lines."""
    return [f"- {LABELS[name]}: {figures[name]:{',' * (type(figures[name]) is int)}}" for name in LABELS]


def sentence(folder: Path) -> dict[str, object]:
    """The three windows of one sentence."""
    (folder / "sentence.txt").write_text(SENTENCE)
    options = {"tokenizer": "gpt2", "block_size": 4, "stride": 1, "val_fraction": 0.0, "cache_dir": str(folder / "one")}
    data = _ready(BPEDataModule(str(folder / "sentence.txt"), **options))  # type: ignore[arg-type]
    batch = data.make_rows("train", training=True).batch(0, np.arange(3))
    print(f"{SENTENCE!r}, gpt2, block 4, stride 1:")
    for x, y, mask in zip(batch["input_ids"], batch["targets"], batch["attention_mask"], strict=True):
        print(f"  {x.tolist()} -> {y.tolist()}  {mask.tolist()}")
    stream = np.array([50256, 40, 1842, 4572, 4673, 13, 50256])
    windows = np.lib.stride_tricks.sliding_window_view(stream, 5)
    exact = np.array_equal(batch["input_ids"], windows[:, :-1]) and np.array_equal(batch["targets"], windows[:, 1:])
    return {"sentence_exact": bool(exact and batch["attention_mask"].all())}


def preparation(folder: Path, source: str, size: int) -> dict[str, object]:
    """A large text to tokens, against tiktoken on one thread; and to characters."""
    text = folder / "large.txt"
    _write_large(text, source, size)
    cores = len(os.sched_getaffinity(0))
    before = _tiktoken_rate(text, 1), _tiktoken_rate(text, cores)
    seconds, peak = _prepare("gpt2", text, folder / "gpt2")
    one, several = np.mean([before, (_tiktoken_rate(text, 1), _tiktoken_rate(text, cores))], axis=0).tolist()
    rate = size / seconds / 1e6
    print(f"gpt2, {size / 1e6:,.0f} MB: {rate:.1f} MB/s on {cores} cores; tiktoken on one thread {one:.1f} MB/s")
    print(f"  ratio to cores x one thread {rate / (one * cores):.3f} (wanted: 0.9)")
    print(
        f"  ratio to {cores} tiktoken processes at once {rate / several:.3f}; other work slows these as it slows ours"
    )
    print(f"  peak of all processes {peak:.0f} MB (wanted: 600)")
    second = min(float(_output(SECOND_START, text, folder / "gpt2")) for _ in range(2))
    print(f"  a start with these tokens, from the datamodule to the first batch: {second:.2f} s (wanted: 1)")
    char_seconds, char_peak = _prepare("char", text, folder / "char")
    text.unlink()
    print(f"characters: {size / char_seconds / 1e6:.0f} MB/s (wanted: 80); peak {char_peak:.0f} MB")
    return {
        "gpt2_ratio": round(rate / (one * cores), 3),
        "gpt2_ratio_to_processes": round(rate / several, 3),
        "gpt2_mb_per_s": round(rate, 2),
        "tiktoken_mb_per_s": round(one, 2),
        "gpt2_peak_mb": round(peak),
        "gpt2_second_start_seconds": round(second, 2),
        "char_mb_per_s": round(size / char_seconds / 1e6, 1),
        "char_peak_mb": round(char_peak),
    }


def batches(folder: Path, source: str) -> dict[str, object]:
    """Rows a second from one process without workers, B 64, T 256."""
    figures: dict[str, object] = {}
    wanted: dict[RowKind, int] = {"windows": 20, "packed": 5, "padded": 5}
    for rows, least in wanted.items():
        data = _ready(
            HeadlinesDataModule(
                source, tokenizer="byte", rows=rows, block_size=256, tokens_per_step=64 * 256, cache_dir=str(folder)
            )
        )
        rate = statistics.median(_batch_rate(data) for _ in range(5)) / 1e6
        print(f"{rows}: {rate:.1f} million tokens/s (wanted: {least})")
        figures[f"{rows}_million_tokens_per_s"] = round(rate, 1)
    return figures


def trained_tokenizers(source: str) -> dict[str, object]:
    """16k tokenizers of nine tenths of the titles, and whether all come back exactly."""
    titles = list(open_source(source, documents="line").documents())
    figures: dict[str, object] = {"titles": len(titles)}
    for kind in ("bpe", "unigram"):
        started = time.perf_counter()
        tokenizer = train_tokenizer(kind, titles[: len(titles) * 9 // 10], 16_000)
        seconds = time.perf_counter() - started
        different = sum(tokenizer.decode(tokenizer.encode(title)) != title for title in titles)
        print(
            f"{kind} of {tokenizer.vocab_size:,}: {seconds:.2f} s; {different} of {len(titles):,} titles changed by it"
        )
        figures |= {f"{kind}_seconds": round(seconds, 2), f"{kind}_changed_titles": different}
    assert isinstance(tokenizer, UnigramTokenizer)
    return figures | sampled(tokenizer, titles[: len(titles) * 9 // 10])


def sampled(tokenizer: UnigramTokenizer, titles: list[str]) -> dict[str, object]:
    """What it takes to segment the training titles anew: once, and in each epoch."""
    started = time.process_time()
    texts = SampledTexts(tokenizer, titles, 0.2)
    once = time.process_time() - started
    started = time.process_time()
    ids, _ = texts.draw(0)
    each = time.process_time() - started
    print(f"subword sampling of {len(titles):,} titles: {once:.2f} s once, {each:.2f} s an epoch; {len(ids):,} tokens")
    return {"sampling_cpu_seconds_once": round(once, 2), "sampling_cpu_seconds_an_epoch": round(each, 2)}


def _ready(data: TextDataModule) -> TextDataModule:
    data.prepare_data()
    data.setup()
    return data


def _write_large(path: Path, source: str, size: int) -> None:
    """Fills ``path`` with ``size`` bytes of repeated text."""
    data = "\n".join(open_source(source).documents()).encode()
    with path.open("wb") as file:
        for _ in range(size // len(data)):
            file.write(data)
        file.write(data[: size % len(data)].decode("utf-8", "ignore").encode())


def _tiktoken_rate(text: Path, processes: int) -> float:
    """MB/s of tiktoken's ``encode_ordinary``, one thread a process, added up over processes that run at once."""
    command = [sys.executable, "-c", TIKTOKEN, str(text)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(float(process.communicate()[0]) for process in running)


def _prepare(kind: str, text: Path, cache: Path) -> tuple[float, float]:
    """Seconds of the preparation in a process of its own, and the peak MB of it and its children together."""
    process = _started(PREPARE, kind, text, cache)
    with _watched(process.pid) as peak:
        out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the preparation with {kind} failed")
    return float(out), peak()


def _output(script: str, *arguments: object) -> str:
    """What a script prints."""
    process = _started(script, *arguments)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit("a start with prepared tokens failed")
    return out


def _started(script: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@contextmanager
def _watched(pid: int) -> Iterator[Callable[[], float]]:
    """Samples the resident memory of a process and its children, 20 times a second; shared pages count once each."""
    import psutil

    highest, over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.05):
            total = 0
            try:
                root = psutil.Process(pid)
                for process in [root, *root.children(recursive=True)]:
                    total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            highest = max(highest, total / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: highest
    finally:
        over.set()
        thread.join()


def _batch_rate(data: TextDataModule) -> float:
    """Tokens a second over at most 300 batches."""
    loader = iter(data.train_dataloader())
    next(loader)
    started, tokens = time.perf_counter(), 0
    for _, batch in zip(range(300), loader, strict=False):
        tokens += batch["input_ids"].numel()
    return tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
