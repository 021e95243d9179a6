"""Processes with different texts or tokenizers stop together."""

import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from datamodules import BPEDataModule, prepare
from datamodules.agreement import Fact, check_agreement
from datamodules.errors import DisagreementError, UserError
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
    here = socket.gethostname()
    assert tokenizers.startswith(
        "the processes of this run do not have the same tokenizer: it is one of 260 tokens (SHA-256 "
    )
    assert f") in process 1 on {here} and one of 258 tokens (SHA-256 " in tokenizers
    assert "--data.cache_dir" in tokenizers
    assert "as --data.tokenizer." in tokenizers
    assert texts.startswith(
        "the processes of this run do not have the same text: it is 396 bytes of train, 44 bytes of"
    )
    assert f"in process 1 on {here} and 378 bytes of train, 42 bytes of" in texts
    assert texts.endswith(
        ": give all processes the same files and the same splits (embedded text is of a version of Python)."
    )


def of_processes(*facts: dict[str, str]) -> Callable[[Any], list[Any]]:
    """What a gathering would return, for processes with these facts on the machines a, b, ..."""
    return lambda _: [
        (host, {k: Fact(v, f"<{v}>") for k, v in own.items()}) for host, own in zip("abc", facts, strict=False)
    ]


def test_the_first_fact_that_differs_is_named_with_the_first_process_and_what_to_do() -> None:
    fixes = {"one": "mend one", "": "mend the rest"}
    check_agreement({}, fixes, of_processes({"one": "1"}, {"one": "1"}))
    with pytest.raises(DisagreementError) as refused:
        check_agreement({}, fixes, of_processes({"one": "1", "two": "x"}, {"one": "2", "two": "y"}, {"one": "3"}))
    assert str(refused.value) == (
        "the processes of this run do not have the same one: it is <2> in process 1 (and 1 more) on b and <1> in "
        "process 0 on a: mend one."
    )
    with pytest.raises(DisagreementError) as refused:
        check_agreement({}, fixes, of_processes({"one": "1"}, {"one": "1"}, {"one": "1", "two": "y"}))
    assert str(refused.value) == (
        "the processes of this run do not have the same two: it is <y> in process 2 on c and nothing in process 0 on "
        "a: mend the rest."
    )
