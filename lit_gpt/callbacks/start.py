"""Figures of the model as it was initialised: what a loss near ln(vocabulary size) shows, and where a curve begins."""

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.language_model import LitLanguageModel


class EvaluateAtStart(Callback):
    """Logs, as step 0, what Lightning's sanity check found; the command line lets that check cover the whole split.

    The sanity check runs before training with random numbers of its own and not in a resumed run, and whatever saves or
    samples after a validation leaves it alone: a run with it equals one without.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log under step 0."""
        if isinstance(pl_module, LitLanguageModel):
            pl_module.log_now(dict(trainer.callback_metrics), 0)
