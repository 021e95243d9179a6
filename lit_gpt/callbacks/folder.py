"""What a run changes in its folder when it begins, and not before: a refused checkpoint leaves its run as it was."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files import remove_leftovers, write_text
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from lit_gpt.callbacks.run_folder import CONFIG, LAST, RunLock


class RunFolder(Callback):
    """Holds the folder; writes ``config.yaml``; in a resumed run, drops the logged figures of later steps, which come
    again.

    Args:
        folder: The run's folder.
        config: The resolved configuration.
        settings: Hash of what a run cannot go on without; a resume asks the checkpoint for it where ``config.yaml``
            is damaged.
    """

    def __init__(self, folder: Path, config: str, settings: str) -> None:
        self.folder = folder
        self.config = config
        self.settings = settings
        self.began = False
        self._hold: RunLock | None = None

    def state_dict(self) -> dict[str, Any]:
        """The hash of the settings in force."""
        return {"settings": self.settings}

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to share the folder with another process; remove what a killed one has left of files half written."""
        self._hold = RunLock(self.folder)
        for folder in (self.folder, self.folder / LAST.parent) if self._hold.is_locked else ():
            remove_leftovers(folder)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the folder."""
        if self._hold and self.began:
            self._make_whole(self._hold)
        if self._hold:
            self._hold.release()
            self._hold = None

    def _make_whole(self, hold: RunLock) -> None:
        """Say where the files are, where the folder was moved away or emptied while the run went on."""
        if not (self.folder / CONFIG).is_file():
            write_text(self.folder / CONFIG, self.config)
        if place := hold.moved_to():
            was = "deleted" if place == "nowhere" else f"moved to {place}, where its files until then are,"
            print(f"{self.folder} was {was} while the run went on: what was written later is in {self.folder}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the folder."""
        self.teardown(trainer, pl_module, "fit")

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint, if any, has been accepted."""
        self.began = True
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
