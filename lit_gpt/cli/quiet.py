"""Silences messages of Lightning that do not apply here."""

import logging
import warnings

#: Our loaders are fast without workers, batches are dicts of one size, and logged values are equal in all processes.
IRRELEVANT_WARNINGS = (
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*Trying to infer the `batch_size` from an ambiguous collection.*",
    ".*WeightAveraging callback with a model that overrides the configure_model.*",  # sharding is refused
    ".*It is recommended to use `self.log.*sync_dist=True.*",
)


def quieten_lightning() -> None:
    """Silence Lightning's messages below the level of a warning, and the warnings of ``IRRELEVANT_WARNINGS``."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
