"""Reports a checkpoint that is intact but holds a state that no run writes, so that its run cannot be restored."""

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

from datamodules.errors import UserError
from lit_gpt.bounds import is_out_of_memory

#: The functions that restore a state: those of this Lightning module with these prefixes, and one of our own.
LIGHTNING_MODULE = "lightning.pytorch.trainer.connectors.checkpoint_connector"
LIGHTNING_PREFIXES = ("restore", "resume", "_restore")
OWN_FUNCTION = ("lit_gpt.callbacks.resume", "set_random_state")


@contextmanager
def restoring(path: str | None) -> Iterator[None]:
    """Turns an error during the restoring of a run's state into a UserError.

    Args:
        path: The checkpoint that is restored.

    Raises:
        UserError: It holds a state that no run wrote.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # wrong values raise errors of many kinds
        if isinstance(error, OSError) or is_out_of_memory(error) or not _is_in_restoring(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise UserError(
            f"checkpoint {path!r} holds a state that no run of this version wrote ({reason}): give a file that `fit` "
            "saved, or start a new run from its weights with --model.init_from."
        ) from error


def _is_in_restoring(error: Exception) -> bool:
    codes = [(frame.f_globals.get("__name__"), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)]
    return any(
        code == OWN_FUNCTION or (code[0] == LIGHTNING_MODULE and code[1].startswith(LIGHTNING_PREFIXES))
        for code in codes
    )
