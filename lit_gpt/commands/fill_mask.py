"""`python -m lit_gpt fill-mask`: name the likeliest tokens for each [MASK] of a text."""

from datamodules.errors import check_at_least
from lit_gpt.bert.filling import MASK, check_text, load
from lit_gpt.commands.generate import usable_device


def fill_mask(ckpt_path: str, text: str, top_k: int = 5, device: str = "auto", model: str | None = None) -> None:
    """Print the likeliest tokens for each [MASK] of a text, with their probabilities.

    A token that begins with ## continues the word before it. Several masks are filled each on its own, with the others
    still masked.

    Args:
        ckpt_path: A checkpoint of a BERT that fit or import saved, or a run's folder, for its best.ckpt. Nothing else
            is needed.
        text: The text, such as "The capital of France is [MASK]."
        top_k: How many tokens to print for each mask.
        device: The device to run on, such as cpu or cuda:1; auto takes a GPU if there is one.
        model: The LightningModule that was trained, if it is a class of your own, such as mine.LitEncoder.
    """
    check_text(text)
    check_at_least(1, "top_k", top_k)
    found = load(ckpt_path, usable_device(device), model).fill(text, top_k)
    for number, best in enumerate(found, 1):
        if len(found) > 1:
            print(f"{MASK} {number} of {len(found)}")
        width = max(len(token) for token, _ in best)
        for token, probability in best:
            print(f"  {token:<{width}}  {probability:.4f}")
