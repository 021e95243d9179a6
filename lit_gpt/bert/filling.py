"""Fills the [MASK]s of a text with a trained BERT.

filler = lit_gpt.bert.load("best.ckpt")
filler.fill("The capital of France is [MASK].")[0]  # [("paris", 0.42), ("lille", 0.07), ...]
"""

from pathlib import Path
from typing import Any

import torch

from datamodules.errors import UserError, check_at_least
from lit_gpt.bert.model import Bert
from lit_gpt.checkpoint import load_network

MASK = "[MASK]"


class MaskFiller:
    """A BERT and its tokenizer: text with [MASK]s in, the likeliest tokens at each of them out."""

    def __init__(self, net: Bert, tokenizer: Any) -> None:
        """Neither is copied."""
        self.net = net
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def fill(self, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """The likeliest tokens and their probabilities for each [MASK] of ``text``, in their order.

        Several masks are filled each on its own, with the others still masked.

        Raises:
            UserError: The text has no [MASK], or is longer than the network's block_size.
        """
        check_text(text)
        check_at_least(1, "top_k", top_k)
        ids = self._ids(text)  # (T,)
        hidden = self.net.hidden(ids[None])[0, ids == self.tokenizer.mask_id]  # (masks, C)
        probabilities = self.net.head(hidden).float().softmax(-1)  # (masks, V)
        V = self.tokenizer.vocab_size  # the network may know more ids
        best = probabilities[:, :V].topk(min(top_k, V))
        return [
            [(self.tokenizer.token_text(i), p) for i, p in zip(tokens, probabilities, strict=True)]
            for tokens, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _ids(self, text: str) -> torch.Tensor:
        tokenizer, longest = self.tokenizer, self.net.config.block_size
        first, *others = [tokenizer.encode(part) for part in text.split(MASK)]
        ids = [tokenizer.cls_id, *first, *(i for part in others for i in (tokenizer.mask_id, *part)), tokenizer.sep_id]
        if len(ids) > longest:
            raise UserError(
                f"the text has {len(ids)} tokens with [CLS] and [SEP], and the network reads {longest}: give a shorter "
                "one."
            )
        return torch.tensor(ids, device=self.net.wte.weight.device)


def check_text(text: str) -> None:
    """Refuse a text without a mask, before a checkpoint is read."""
    if MASK not in text:
        raise UserError(f"the text has no {MASK}: write {MASK} in the place of each token that is to be filled in.")


def load(path: str | Path, device: str = "cpu", model: str | type | None = None) -> MaskFiller:
    """Load a checkpoint for filling masks. Arguments are those of `lit_gpt.load`.

    Raises:
        UserError: The file cannot be used, or its network is no encoder.
    """
    net, tokenizer = load_network(path, device, model)
    if net.causal:
        raise UserError(
            f"checkpoint {str(path)!r} is of a {type(net).__name__}, which continues a text and fills no {MASK}: use "
            "python -m lit_gpt generate."
        )
    if getattr(tokenizer, "mask_id", None) is None:
        raise UserError(f"the tokenizer of {str(path)!r} has no {MASK}: fill-mask needs a WordPiece vocabulary.")
    return MaskFiller(net, tokenizer)  # type: ignore[arg-type]
