"""Where in its epoch a checkpoint is that was saved when training had stopped."""

from typing import Any

from lightning.pytorch import Trainer


def inside_its_epoch(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Restate Lightning's counters as they were in the last batch's hook, where they count the epoch as done.

    They do so whenever training stops. A longer run that went on from such a checkpoint would leave out the rest of the
    epoch, or after a whole one take itself to be inside it.
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
