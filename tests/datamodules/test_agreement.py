"""Processes that hold other texts or tokenizers than each other stop together."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: For each of the two processes the file that it reads, and the size that its training comes to.
CASES = [
    ("a.txt", 258, "a.txt", 258),
    ("a.txt", 258, "a.txt", 260),
    ("a.txt", 258, "b.txt", 260),
]
PROGRAM = """
import sys
import torch.distributed as dist
from datamodules import BPEDataModule, prepare
from datamodules.errors import UserError
from datamodules.tokenizers import train_tokenizer

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
for number, case in enumerate(CASES):
    text, size = case[2 * rank : 2 * rank + 2]
    trained = train_tokenizer("bpe", ["the words of this training"], size)
    prepare.train_tokenizer = lambda *_, **__: trained  # which a unigram's own training would not promise
    cache = f"{folder}/cache{rank}/{number}"
    data = BPEDataModule(f"{folder}/{text}", tokenizer="unigram", block_size=8, cache_dir=cache)
    try:
        data.setup()
        print("agreed")
    except UserError as error:
        print(error)
dist.barrier()
"""


def test_two_processes_train_on_the_same_ids_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words and more words " * 20)
    (tmp_path / "b.txt").write_text("words and other words " * 20)
    program = PROGRAM.replace("CASES", repr(CASES))
    commands = [[sys.executable, "-c", program, str(rank), str(tmp_path)] for rank in (0, 1)]
    jobs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert said[0] == said[1]
    same, tokenizers, texts = said[0].splitlines()
    assert same == "agreed"
    assert tokenizers.startswith(
        "The 2 processes of this run have trained different tokenizers, each in a cache of its"
    )
    assert "--data.cache_dir" in tokenizers
    assert "as --data.tokenizer." in tokenizers
    assert texts.startswith("The 2 processes of this run read different texts: give all of them the same files")
