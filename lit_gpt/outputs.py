"""Files that a verb writes by a name of the user's: never in the place of something else of theirs."""

from collections.abc import Callable, Container
from pathlib import Path

from datamodules.errors import UserError


def check_output(
    option: str, path: str | Path, kind: str, ours: Callable[[Path], bool], inputs: Container[Path] = ()
) -> None:
    """Refuse to write over what the verb reads, and over anything but an earlier output of the same kind.

    Args:
        option: What the user typed, such as ``--out``.
        path: Where to write.
        kind: What is written there, such as "tokenizer".
        ours: Whether a file is such a thing that lit_gpt wrote.
        inputs: Files, with links resolved, that the verb reads.

    Raises:
        UserError: Names the option and the file.
    """
    path = Path(path)
    if not path.exists():
        return
    if path.resolve() in inputs:
        raise UserError(f"{option} {path} is what is read, and would be replaced: choose another name.")
    nothing_to_lose = path.is_file() and path.stat().st_size == 0
    if not nothing_to_lose and not (path.is_file() and ours(path)):
        raise UserError(
            f"{option} {path} is there already and is no {kind} that lit_gpt wrote: choose another name, or delete it "
            "first."
        )
