"""What a run changes in its folder when it begins, and not before: a refused checkpoint leaves its run as it was."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files import write_text
from lit_gpt.loggers import MetricsCSV
from lit_gpt.run import CONFIG, Hold


class RunFolder(Callback):
    """Holds the folder; writes ``config.yaml``; in a resumed run, drops the logged figures of later steps, which come
    again.

    Args:
        folder: The run's folder.
        config: The resolved configuration.
    """

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.config = config
        self._hold: Hold | None = None

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to share the folder with another process."""
        self._hold = Hold(self.folder)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the folder."""
        if self._hold:
            self._hold.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the folder."""
        self.teardown(trainer, pl_module, "fit")

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
