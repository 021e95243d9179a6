"""What a run changes in its folder when it begins, and not before: a refused checkpoint leaves its run as it was."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files import write_text
from lit_gpt.loggers import MetricsCSV
from lit_gpt.run import CONFIG


class RunFolder(Callback):
    """Writes ``config.yaml``; in a resumed run, drops the logged figures of later steps, which come again.

    Args:
        folder: The run's folder.
        config: The resolved configuration.
    """

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.config = config

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint, if any, has been accepted."""
        write_text(self.folder / CONFIG, self.config)
        for logger in trainer.loggers if trainer.ckpt_path else ():
            if isinstance(logger, MetricsCSV):
                logger.rewind(trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                _hide_after(logger, trainer.global_step)


def _hide_after(logger: TensorBoardLogger, step: int) -> None:
    """TensorBoard hides later steps of earlier event files when a new file says so at its start."""
    writer = logger.experiment
    writer.purge_step = step + 1
    writer.close()  # the next event opens the new file
