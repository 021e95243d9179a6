"""Uploads a run's tokenizer and model to Weights & Biases."""

from pathlib import Path
from tempfile import TemporaryDirectory

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.tokenizers import Tokenizer, save_tokenizer
from lit_gpt.callbacks.checkpoints import RunCheckpoints
from lit_gpt.protocols import data_of


class LogArtifacts(Callback):
    """Logs two artifacts at the end of a run: ``tokenizer-ID``, and ``model-ID`` with the best or else last checkpoint.

    The checkpoint holds the tokenizer too, so `generate` needs only the model's artifact on another machine.
    """

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log to every WandbLogger."""
        tokenizer = data_of(trainer).tokenizer
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                if tokenizer is not None:
                    _log_tokenizer(logger, tokenizer)
                for callback in trainer.checkpoint_callbacks:
                    if isinstance(callback, RunCheckpoints):
                        _log_model(logger, callback)


def _log_tokenizer(logger: WandbLogger, tokenizer: Tokenizer) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        save_tokenizer(tokenizer, path)
        _log_file(logger, "tokenizer", path, {"vocab_size": tokenizer.vocab_size})


def _log_model(logger: WandbLogger, checkpoints: RunCheckpoints) -> None:
    name = "last.ckpt" if checkpoints.best_value is None else "best.ckpt"
    _log_file(logger, "model", checkpoints.folder / name, {checkpoints.monitor or "monitor": checkpoints.best_value})


def _log_file(logger: WandbLogger, kind: str, path: Path, metadata: dict[str, object]) -> None:
    from wandb import Artifact

    artifact = Artifact(f"{kind}-{logger.experiment.id}", kind, metadata=metadata)
    artifact.add_file(str(path))  # copied at once
    logger.experiment.log_artifact(artifact)
