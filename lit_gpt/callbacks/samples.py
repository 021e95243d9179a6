"""Text from the model while it learns."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lit_gpt.generate import TextModel


class SampleText(Callback):
    """Prints a sample after every validation and logs it as text to TensorBoard.

    The sampler has its own random numbers, so a run with samples equals one without.

    Args:
        max_new_tokens: Length of a sample; 0 turns samples off.
        prompt: What the sample starts with; nothing starts it at the end mark or a newline.
        temperature: Sharpness of the sampling.
        every_n_validations: Sample after every so many validations.
    """

    def __init__(
        self, max_new_tokens: int = 120, prompt: str = "", temperature: float = 0.8, every_n_validations: int = 1
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.prompt = prompt
        self.temperature = temperature
        self.every_n_validations = every_n_validations
        self._validations = 0

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, when its turn has come and the network generates."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self.max_new_tokens:
            return
        self._validations += 1
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        net = getattr(pl_module, "net", None)
        if tokenizer is not None and isinstance(net, nn.Module) and self._validations % self.every_n_validations == 0:
            self._show(trainer, TextModel(net, tokenizer))

    def _show(self, trainer: Trainer, model: TextModel) -> None:
        text = model.generate(
            self.prompt, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=trainer.global_step
        )[0]
        if trainer.progress_bar_callback:
            trainer.progress_bar_callback.print(f"sample: {text!r}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("sample", f"```\n{text}\n```", trainer.global_step)
