"""Tokens of other tools: the same batches and sizes as the same text prepared here, and faults in one sentence."""

import gzip
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import BPEDataModule, CharDataModule, TextDataModule, TokensDataModule, UserError
from datamodules.tokenizers import ByteTokenizer, to_huggingface
from lit_gpt import GPTConfig, LitGPT

E = 256  # of the tokenizer "byte"
LINES = [
    "To be, or not to be",
    "né à Paris",
    "x",
    "that is the question:",
    "日本語",
    "whether 'tis nobler",
    "in the mind",
]
VAL = ["to suffer the slings", "été", "and arrows"]


def bytes_of(lines: list[str]) -> list[list[int]]:
    return [list(line.encode()) for line in lines]


def write_plain(path: Path, ids: Any, dtype: str = "<u2") -> Path:
    np.asarray(ids).astype(dtype).tofile(path)
    return path


def write_with_header(path: Path, ids: Any) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(ids)
    path.write_bytes(header.tobytes() + np.asarray(ids).astype("<u2").tobytes())
    return path


def write_indexed(path: Path, documents: list[list[int]], dtype: str = "<u2") -> Path:
    write_plain(path, [token for document in documents for token in document], dtype)
    ends = np.cumsum([len(document) for document in documents])
    ends.astype("<u8").tofile(f"{path}.index")
    Path(f"{path}.metadata").write_text(f"byte|{np.dtype(dtype).itemsize}\n{ends[-1]}\n{ends[-1]} T")
    return path


def joined(lines: list[str], before: bool = False) -> list[int]:
    """The ids of all lines, with the EOS token before or behind each."""
    return [token for ids in bytes_of(lines) for token in ([E, *ids] if before else [*ids, E])]


def nanogpt(folder: Path) -> dict[str, Any]:
    """Each document's ids, then the EOS token, as in nanoGPT's data/openwebtext/prepare.py."""
    train, val = write_plain(folder / "train.bin", joined(LINES)), write_plain(folder / "val.bin", joined(VAL))
    return {"source": str(train), "val_source": str(val)}


def llm_c(folder: Path) -> dict[str, Any]:
    """The EOS token before each document; a shard ends in the middle of one."""
    ids = joined(LINES, before=True)
    for number, part in enumerate((ids[:25], ids[25:60], ids[60:])):
        write_with_header(folder / f"train_{number}.bin", part)
    val = write_with_header(folder / "val_0.bin", joined(VAL, before=True))
    return {"source": str(folder / "train_*.bin"), "val_source": str(val)}


def datatrove(folder: Path, dtype: str = "<u2") -> dict[str, Any]:
    for split, lines in (("train", LINES), ("val", VAL)):
        (folder / split).mkdir()
        for number, part in enumerate((lines[:2], lines[2:])):
            write_indexed(folder / split / f"0000{number}_unshuffled.ds", [[*ids, E] for ids in bytes_of(part)], dtype)
        (folder / split / "00002_unshuffled.ds").touch()  # of a task without documents
        (folder / split / "00002_unshuffled.ds.index").touch()
    return {"source": str(folder / "train"), "val_source": [str(folder / "val" / "*.ds")]}


FORMATS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nanogpt": nanogpt,
    "llm_c": llm_c,
    "datatrove": datatrove,
    "datatrove_32": lambda folder: datatrove(folder, "<u4"),
}


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., TextDataModule]:
    """The same text prepared here."""

    def make(**options: Any) -> TextDataModule:
        (tmp_path / "own.txt").write_text("\n".join(LINES))
        (tmp_path / "own_val.txt").write_text("\n".join(VAL))
        sources = {"source": str(tmp_path / "own.txt"), "val_source": str(tmp_path / "own_val.txt")}
        return BPEDataModule(**sources, documents="line", tokenizer="byte", **options)

    return make


def ready(data: TextDataModule) -> TextDataModule:
    data.prepare_data()
    data.setup()
    return data


def all_batches(data: TextDataModule) -> Iterator[dict[str, torch.Tensor]]:
    for loader in (data.train_dataloader(), *data.val_dataloader()):
        yield from loader


def assert_equal(theirs: TextDataModule, ours: TextDataModule) -> None:
    for split, store in ours.stores.items():
        assert np.array_equal(theirs.stores[split].tokens[:], store.tokens)
        assert np.array_equal(theirs.stores[split].starts, store.starts)
        assert theirs.stores[split].counts == store.counts
        assert theirs.scored_text(split) == ours.scored_text(split)
    assert theirs.text_facts.baselines == ours.text_facts.baselines
    for one, other in zip(all_batches(theirs), all_batches(ours), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("rows", ["windows", "packed"])
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_tokens_of_other_tools_give_the_batches_of_the_text(tmp_path: Path, own: Any, form: str, rows: str) -> None:
    options = {"rows": rows, "block_size": 16, "tokens_per_step": 64}
    theirs = ready(TokensDataModule(**FORMATS[form](tmp_path), tokenizer="byte", **options))
    assert_equal(theirs, ready(own(**options)))


@pytest.fixture
def shakespeare_char(tmp_path: Path) -> str:
    """The files of nanoGPT's data/shakespeare_char/prepare.py, of a text of our own."""
    text = "\n".join(LINES * 8)
    chars = sorted(set(text))
    ids = {character: i for i, character in enumerate(chars)}
    cut = int(len(text) * 0.9)
    write_plain(tmp_path / "train.bin", [ids[character] for character in text[:cut]])
    write_plain(tmp_path / "val.bin", [ids[character] for character in text[cut:]])
    write_plain(tmp_path / "all.bin", [ids[character] for character in text])
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": ids}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    (tmp_path / "text.txt").write_text(text)
    return str(tmp_path)


@pytest.mark.parametrize("from_two_files", [True, False])
def test_characters_of_nanogpt_are_those_of_the_text(shakespeare_char: str, from_two_files: bool) -> None:
    folder, options = shakespeare_char, {"block_size": 16, "tokens_per_step": 64}
    sources = (f"{folder}/train.bin", f"{folder}/val.bin") if from_two_files else (f"{folder}/all.bin",)
    theirs = TokensDataModule(*sources, tokenizer=f"{folder}/meta.pkl", **options)  # type: ignore[arg-type]
    assert_equal(ready(theirs), ready(CharDataModule(f"{folder}/text.txt", **options)))  # type: ignore[arg-type]


def trained(data: TextDataModule) -> list[float]:
    """The loss of the validation split after ten steps."""
    seed_everything(1)
    config = GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16)
    trainer = Trainer(
        max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, val_check_interval=10, check_val_every_n_epoch=None, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(LitGPT(config), datamodule=data)
    return [float(trainer.callback_metrics[name]) for name in ("val/loss", "val/bpb", "train_eval/loss")]


@pytest.mark.parametrize("form", ["nanogpt", "datatrove"])
def test_a_run_on_them_has_the_losses_of_a_run_on_the_text(tmp_path: Path, own: Any, form: str) -> None:
    theirs = trained(TokensDataModule(**FORMATS[form](tmp_path), tokenizer="byte", tokens_per_step=64))
    assert theirs == trained(own(tokens_per_step=64))


def test_the_boundaries_of_an_index_count_even_where_a_text_names_the_eos_token(tmp_path: Path) -> None:
    source = write_indexed(tmp_path / "a.ds", [[1, 2, E, 3, E], [4, E]])
    store = ready(TokensDataModule(str(source), tokenizer="byte", block_size=4, val_fraction=0.0)).stores["train"]
    assert store.tokens[:].tolist() == [E, 1, 2, E, 3, E, 4, E]
    assert store.starts.tolist() == [0, 5, 7]
    assert store.counts.bytes == 4 + len("<|endoftext|>")


def test_documents_without_eos_tokens_are_windows_only(tmp_path: Path) -> None:
    source = str(write_indexed(tmp_path / "a.ds", [[1, 2, 3], [4, 5]]))
    options = {"tokenizer": "byte", "block_size": 4, "val_fraction": 0.0}
    store = ready(TokensDataModule(source, **options)).stores["train"]
    assert (store.tokens.tolist(), store.starts.tolist(), store.eos_id) == ([1, 2, 3, 4, 5], [0, 3, 5], None)
    with pytest.raises(UserError, match="these tokens have none between documents; use windows"):
        TokensDataModule(source, rows="packed", **options).setup()


def test_a_part_of_the_tokens_is_the_validation_split(tmp_path: Path) -> None:
    source = str(write_plain(tmp_path / "a.bin", [1, 2, E, 3, 4, 5, 6, E, 7, E]))
    stores = ready(TokensDataModule(source, tokenizer="byte", block_size=2, val_fraction=0.4)).stores
    assert stores["train"].tokens[:].tolist() == [E, 1, 2, E, 3, 4, 5, E]  # a cut document is ended
    assert stores["val"].tokens[:].tolist() == [E, 6, E, 7, E]
    assert (stores["train"].counts.documents, stores["val"].counts.documents) == (2, 2)


def test_the_beginning_of_the_tokens_is_so_many_bytes_of_their_text(tmp_path: Path) -> None:
    parts = [[[1] * 3 + [E], [2] * 2 + [E]], [[3] * 9 + [E], [4, E]]]
    sources = [str(write_indexed(tmp_path / f"{i}.ds", part)) for i, part in enumerate(parts)]
    data = TokensDataModule(sources, tokenizer="byte", block_size=2, val_fraction=0.0, max_bytes=11)
    store = ready(data).stores["train"]
    assert store.tokens[:].tolist() == [E, 1, 1, 1, E, 2, 2, E, 3, 3, 3, 3, E]  # an EOS token counts as a byte
    assert store.starts.tolist() == [0, 4, 7, 12]


def test_the_tokens_are_read_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.bin", [1, 2, E] * 50)
    options = {"tokenizer": "byte", "block_size": 4, "val_fraction": 0.0}

    def fingerprint() -> str:
        return ready(TokensDataModule(str(path), **options)).fingerprints["data"]

    first, stat = fingerprint(), path.stat()
    write_plain(path, [60_000] * 150)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint() == first  # it has not read the ids, of which none is in the vocabulary
    with pytest.raises(UserError, match="holds the id 60,000"):
        TokensDataModule(str(path), **options).prepare_data(verify=True)
    write_plain(path, [1, 3, E] * 50)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match="not those that were checked first"):
        TokensDataModule(str(path), **options).prepare_data(verify=True)
    os.utime(path, ns=(1, 1))
    assert fingerprint() != first


def test_the_fingerprint_is_of_the_tokens_and_not_of_their_names_or_shards(tmp_path: Path) -> None:
    def fingerprint(*parts: list[int]) -> str:
        paths = [str(write_plain(tmp_path / f"{len(parts)}{i}.bin", part)) for i, part in enumerate(parts)]
        return ready(TokensDataModule(paths, tokenizer="byte", block_size=4)).fingerprints["data"]

    assert fingerprint([1, 2, E, 3] * 9) == fingerprint([1, 2, E, 3] * 4, [1, 2, E, 3] * 5)
    assert fingerprint([1, 2, E, 3] * 9) != fingerprint([1, 2, E, 4] * 4, [1, 2, E, 3] * 4, [1, 2, E, 3])


def cut(path: Path, suffix: str = "") -> Path:
    """Takes the last byte off the file, or off another with a longer name."""
    other = Path(f"{path}{suffix}")
    other.write_bytes(other.read_bytes()[:-1])
    return path


def with_index(path: Path, *ends: int) -> Path:
    np.array(ends, "<u8").tofile(f"{path}.index")
    return path


def without(folder: Path, pattern: str) -> Path:
    for path in folder.glob(pattern):
        path.unlink()
    return folder


def merged(folder: Path) -> Path:
    """Two shards that datatrove has merged, with the summary of both."""
    (folder / "ds").mkdir()
    for name in ("000_x.ds", "001_x.ds"):
        write_indexed(folder / "ds" / name, [[1, E], [2, 3, E]])
    (folder / "ds" / "x.ds.metadata").write_text("byte|2\n10\n10 T")
    return folder / "ds"


def shard(folder: Path) -> Path:
    return write_indexed(folder / "a.ds", [[1, 5, E], [4, 3, 2, E]])


def saved(path: Path, ids: Any) -> Path:
    np.save(path, np.asarray(ids, "<u2"))
    return path


def zipped(path: Path, ids: Any) -> Path:
    return written(path, gzip.compress(np.asarray(ids, "<u2").tobytes()))


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def linked(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (lambda f: f / "none.bin", "there is no file or folder .*none.bin': give files of tokens"),
    "a folder": (lambda f: f, "has no .ds files: name the files in it, such as train.bin"),
    "empty": (lambda f: write_plain(f / "a.bin", []), "has no tokens"),
    "cut": (lambda f: cut(write_plain(f / "a.bin", [1, 2])), "a.bin is cut .*: 3 bytes"),
    "header": (lambda f: cut(write_with_header(f / "a.bin", [1, 2])), "its header names 2 tokens"),
    "another tokenizer": (
        lambda f: write_plain(f / "a.bin", [1, 2, 300, E]),
        "a.bin holds the id 300 at token 2, and the tokenizer has 257 ids: give the tokenizer",
    ),
    "32 bits": (lambda f: write_plain(f / "a.bin", [1, 2, 3], "<u4"), "holds ids of 32 or 64 bits, where .* has 16"),
    "64 bits": (lambda f: write_plain(f / "a.bin", [1, 2, 3], "<i8"), "holds ids of 32 or 64 bits, where .* has 16"),
    "no index": (lambda f: without(shard(f).parent, "*.index") / "a.ds", "a.ds has no a.ds.index beside it"),
    "cut shard": (lambda f: cut(shard(f)), "a.ds is cut, .*: it has 13 bytes, and its documents end at token 7"),
    "beyond the end": (lambda f: with_index(shard(f), 2, 9), "a.ds.index is not its own: .* end at token 9"),
    "index in disorder": (lambda f: with_index(shard(f), 4, 2, 7), "a.ds.index is damaged: its numbers do not incr"),
    "cut index": (lambda f: cut(shard(f), ".index"), "a.ds.index is cut: 15 bytes are no whole number of 8"),
    "mixed": (lambda f: with_index(shard(f), 3, 5, 7), "some documents of .*a.ds end with .* and others do not"),
    "missing shard": (lambda f: without(merged(f), "001_x.ds"), "001_x.ds is missing, and 001_x.ds.index is there"),
    "missing shard and index": (
        lambda f: without(merged(f), "001*"),
        "x.ds.metadata counts 10 tokens, and its 1 shards hold 5: one is missing",
    ),
    "two formats": (lambda f: [str(shard(f)), str(write_plain(f / "a.bin", [1, E]))], "is of another format than"),
    "numpy's": (lambda f: saved(f / "a.npy", [1, E] * 9), r"a\.npy is in numpy's \.npy format, and not ids alone: wr"),
    "zipped": (lambda f: zipped(f / "a.bin", [1, E] * 9), r"a\.bin is in gzip format"),
    "text": (
        lambda f: written(f / "a.bin", "Words, and more of them. " * 20),
        r"a\.bin is text and not tokens: give it",
    ),
    "other text": (lambda f: written(f / "a.bin", "é日本 " * 1200), r"a\.bin is text and not tokens"),
    "linked": (
        lambda f: [str(write_plain(f / "a.bin", [1, E])), str(linked(f / "b.bin", f / "a.bin"))],
        "a.bin twice: give each file once",
    ),
    "twice": (lambda f: [str(write_plain(f / "a.bin", [1, E]))] * 2, "a.bin twice"),
}


def test_ids_that_look_like_a_little_text_are_tokens(tmp_path: Path) -> None:
    pairs = [ord(a) + 256 * ord(b) for a, b in ("ab", "Th", "e ", ", ")]
    for ids in (pairs * 20, [*pairs * 200, 7]):  # too few to tell, and one that is none
        data = TokensDataModule(str(write_plain(tmp_path / "a.bin", ids)), tokenizer="byte", val_fraction=0.0)
        assert data.recipe().source.count == len(ids)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_is_named_in_one_sentence_and_leaves_nothing(tmp_path: Path, own_cache: Path, fault: str) -> None:
    make, message = FAULTS[fault]
    source = make(tmp_path)
    data = TokensDataModule(
        source if isinstance(source, list) else str(source), tokenizer="byte", block_size=2, val_fraction=0.0
    )
    with pytest.raises(UserError, match=message) as error:
        data.prepare_data()
    assert "\n" not in str(error.value)
    assert not [path for path in (own_cache / "lit_gpt").glob("*") if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set --data.source to files such as train.bin"),
        ({"source": "a.bin"}, "set --data.tokenizer to the tokenizer"),
        ({"source": "a.bin", "val_source": "a.bin", "tokenizer": "byte"}, "the val_source has .*a.bin, and so has"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_plain(tmp_path / "a.bin", [1, E] * 9)
    with pytest.raises(UserError, match=message):
        TokensDataModule(**options).prepare_data()


class _RunsCode:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    "meta", [_RunsCode(), {"itos": {0: "b", 1: "a"}}, {"itos": {0: "a", 2: "b"}}, [1], {"itos": {0: 5}}]
)
def test_a_meta_file_is_refused_unless_it_is_plain_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meta: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    write_plain(tmp_path / "a.bin", [0, 1])
    with pytest.raises(UserError, match=r"meta.pkl (is no meta.pkl|has characters in another order)"):
        TokensDataModule("a.bin", tokenizer="meta.pkl").prepare_data()
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow  # needs datatrove, which the project does not install
@pytest.mark.filterwarnings("ignore")
def test_a_run_of_datatrove_itself_gives_the_batches_of_the_text(tmp_path: Path, own: Any) -> None:
    executor = pytest.importorskip("datatrove.executor")
    readers, tokens = (pytest.importorskip(f"datatrove.pipeline.{name}") for name in ("readers", "tokens"))
    (tmp_path / "byte.json").write_text(json.dumps(to_huggingface(ByteTokenizer(eos=True))))
    for split, lines in (("train", LINES), ("val", VAL)):
        (tmp_path / f"{split}_text").mkdir()
        for number, part in enumerate((lines[:2], lines[2:])):
            rows = "".join(json.dumps({"text": line, "id": "x"}) + "\n" for line in part)
            (tmp_path / f"{split}_text" / f"{number}.jsonl").write_text(rows)
        tokenizer = tokens.DocumentTokenizer(
            str(tmp_path / split), str(tmp_path / "byte.json"), eos_token="<|endoftext|>", shuffle_documents=False
        )
        pipeline = [readers.JsonlReader(str(tmp_path / f"{split}_text")), tokenizer]
        executor.LocalPipelineExecutor(pipeline, tasks=2, workers=1, logging_dir=str(tmp_path / "logs" / split)).run()
    sources = {"source": str(tmp_path / "train"), "val_source": str(tmp_path / "val")}
    options: dict[str, Any] = {"rows": "packed", "block_size": 16, "tokens_per_step": 64}
    assert_equal(ready(TokensDataModule(**sources, tokenizer="byte", **options)), ready(own(**options)))
    del options["block_size"]
    assert trained(TokensDataModule(**sources, tokenizer="byte", **options)) == trained(own(**options))
