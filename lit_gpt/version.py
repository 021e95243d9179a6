"""The version of the distribution and the number of the checkpoint format."""

__version__ = "0.1.0"

#: Raised by one when a checkpoint of the old code cannot be read by the new.
CHECKPOINT_FORMAT = 2
#: The last commit that reads checkpoints of format 1.
LAST_WITH_FORMAT_1 = "5aec6d3"
