"""What Lightning says that does not apply to our runs is not said."""

import logging
import warnings

#: Our loaders are fast without workers, batches are dicts of one size, and what is logged is equal on every process.
NOT_FOR_US = (
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*Trying to infer the `batch_size` from an ambiguous collection.*",
    ".*It is recommended to use `self.log.*sync_dist=True.*",
)


def quieten_lightning() -> None:
    """Leave out Lightning's notes below a warning, and the warnings of ``NOT_FOR_US``."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in NOT_FOR_US:
        warnings.filterwarnings("ignore", message=message)
