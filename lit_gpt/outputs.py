"""Protects the user's files: a verb may overwrite only an earlier output of its own kind."""

from collections.abc import Callable, Container
from pathlib import Path

from datamodules.errors import UserError


def check_output(
    option: str, path: str | Path, kind: str, is_ours: Callable[[Path], bool], inputs: Container[Path] = ()
) -> None:
    """Refuse to overwrite a file that the verb reads, or one that is no earlier output of the same kind.

    Args:
        option: The option that names the file, such as ``--out``.
        path: Where to write.
        kind: What is written there, such as "tokenizer".
        is_ours: Whether lit_gpt wrote a file as such an output.
        inputs: Files, with links resolved, that the verb reads.

    Raises:
        UserError: The file must not be overwritten.
    """
    path = Path(path)
    if not path.exists():
        return
    if path.resolve() in inputs:
        raise UserError(f"{option} {path} is what is read, and would be replaced: choose another name.")
    nothing_to_lose = path.is_file() and path.stat().st_size == 0
    if not nothing_to_lose and not (path.is_file() and is_ours(path)):
        raise UserError(
            f"{option} {path} is there already and is no {kind} that lit_gpt wrote: choose another name, or delete it "
            "first."
        )
