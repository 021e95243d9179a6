"""Stores in shards: made by two processes at once, read from object storage, and an index of a terabyte.

    python -m benchmarks.shards [--megabytes 1000] [--training_megabytes 50] [--record]

Everything is made here: the text is random words, and storage is fsspec's ``memory://`` and ``file://``. It needs eight
times the megabytes on the disk of the temporary folder. The last line is JSON.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
from fsspec import AbstractFileSystem
from lightning.pytorch import Callback, Trainer, seed_everything

from benchmarks import report
from datamodules import CharDataModule, HeadlinesDataModule, TextDataModule
from datamodules.batches import MicroBatches, TrainLoader
from datamodules.files import BLOCK
from datamodules.integrity import with_checksum
from datamodules.remote_store import find_remote
from datamodules.rows import Windows
from datamodules.step_size import RankShare
from datamodules.tokens import STORE_VERSION, TokenStore, read_meta
from lit_gpt.config import GPTConfig
from lit_gpt.module import LitGPT

ROOT = Path(__file__).parents[1]
PREPARE = """
import json, sys, time
from pathlib import Path
from datamodules.prepare import NewTokenizer, Recipe, Share, prepare, prepare_share
from datamodules.sources import open_source
from datamodules.splitting import Split
from datamodules import text_facts
text, cache, share, size = sys.argv[1:]
text_facts.MAX_TOKENS = 0  # as for a text of more than 10**8 tokens, whose splits are not compared
recipe = Recipe(open_source(text), NewTokenizer("char", train_on="all", eos=False), Split(val=0.1))
started = time.perf_counter()
if share == "all":
    folder = prepare(recipe, cache, shard_bytes=int(size))
else:
    folder = prepare_share(recipe, Share.parsed(share), cache, int(size))
seconds = time.perf_counter() - started
peak = next(line for line in Path("/proc/self/status").read_text().split("\\n") if line.startswith("VmHWM"))
print(json.dumps([str(folder), seconds, int(peak.split()[1]) / 1024]))
"""
READ = """
import sys
from itertools import islice
from pathlib import Path
from datamodules import CharDataModule, text_facts
text, cache = sys.argv[1:]
text_facts.MAX_TOKENS = 0
data = CharDataModule(text, block_size=256, tokens_per_step=256 * 64, cache_dir=cache, max_cache_size="40MB")
data.prepare_data()
data.setup()
for _ in islice(iter(data.train_dataloader()), 60):
    pass
peak = next(line for line in Path("/proc/self/status").read_text().split("\\n") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""
STEPS, SAVED_AT = 40, 17


def main() -> None:
    """Runs every measurement."""
    parser = report.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the text that two processes prepare")
    parser.add_argument("--training_megabytes", type=int, default=50, help="size of the text that is trained on")
    options = parser.parse_args()
    figures: dict[str, object] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "home")
        figures |= preparation(folder, options.megabytes)
        figures |= training(folder, options.training_megabytes)
        figures |= killed(folder)
        figures |= terabyte()
        figures |= pace(folder)
    lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in figures.items()]
    report.finish("shards", figures, lines, options)


# ---- preparation


def preparation(folder: Path, megabytes: int) -> dict[str, object]:
    """A text that two processes prepare at once against one process; and the memory for a tenth of the text."""
    text, tenth = folder / "text.txt", folder / "tenth.txt"
    write_text(text, megabytes)
    write_text(tenth, megabytes // 10)
    started = time.perf_counter()
    running = [_start(text, folder / "many", f"{number}/2", 64 * 10**6) for number in (1, 2)]
    shares = [_ended(process) for process in running]
    seconds = time.perf_counter() - started
    whole, alone, peak = _ended(_start(text, folder / "one", "all", 100 * 10**9))
    _, _, small_peak = _ended(_start(tenth, folder / "one", "all", 100 * 10**9))
    sharded = next(share for share, *_ in shares if share != "None")
    equal, shards = _equal(Path(sharded), Path(whole)), len(read_meta(Path(sharded))["shards"]["train"])
    print(f"{megabytes} MB by two processes: {seconds:.1f} s, {shards} shards of train; by one: {alone:.1f} s")
    print(f"  equal, token for token: {equal}")
    print(f"  peak of a process {peak:.0f} MB; for {megabytes // 10} MB of text {small_peak:.0f} MB")
    read, small_read = (_read_peak(path, f"file://{folder / 'bucket'}") for path in (text, tenth))
    print(f"  peak of reading it through file:// {read:.0f} MB; of a tenth {small_read:.0f} MB")
    return {
        "equal_to_one_process": equal,
        "two_processes_seconds": round(seconds, 1),
        "one_process_seconds": round(alone, 1),
        "preparation_peak_mb": round(peak),
        "preparation_peak_mb_of_a_tenth": round(small_peak),
        "reading_peak_mb": round(read),
        "reading_peak_mb_of_a_tenth": round(small_read),
    }


def write_text(path: Path, megabytes: int) -> None:
    """Lines of random words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzé", k=draw.randint(2, 9))) for _ in range(20_000)]
    lines = [" ".join(draw.choices(words, k=draw.randint(5, 60))) + "\n" for _ in range(20_000)]
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 10**6:
            file.write("".join(draw.choices(lines, k=2000)))


def _start(text: Path, cache: Path, share: str, shard_bytes: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PREPARE, str(text), str(cache), share, str(shard_bytes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _ended(process: "subprocess.Popen[str]") -> tuple[str, float, float]:
    out, _ = process.communicate()
    folder, seconds, peak = json.loads(out)
    return folder, seconds, peak


def _equal(one: Path, other: Path) -> bool:
    """Whether two stores have the same splits, counts, tokens and documents."""
    splits = read_meta(one)["splits"]
    if splits != read_meta(other)["splits"]:
        return False
    for split in splits:
        a, b = TokenStore(one, split), TokenStore(other, split)
        chunks = range(0, len(a), 1 << 24)
        if not all(np.array_equal(a.tokens[low : low + (1 << 24)], b.tokens[low : low + (1 << 24)]) for low in chunks):
            return False
        if not np.array_equal(a.starts, b.starts):
            return False
    return True


def _read_peak(text: Path, url: str) -> float:
    """Peak MB of a process that trains on a store in storage for 60 steps, with a cache of 40 MB."""
    command = [sys.executable, "-c", READ, str(text), url]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # it makes the store
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


# ---- training


class Losses(Callback):
    """The loss of each micro-batch, and the error that ends the run before a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.values: list[float] = []
        self.stop_at = stop_at

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Notes the loss; ends the run when the time has come."""
        self.values.append(float(outputs["loss"]))
        if trainer.global_step == self.stop_at:
            trainer.should_stop = True


def training(folder: Path, megabytes: int) -> dict[str, object]:
    """Losses of 40 steps from a local store and from ``memory://``, straight and resumed in the middle."""
    text = folder / "training.txt"
    write_text(text, megabytes)
    local, _ = _losses(text, str(folder / "local"), folder)
    straight, seconds = _losses(text, "memory://bucket", folder)
    first, _ = _losses(text, "memory://bucket", folder, stop_at=SAVED_AT)
    second, _ = _losses(text, "memory://bucket", folder, resume=folder / "saved.ckpt")
    resumed = first + second
    print(f"{megabytes} MB from memory://: losses of {len(local)} steps equal to a local store's: {straight == local}")
    print(f"  stopped at step {SAVED_AT} and resumed: equal: {resumed == local}; {seconds:.1f} s")
    return {"memory_losses_equal": straight == local, "memory_resumed_equal": resumed == local}


def _losses(
    text: Path, cache_dir: str, folder: Path, stop_at: int | None = None, resume: Path | None = None
) -> tuple[list[float], float]:
    seed_everything(1, verbose=False)
    losses, started = Losses(stop_at), time.perf_counter()
    module = LitGPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64))
    data = CharDataModule(str(text), tokens_per_step=64 * 16, cache_dir=cache_dir, max_shard_size="8MB")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        max_steps=STEPS,
        callbacks=[losses],
        limit_val_batches=0,
        enable_checkpointing=False,
        **quiet,  # type: ignore[arg-type]
    )
    trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume))
    if stop_at is not None:
        trainer.save_checkpoint(folder / "saved.ckpt")
    return losses.values, time.perf_counter() - started


def killed(folder: Path) -> dict[str, object]:
    """A run from ``file://`` that SIGKILL ends and that resumes, against a straight run from a local store."""
    text = folder / "killed.txt"
    write_text(text, 1)
    straight = _fit(text, str(folder / "local"), folder / "straight")
    straight.communicate()
    logs = folder / "killed"
    process = _fit(text, f"file://{folder / 'killed bucket'}", logs)
    while process.poll() is None and not list(logs.rglob("last.ckpt")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended_early = process.returncode == -signal.SIGKILL
    _fit(text, f"file://{folder / 'killed bucket'}", logs).communicate()
    rows = [_metrics(folder / "straight"), _metrics(logs)]
    equal = rows[0] == rows[1] and len(rows[0]) > 3
    print(
        f"killed by SIGKILL ({ended_early}) and resumed from file://: metrics equal to a straight local run's: {equal}"
    )
    return {"killed_and_resumed_equal": equal and ended_early}


def _fit(text: Path, cache_dir: str, logs: Path) -> "subprocess.Popen[bytes]":
    shape = {"block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 16}
    options = [f"--model.config.{name}={value}" for name, value in shape.items()]
    options += [f"--data.source={text}", f"--data.cache_dir={cache_dir}", "--data.tokens_per_step=1024"]
    options += ["--data.max_shard_size=200KB", "--trainer.max_steps=150", "--trainer.val_check_interval=50"]
    options += ["--trainer.log_every_n_steps=10", "--checkpoint.every_n_steps=10", "--trainer.limit_val_batches=2"]
    options += ["--trainer.accelerator=cpu", "--trainer.logger=false", "--samples.max_new_tokens=0", "--resume=auto"]
    command = [sys.executable, "-m", "lit_gpt", "fit", *options, f"--logs_dir={logs}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _metrics(logs: Path) -> list[list[str]]:
    """The rows of a run's metrics.csv, without what a clock says."""
    header, *rows = [line.split(",") for line in next(logs.rglob("metrics.csv")).read_text().splitlines()]
    kept = [i for i, name in enumerate(header) if name == "step" or name.endswith("loss")]
    return [[row[i] for i in kept] for row in rows]


# ---- an index of a terabyte


class Zeros(AbstractFileSystem):
    """Storage whose shards are all zeros: only ``meta.json`` and the tokenizer exist."""

    protocol = "zeros"
    small: ClassVar[dict[str, bytes]] = {}
    sizes: ClassVar[dict[str, int]] = {}
    reads = 0

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        """All files, in any folder."""
        return [{"name": f"store/{name}", "size": size, "type": "file"} for name, size in self.sizes.items()]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a small file, or zeros."""
        type(self).reads += 1
        name = path.rpartition("/")[2]
        return self.small[name][start:end] if name in self.small else bytes((end or 0) - (start or 0))


def terabyte(shards: int = 1000, shard_bytes: int = 10**9) -> dict[str, object]:
    """Memory, time to the first batch and time of a seek, of a store of 1000 shards of 1 GB that exist as an index."""
    _simulate(shards, shard_bytes)
    before, started = _resident(), time.perf_counter()
    folder = find_remote("zeros://store")
    assert folder is not None
    store = TokenStore(folder, "train", 10**9)
    loader = _train_loader(store)
    next(batches := iter(loader))
    first = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    grown = _resident() - before
    started = time.perf_counter()
    resumed = _train_loader(store)
    resumed.load_state_dict({"epoch": 3, "global_batches": len(resumed) // 2})
    next(batches := iter(resumed))
    seek = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    print(f"an index of {shards * shard_bytes / 1e12:g} TB, {len(store):,} tokens in {shards} shards:")
    print(
        f"  first batch after {first:.2f} s, a seek to the middle of epoch 3 {seek:.2f} s, {grown:.0f} MB more memory"
    )
    return {
        "terabyte_first_batch_seconds": round(first, 2),
        "terabyte_seek_seconds": round(seek, 2),
        "terabyte_memory_mb": round(grown),
    }


def _simulate(shards: int, shard_bytes: int) -> None:
    full, last = zlib.crc32(bytes(BLOCK)), zlib.crc32(bytes((shard_bytes - 1) % BLOCK + 1))
    record = {"size": shard_bytes, "crc32": 0, "blocks": [full] * (-(-shard_bytes // BLOCK) - 1) + [last]}
    names, tokens = [f"train-{number:05d}.bin" for number in range(shards)], shards * shard_bytes // 2
    small = {"size": 2, "crc32": zlib.crc32(b"{}")}
    counts = {"tokens": tokens, "documents": 1, "chars": tokens, "bytes": tokens, "eos_tokens": 0}
    meta = {"version": STORE_VERSION, "dtype": "uint16", "eos_id": None, "splits": {"train": counts}}
    meta |= {"shards": {"train": [[name, shard_bytes // 2] for name in names]}}
    meta |= {"files": {"tokenizer.json": small, **dict.fromkeys(names, record)}}
    data = json.dumps(with_checksum(meta)).encode()
    Zeros.small = {"meta.json": data, "tokenizer.json": b"{}"}
    Zeros.sizes = {"meta.json": len(data), "tokenizer.json": 2, **dict.fromkeys(names, shard_bytes)}
    fsspec.register_implementation("zeros", Zeros, clobber=True)


def _train_loader(store: TokenStore) -> TrainLoader:
    rows = Windows(store, 1024, seed=1)
    rows.windows = 250  # of 4 GB
    return TrainLoader(MicroBatches(rows, RankShare(rows.count, 64, 8)), remote=True)


def _resident() -> float:
    """MB of memory that are this process's own, without files that it has mapped."""
    fields = Path("/proc/self/status").read_text().split("\n")
    return int(next(line for line in fields if line.startswith("RssAnon")).split()[1]) / 1024


# ---- pace


def pace(folder: Path) -> dict[str, object]:
    """Million tokens a CPU second of one process: a store in one file, in shards, and in shards behind ``file://``.

    Other work on the machine slows the clock's seconds. Threads that read ahead count.
    """
    figures: dict[str, object] = {}
    places = {"one_file": (folder / "one file", "1GB"), "shards": (folder / "in shards", "100KB")}
    for rows in ("windows", "packed"):
        for name, (cache, size) in {**places, "url": (f"file://{folder / 'pace'}", "100KB")}.items():
            data = HeadlinesDataModule(
                tokenizer="byte",
                rows=rows,
                block_size=256,
                tokens_per_step=64 * 256,
                cache_dir=str(cache),
                max_shard_size=size,
            )
            data.prepare_data()
            data.setup()
            rate = statistics.median(_batch_rate(data) for _ in range(5)) / 1e6
            print(f"{rows}, {name.replace('_', ' ')}: {rate:.1f} million tokens a CPU second")
            figures[f"{rows}_{name}_million_tokens_per_s"] = round(rate, 1)
    return figures


def _batch_rate(data: TextDataModule) -> float:
    """Tokens a CPU second over at most 300 batches."""
    loader = iter(data.train_dataloader())
    next(loader)
    started = time.process_time()
    tokens = sum(batch["input_ids"].numel() for batch in islice(loader, 300))
    return tokens / (time.process_time() - started)


if __name__ == "__main__":
    main()
