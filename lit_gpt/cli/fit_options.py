"""The options that fit alone has."""

from typing import Literal

from lightning.pytorch.cli import LightningArgumentParser

from lit_gpt.callbacks.checkpoints import RunCheckpoints
from lit_gpt.callbacks.samples import SampleText
from lit_gpt.callbacks.tensorboard import TensorBoardCharts
from lit_gpt.cli import shrink


def add_fit_options(parser: LightningArgumentParser) -> None:
    """Add them, and those of its callbacks."""
    parser.add_argument("--name", type=str, default="run", help="Folder of the run, below --logs_dir.")
    parser.add_argument("--logs_dir", type=str, default="logs", help="Folder of all runs.")
    parser.add_argument(
        "--resume",
        type=Literal["auto"] | None,
        default=None,
        help="auto: resume the newest unfinished run of the same model, data and seed, or start one.",
    )
    parser.add_argument("--shrink", action="store_true", help=shrink.HELP)
    parser.add_argument(
        "--early_stopping",
        type=int | None,
        default=None,
        help="Stop after this many validations without a better val/loss.",
    )
    parser.add_argument(
        "--val_at_start", type=bool, default=False, help="Evaluate before the first step too, and log it as step 0."
    )
    parser.add_argument(
        "--plan", action="store_true", help="Print parameters, memory, disk and hours of the run, and do not train."
    )
    parser.add_lightning_class_args(RunCheckpoints, "checkpoint")
    parser.add_lightning_class_args(SampleText, "samples")
    parser.add_lightning_class_args(TensorBoardCharts, "tensorboard")
