"""Logs the metrics of the model before training. Its loss should be near ln(vocabulary size)."""

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.language_model import LitLanguageModel


class EvaluateAtStart(Callback):
    """Logs the metrics of Lightning's sanity check as step 0. The command line extends that check to the full split.

    The check has its own random numbers, is not done in a resumed run, and is ignored by callbacks that save or sample
    after a validation. So it does not change the run.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log under step 0."""
        if isinstance(pl_module, LitLanguageModel):
            pl_module.log_now(dict(trainer.callback_metrics), 0)
