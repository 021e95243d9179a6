"""Prints which text `validate`, `test` or `predict` scores."""

from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lit_gpt.protocols import TextData, data_of


class PrintScoredText(Callback):
    """Prints one line: the split, its text, and whether text and splits are those of the checkpoint's run.

    Args:
        fingerprints: Those that the checkpoint stores of its data.
    """

    def __init__(self, fingerprints: Mapping[str, str]) -> None:
        self.fingerprints = fingerprints

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the validation split."""
        self._print_text_name(trainer, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the test split."""
        self._print_text_name(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the text to predict: a separate source, or the validation split."""
        self._print_text_name(trainer, "predict")

    @rank_zero_only
    def _print_text_name(self, trainer: Trainer, split: str) -> None:
        data = data_of(trainer)
        part = "test" if split == "test" else "val"
        if split == "predict" and (own := data.text_name("predict")) is not None:
            print(f"scoring {own}, a text of its own beside the run's", flush=True)
        elif (name := data.text_name(part)) is not None:
            print(f"scoring the {part} split of {name}, {self._relation(data)}", flush=True)

    def _relation(self, data: TextData) -> str:
        stored, current = self.fingerprints.get("data"), data.fingerprints.get("data")
        if stored is None:
            return "and the checkpoint does not say what it was trained on"
        return "as in the run" if stored == current else "not the text and split of the run"
