"""A checkpoint that is whole, and whose run cannot be restored all the same: its state is not what a run writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

from datamodules.errors import UserError
from lit_gpt.bounds import is_out_of_memory

#: Where a state is put back: Lightning's functions that begin so, and ours that comes after them.
LIGHTNINGS = "lightning.pytorch.trainer.connectors.checkpoint_connector"
BEGINNINGS = ("restore", "resume", "_restore")
OURS = ("lit_gpt.callbacks.resume", "set_random_state")


@contextmanager
def restoring(path: str | None) -> Iterator[None]:
    """Turns what goes wrong while a run's state is put back into one sentence.

    Args:
        path: The checkpoint.

    Raises:
        UserError: It holds a state that no run wrote.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # wrong values end in errors of every kind
        if isinstance(error, OSError) or is_out_of_memory(error) or not _is_in_restoring(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise UserError(
            f"checkpoint {path!r} holds a state that no run of this version wrote ({reason}): give a file that `fit` "
            "saved, or start a new run from its weights with --model.init_from."
        ) from error


def _is_in_restoring(error: Exception) -> bool:
    codes = [(frame.f_globals.get("__name__"), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)]
    return any(code == OURS or (code[0] == LIGHTNINGS and code[1].startswith(BEGINNINGS)) for code in codes)
