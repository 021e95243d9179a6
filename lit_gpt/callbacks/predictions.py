"""``predict`` writes the cross-entropy, rank and probability of every token as JSON, one document a line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.errors import UserError
from datamodules.files import expanded, write_atomically
from lit_gpt.callbacks.run_folder import folder_of
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.outputs import check_output
from lit_gpt.protocols import data_of


class WritePredictions(Callback):
    """Writes JSON lines: ``{"document": 0, "nats": 12.3, "tokens": [{"token": "T", "id": 9, "nats": 2.1, "rank": 3,
    "probability": 0.12}, ...]}``.

    Without ``document`` in the batches, each row is a document. Without a tokenizer there is no ``token``, only its
    ``id``.

    Args:
        path: The file that `predict` writes; null is predictions.jsonl in the folder of the checkpoint's run. Rank 0 is
            the model's first choice.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = expanded(path) if path else Path("predictions.jsonl")
        self._in_run = path is None
        self._documents: dict[int, list[dict[str, Any]]] = {}
        self._rows = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse several processes, among which documents would be divided, and a file that is no earlier output."""
        if trainer.world_size > 1:
            raise UserError("predict writes one file from one process: give --trainer.devices 1.")
        if self._in_run and trainer.ckpt_path:
            checkpoint = Path(trainer.ckpt_path)
            self.path = (folder_of(checkpoint) or checkpoint.parent) / self.path.name
        check_output("--predictions.path", self.path, "predictions", _is_ours)
        self._documents, self._rows = {}, 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the scored tokens of each row under its document."""
        tokenizer = data_of(trainer).tokenizer
        outputs = {name: values.cpu() for name, values in outputs.items()}
        scored = outputs["targets"] != IGNORE_INDEX
        numbers = torch.arange(self._rows, self._rows + len(scored))
        self._rows += len(scored)
        for row, document in enumerate(outputs.get("document", numbers).tolist()):
            keep = scored[row]
            columns = [outputs[name][row][keep].tolist() for name in ("targets", "nats", "rank")]
            tokens = [_token(tokenizer, *values) for values in zip(*columns, strict=True)]
            if tokens:
                self._documents.setdefault(document, []).extend(tokens)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, in one go."""
        write_atomically(self.path, lambda file: file.writelines(self._lines()))
        scored = sum(map(len, self._documents.values()))
        path = self.path.relative_to(Path.cwd()) if self.path.is_relative_to(Path.cwd()) else self.path
        documents = f"{len(self._documents)} document{'s' * (len(self._documents) != 1)}"
        print(f"wrote {documents}, {scored} tokens to {path}")

    def _lines(self) -> Iterator[bytes]:
        return (_line(document, tokens) for document, tokens in sorted(self._documents.items()))


def _is_ours(path: Path) -> bool:
    """Whether a file is an earlier output: it begins like a `_line`."""
    with path.open("rb") as file:
        return re.match(rb'\{"document": \d+, "nats": [^,]+, "tokens": \[', file.read(100)) is not None


def _token(tokenizer: Any, token: int, nats: float, rank: int) -> dict[str, Any]:
    probability = float(torch.exp(-Tensor([nats])))
    text = {} if tokenizer is None else {"token": tokenizer.token_text(token)}
    return {
        **text,
        "id": token,
        "nats": round(nats, 5),
        "rank": rank,
        "probability": round(probability, 6),
    }


def _line(document: int, tokens: list[dict[str, Any]]) -> bytes:
    nats = round(sum(t["nats"] for t in tokens), 4)
    return (json.dumps({"document": document, "nats": nats, "tokens": tokens}, ensure_ascii=False) + "\n").encode()
