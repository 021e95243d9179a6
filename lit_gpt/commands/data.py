"""``data``: prints statistics of a configuration's corpus, and its first training batches."""

from collections.abc import Iterable, Iterator
from textwrap import wrap

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from datamodules import TextDataModule
from datamodules.batches import Batch
from datamodules.corpus_stats import document_lengths, overlap, token_counts
from datamodules.errors import UserError, check_at_least
from datamodules.prepare import Share
from datamodules.rows import IGNORE_INDEX
from datamodules.tokenizers import Tokenizer
from datamodules.tokens import TokenStore, read_meta
from lit_gpt.cli.arguments import with_packaged_configs
from lit_gpt.cli.lightning_cli import LitCLI
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.protocols import check_batch, with_defaults

_BATCHES_FOR_PADDING = 50
COLUMNS = 80


class DataCLI(LitCLI):
    """The command line of ``fit``. Only its data and the model's block size are used."""

    typed_verb = "data"

    def __init__(self, arguments: list[str]) -> None:
        super().__init__("fit", arguments)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the verb."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--batches", type=int, default=1, help="Number of training batches to print.")
        parser.add_argument("--rows", type=int, default=3, help="Number of rows to print of each.")
        parser.add_argument(
            "--verify",
            action="store_true",
            help="Compare all tokens in the cache with their checksums, and prepare damaged ones again.",
        )
        parser.add_argument("--prepare", action="store_true", help="Prepare the tokens, and print nothing of them.")
        parser.add_argument(
            "--shard",
            type=str,
            default=None,
            help="With --prepare, this machine's share of the work: 1/8 to 8/8 on eight machines with one cache_dir. "
            "The last to end makes the store. Default: all of the work.",
        )

    def _parse_ckpt_path(self) -> None:
        """Nothing: there is no run to resume and no run folder to create."""

    def instantiate_classes(self) -> None:
        """Instantiates the configuration without a Trainer."""
        self.config_init = self.instantiated()

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config_init[subcommand]
        data, model = config.data, config.model
        check_at_least(0, "batches", config.batches)
        check_at_least(1, "rows", config.rows)
        if config.shard is not None and not config.prepare:
            raise UserError(f"--shard {config.shard} is a share of a preparation: give --prepare too.")
        if config.prepare:
            prepare_only(data, config.shard)
            return
        if isinstance(data, TextDataModule):
            block_size = model.config.block_size if isinstance(model, LitLanguageModel) else None
            data.block_size = data.block_size or block_size
            data.prepare_data(config.verify)
        else:
            data.prepare_data()
        data.setup("fit")
        if config.verify and isinstance(data, TextDataModule):
            print("the cache of this text is checked: every file has its checksum")
        show(data, config.batches, config.rows)


def main(arguments: list[str]) -> None:
    """Run the verb with its command line."""
    DataCLI(with_packaged_configs(arguments))


def prepare_only(data: LightningDataModule, shard: str | None) -> None:
    """Prepares the tokens of a datamodule, or one machine's share of them, and prints where they are."""
    if not isinstance(data, TextDataModule):
        raise UserError(f"--prepare is for token stores, and {type(data).__name__} has none: leave it out.")
    folder = data.prepare_share(Share(1, 1) if shard is None else Share.parsed(shard))
    if folder is None:
        print(f"shard {shard} is done; the tokens are complete when the other shards are")
        return
    splits = read_meta(folder)["splits"]
    sizes = ", ".join(f"{split} {counts['tokens']:,} tokens" for split, counts in splits.items())
    print(f"the tokens are complete: {folder}\n{sizes}")


def show(module: LightningDataModule, batches: int = 1, rows: int = 3) -> None:
    """Prints statistics of the corpus and the first training batches.

    Args:
        module: a datamodule after ``setup``. If it is no TextDataModule, only batches are printed.
        batches: number of batches to print.
        rows: number of rows to print of each.
    """
    if isinstance(module, TextDataModule):
        print("\n".join(corpus_lines(module)))
    loader, tokenizer = module.train_dataloader(), with_defaults(module).tokenizer
    for number, batch in zip(range(1, batches + 1), loader, strict=False):
        check_batch(batch)
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
        print("\n".join(["", *wrap(f"batch {number} of {len(loader)}: {shapes}", COLUMNS, subsequent_indent="  ")]))
        for row in range(min(rows, len(batch["input_ids"]))):
            print("\n".join(row_lines(batch, row, tokenizer)))


def corpus_lines(module: TextDataModule) -> list[str]:
    """Lines with split sizes, vocabulary use, document lengths, padding, and the overlap of validation and train."""
    stores, tokenizer = module.stores, module.tokenizer
    lines = [f"{'split':<6}{'documents':>11}{'tokens':>14}{'characters':>14}{'bytes':>14}{'bytes/token':>13}"]
    for split, store in stores.items():
        c = store.counts
        per_token = c.bytes / max(c.text_tokens, 1)
        lines.append(f"{split:<6}{c.documents:>11,}{c.tokens:>14,}{c.chars:>14,}{c.bytes:>14,}{per_token:>13.3f}")
    lines += _vocabulary_lines(stores["train"], tokenizer)
    if tokenizer.eos_id is not None:
        low, middle, high, top = np.percentile(document_lengths(stores["train"]), [10, 50, 90, 100])
        lines.append(f"tokens a document: 10 % {low:.0f}, median {middle:.0f}, 90 % {high:.0f}, longest {top:.0f}")
    lines.append(f"padding: {_padding(module):.2%} of the positions of the first training batches")
    if "val" in stores:
        shared = overlap(stores["train"], stores["val"], tokenizer)
        lines.append(f"validation documents also in train: {_percent(shared.documents)}")
        lines.append(f"validation stretches of 50 characters also in train: {_percent(shared.shingles)}")
    return lines


def row_lines(batch: Batch, row: int, tokenizer: Tokenizer | None) -> list[str]:
    """Lines for one row of a batch: inputs and targets as text, then as ids, and the mask.

    Without a tokenizer there are only ids. A batch without a mask has no padding.
    """
    ids, targets = batch["input_ids"][row], batch["targets"][row]
    mask = batch["attention_mask"][row] if "attention_mask" in batch else torch.ones_like(ids, dtype=torch.bool)
    spans = _spans(batch["document_ids"][row]) if "document_ids" in batch else []
    scored = int((targets != IGNORE_INDEX).sum())
    return [
        f"  row {row}: {int(mask.sum())} tokens, {scored} scored",
        *(_wrapped("    documents ", (f"{span} " for span in spans), 14) if spans else ()),
        *([] if tokenizer is None else _text_lines(ids[mask], targets[mask], tokenizer)),
        *_wrapped("    ids", [f"{i} " for i in ids.tolist()]),
        *_wrapped("    targets", [f"{i} " for i in targets.tolist()]),
        *_wrapped("    mask", ["#" if real else "." for real in mask.tolist()]),
        *_pair_lines(batch, row),
    ]


def _pair_lines(batch: Batch, row: int) -> Iterator[str]:
    """Lines for what the rows of a masked language model have besides: token types and the label of a pair."""
    if "token_type_ids" in batch:
        yield from _wrapped("    types", map(str, batch["token_type_ids"][row].tolist()))
    if "next_sentence_label" in batch:
        label = int(batch["next_sentence_label"][row])
        meaning = {0: "0: the second sentence follows", 1: "1: the second sentence is random"}
        yield f"    label   {meaning.get(label, f'{label}: none')}"


def _wrapped(start: str, parts: Iterable[str], indent: int = 12) -> Iterator[str]:
    """Parts of a text one after another after its start, in lines of 80 columns. No part is cut in two."""
    line = start.ljust(indent)
    for part in parts:
        if len(line) + len(part.rstrip()) > COLUMNS and line.strip():
            yield line.rstrip()
            line = " " * indent
        line += part
    yield line.rstrip()


def _text_lines(ids: torch.Tensor, targets: torch.Tensor, tokenizer: Tokenizer) -> list[str]:
    between = "" if all(len(tokenizer.token_bytes(i)) == 1 for i in ids[:32].tolist()) else "|"
    texts = [tokenizer.token_text(i) for i in ids.tolist()], [_target(i, tokenizer) for i in targets.tolist()]
    lines = zip(("    input", "    target"), texts, strict=True)
    return [line for start, of in lines for line in _wrapped(start, [*(t + between for t in of[:-1]), *of[-1:]])]


def _target(i: int, tokenizer: Tokenizer) -> str:
    return "·" if i == IGNORE_INDEX else tokenizer.token_text(i)


def _vocabulary_lines(train: TokenStore, tokenizer: Tokenizer) -> list[str]:
    counts = token_counts(train, tokenizer.vocab_size)
    top = np.argsort(-counts, kind="stable")[:12]
    used = int((counts > 0).sum())
    frequent = (f"{tokenizer.token_text(int(i))!r} {counts[i] / counts.sum():.1%}  " for i in top if counts[i])
    lines = [f"vocabulary: {used:,} of {tokenizer.vocab_size:,} ids occur in train"]
    return lines + list(_wrapped("most frequent: ", frequent, 15))


def _padding(module: TextDataModule) -> float:
    loader = module.train_dataloader()
    shares = [
        batch["attention_mask"].float().mean() for _, batch in zip(range(_BATCHES_FOR_PADDING), loader, strict=False)
    ]
    return 1 - float(torch.stack(shares).mean())


def _percent(value: float | None) -> str:
    return "nothing to compare" if value is None else f"{value:.2%}"


def _spans(document_ids: torch.Tensor) -> list[str]:
    """Number and length of each document of a row."""
    numbers, lengths = torch.unique_consecutive(document_ids[document_ids >= 0], return_counts=True)
    return [f"{number}:{length}" for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True)]
