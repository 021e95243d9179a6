"""`python -m lit_gpt generate`: write text with a checkpoint."""

import sys
from contextlib import suppress
from typing import Any

import torch

from datamodules.errors import UserError
from lit_gpt.checkpoint import load
from lit_gpt.generate import TextModel


def generate(
    ckpt_path: str,
    prompt: str = "",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: list[str] | str = [],  # noqa: B006 (read only; a list comes first, so that a list in YAML is one)
    new_document: bool = False,
    num_samples: int = 1,
    seed: int | None = None,
    device: str = "auto",
    model: str | None = None,
) -> None:
    """Continue a text, and print it token by token.

    Args:
        ckpt_path: A checkpoint that fit saved, or a run's folder, for its best.ckpt. Nothing else is needed.
        prompt: Beginning of the text; - reads it from standard input. Without a prompt, a terminal asks for one text
            after another (Ctrl-D ends). If there is no terminal, the text starts without a prompt.
        max_new_tokens: Maximum number of tokens to write. The EOS token ends the text earlier.
        temperature: Below 1 the likely tokens become likelier, above 1 less likely; 0 always takes the likeliest token.
        top_k: Draw from the k likeliest tokens only.
        top_p: Draw from the fewest tokens, likeliest first, that together have this probability.
        min_p: Draw from tokens with at least this fraction of the likeliest token's probability.
        stop: A text that ends the sample, or several as a list; it is not printed.
        new_document: Put the EOS token before the prompt, as at the start of a document: for models of titles and
            messages.
        num_samples: Number of continuations of each prompt. Several are printed when all are complete.
        seed: Makes the text repeatable on the same machine.
        device: The device to run on, such as cpu or cuda:1; auto takes a GPU if there is one.
        model: The LightningModule that was trained, if it is a class of your own, such as mine.LitGRU.
    """
    text_model = load(ckpt_path, usable_device(device), model)
    options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "stop": stop,
        "new_document": new_document,
        "seed": seed,
    }
    if not prompt and sys.stdin.isatty():
        _prompt_loop(text_model, num_samples, options)
    else:
        _print_samples(text_model, _prompt(prompt), num_samples, options)


def usable_device(name: str) -> str:
    """The device of an option; ``auto`` takes a GPU if there is one. One that cannot be used is a UserError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # the meta device computes, but has no values to read
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"device {name!r} cannot be used here: try --device cpu.") from error
    return name


def _prompt(prompt: str) -> str:
    try:
        return sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 ({error.reason} at byte {error.start}): convert it.") from None


def _print_samples(model: TextModel, prompt: str, num_samples: int, options: dict[str, Any]) -> None:
    """Print the prompt with its continuation: one token by token, several with a line of dashes between them."""
    if num_samples != 1:
        print("\n-----\n".join(prompt + text for text in model.generate(prompt, num_samples=num_samples, **options)))
        return
    for i, piece in enumerate(model.stream(prompt, **options)):
        print(piece if i else prompt + piece, end="", flush=True)
    print()


def _prompt_loop(model: TextModel, num_samples: int, options: dict[str, Any]) -> None:
    """Continue each line that is typed, until Ctrl-D. A prompt that cannot be encoded prints its error message."""
    with suppress(ImportError):  # not on every system
        import readline  # noqa: F401 (input then edits the line and remembers earlier ones)
    print("Type the beginning of a text and press Enter; Ctrl-D ends.")
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        try:
            _print_samples(model, prompt, num_samples, options)
        except UserError as error:
            print(error)
