"""Processes with different texts or tokenizers stop together."""

from multiprocessing import get_context
from pathlib import Path

import pytest
import torch.distributed as dist

from datamodules import BPEDataModule, prepare
from datamodules.errors import UserError
from datamodules.tokenizers import Tokenizer, train_tokenizer

#: For each of the two processes the file that it reads, and the size of the tokenizer that it trains.
CASES = [
    (("a.txt", 258), ("a.txt", 258)),
    (("a.txt", 258), ("a.txt", 260)),
    (("a.txt", 258), ("b.txt", 260)),
]


def set_up(rank: int, folder: Path, trained: dict[int, Tokenizer]) -> None:
    """Runs in a process of its own: writes what `setup` says in each case."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    said = []
    for number, case in enumerate(CASES):
        text, size = case[rank]
        prepare.train_tokenizer = lambda *_, size=size, **__: trained[size]  # a unigram's training would not promise it
        cache = str(folder / f"cache{rank}" / str(number))
        try:
            BPEDataModule(str(folder / text), tokenizer="unigram", block_size=8, cache_dir=cache).setup()
            said.append("agreed")
        except UserError as error:
            said.append(str(error))
    dist.barrier()
    dist.destroy_process_group()
    (folder / f"said{rank}").write_text("\n".join(said))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_processes_train_on_the_same_ids_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words and more words " * 20)
    (tmp_path / "b.txt").write_text("words and other words " * 20)
    trained = {size: train_tokenizer("bpe", ["the words of this training"], size) for size in (258, 260)}
    jobs = [get_context("fork").Process(target=set_up, args=(rank, tmp_path, trained)) for rank in (0, 1)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0]
    said = (tmp_path / "said0").read_text()
    assert (tmp_path / "said1").read_text() == said
    same, tokenizers, texts = said.splitlines()
    assert same == "agreed"
    assert tokenizers.startswith(
        "the 2 processes of this run have trained different tokenizers, each in a cache of its"
    )
    assert "--data.cache_dir" in tokenizers
    assert "as --data.tokenizer." in tokenizers
    assert texts.startswith("the 2 processes of this run read different texts: give all of them the same files")
