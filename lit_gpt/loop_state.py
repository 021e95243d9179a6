"""Corrects Lightning's epoch counters in a checkpoint that is saved when training has stopped."""

from typing import Any

from lightning.pytorch import Trainer


def undo_epoch_end(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Set Lightning's counters back to the end of the last batch, if they count its epoch as done.

    Lightning counts the epoch as done whenever training stops, also in the middle of one. A longer run that resumed
    from such a checkpoint would skip the rest of the epoch. After a complete epoch it would continue inside it.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop")
    epochs, batches = (loops[name] if loops else {} for name in ("epoch_progress", "epoch_loop.batch_progress"))
    if not loops or not batches["current"]["ready"] or epochs["current"]["processed"] != epochs["current"]["ready"]:
        return
    for counters in (epochs["current"], epochs["total"]):
        counters["processed"] -= 1
        counters["completed"] = counters["processed"]
    for counters in (batches["current"], batches["total"]):
        counters["completed"] -= 1
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    checkpoint["epoch"] = epochs["current"]["completed"]
