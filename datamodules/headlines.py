"""The datamodule for many short documents: titles or messages, one in each line or row of a table."""

from typing import Any, Literal

from datamodules.cutting import RowKind
from datamodules.errors import UserError
from datamodules.prepare import Recipe
from datamodules.sources import Documents
from datamodules.splitting import Split
from datamodules.subword import SubwordDataModule

#: The characters that the headline challenge counts for an EOS token, which it writes as ``<eos>``.
EOS_CHARS = 5


class HeadlinesDataModule(SubwordDataModule):
    """Short documents. Each is whole in one split, and rows pack several, with attention inside each document only.

    Args:
        source: a file, folder or glob, the name of a download or of a data set of the hub, or a list; None is
            ``embedded_headlines``, 10,000 synthetic headlines.
        deduplicate: whether only the first of equal documents is kept. This happens before the split, and not to
            ``val_source`` and ``test_source``.
        split: ``order`` takes the last documents for validation, ``shuffle`` a random choice.
        split_seed: decides the random choice; ``seed`` does not.
        val_fraction: share of the documents to validate on.
        test_fraction: share of the documents to test on, after the validation part.
        val_documents: number of documents to validate on, instead of a share.
        test_documents: number of documents to test on, instead of a share.
        challenge_metrics: whether to log the headline challenge's ``challenge_loss``, nats per character where an EOS
            token counts as 5 characters, over every token; and ``challenge_coverage``, the share of the tokens that
            the challenge's own metric scores.
        **options: the options of `SubwordDataModule`; by default a document is a line.
    """

    default_rows: RowKind = "packed"
    default_documents: Documents = "line"

    def __init__(
        self,
        source: str | list[str] | None = None,
        deduplicate: bool = False,
        split: Literal["order", "shuffle"] = "order",
        split_seed: int = 1337,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        val_documents: int | None = None,
        test_documents: int | None = None,
        challenge_metrics: bool = False,
        **options: Any,
    ) -> None:
        super().__init__("embedded_headlines" if source is None else source, **options)
        self.challenge_metrics = challenge_metrics
        self.split = Split(
            by="documents",
            val=_held_out("val", self.val_source, val_fraction, val_documents),
            test=_held_out("test", self.test_source, test_fraction, test_documents),
            shuffle=split_seed if split == "shuffle" else None,
            deduplicate=deduplicate,
        )

    def recipe(self) -> Recipe:
        """The documents, each whole in one split."""
        source, val, test = self.opened_sources()
        return Recipe(source, self.chosen_tokenizer(), self.split, val, test)

    def extra_metrics(self, split: str, nats: float) -> dict[str, float]:
        """The two metrics of ``challenge_metrics``, of the validation and test split, where asked for.

        The challenge's own figure is not among them: it is a sum over some tokens alone, which are not as hard as the
        others on average.
        """
        text = self.scored_text(split) if self.challenge_metrics and split != "train_eval" else None
        if text is None:
            return {}
        chars = text.chars + (EOS_CHARS - 1) * text.eos_tokens  # text.chars holds one newline for each EOS token
        step, tokens = self._rows_per_step() * self._size, len(self.stores[split])
        return {"challenge_loss": nats / chars, "challenge_coverage": challenge_coverage(tokens, step)}


def challenge_coverage(tokens: int, step: int) -> float:
    """The share of a split that the original convention of the headline challenge scores.

    The convention scores whole batches only. Each batch begins one token behind the end of the last, and the rest of
    the split is left out. With a batch larger than the split that is everything.

    Args:
        tokens: number of tokens of the split.
        step: targets of a batch.
    """
    return tokens // (step + 1) * step / tokens


def _held_out(split: str, source: str | list[str] | None, fraction: float, documents: int | None) -> float | int:
    """The part of the source that a split takes: nothing if it has a source of its own."""
    if source is not None and documents is not None:
        raise UserError(f"{split}_source and {split}_documents={documents} contradict each other: give one of them.")
    if source is not None:
        return 0
    if documents is None and fraction is None:
        raise UserError(f"{split}_fraction is null: leave it out, or give 0 to 1.")
    return float(fraction) if documents is None else documents
