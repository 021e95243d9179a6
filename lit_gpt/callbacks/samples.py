"""Prints and logs samples of text during training."""

import json
import math
import re
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from datamodules.errors import UserError, check_at_least
from datamodules.files import write_text
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from lit_gpt.callbacks.tensorboard_logger import writer_of
from lit_gpt.distributed import needs_all, reshard
from lit_gpt.generate import TextModel
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.protocols import data_of


class SampleText(Callback):
    """Prints a sample after every validation and logs it: to samples.jsonl in the run's folder, to TensorBoard as
    text, to Weights & Biases as a row of the table ``generations``.

    The sampler has its own random numbers, so a run with samples equals one without.

    Args:
        max_new_tokens: Length of a sample; 0 turns samples off.
        prompt: Beginning of the sample. If it is empty, the sample starts after the EOS token, or after a newline
            if the tokenizer has none.
        temperature: Below 1 the likely tokens become likelier, above 1 less likely; 0 takes the likeliest token.
        every_n_validations: Sample after every N-th validation.
    """

    def __init__(
        self, max_new_tokens: int = 120, prompt: str = "", temperature: float = 0.8, every_n_validations: int = 1
    ) -> None:
        for name, value, least in (
            ("max_new_tokens", max_new_tokens, 0),
            ("temperature", temperature, 0),
            ("every_n_validations", every_n_validations, 1),
        ):
            check_at_least(least, f"samples.{name}", value)
        if not temperature < math.inf:
            raise UserError(f"samples.temperature is {temperature}: give a finite number.")
        self.max_new_tokens = max_new_tokens
        self.prompt = prompt
        self.temperature = temperature
        self.every_n_validations = every_n_validations
        self._validations = 0
        self._table: list[list[Any]] = []  # step and text; Weights & Biases needs all rows of a table each time

    def state_dict(self) -> dict[str, Any]:
        """Validations so far and the table, so that a resumed run samples at the same steps."""
        return {"validations": self._validations, "table": self._table}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._validations, self._table = state_dict["validations"], list(state_dict["table"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a prompt that the tokenizer cannot encode, before training."""
        tokenizer = data_of(trainer).tokenizer
        if tokenizer is not None and self.max_new_tokens:
            tokenizer.encode(self.prompt)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample after every N-th validation, if the network can continue a text. All processes do if it is sharded."""
        if not trainer.is_global_zero and not needs_all(getattr(pl_module, "net", None)):
            return
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self.max_new_tokens:
            return
        if not math.isfinite(trainer.callback_metrics.get("val/loss", 0.0)):
            return  # no probabilities to draw from; the next save or step stops the run
        self._validations += 1
        tokenizer = data_of(trainer).tokenizer
        due = self._validations % self.every_n_validations == 0
        if due and tokenizer is not None and isinstance(pl_module, LitLanguageModel) and pl_module.net.causal:
            self._show(trainer, TextModel(pl_module.net, tokenizer))

    def _show(self, trainer: Trainer, model: TextModel) -> None:
        text = model.generate(
            self.prompt, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=trainer.global_step
        )[0]
        reshard(model.net)
        if trainer.is_global_zero:
            self._log(trainer, text)

    def _log(self, trainer: Trainer, text: str) -> None:
        if trainer.progress_bar_callback:
            trainer.progress_bar_callback.print(f"sample: {text!r}")
        # A validation that failed after its sample is done again in the resumed run.
        self._table = [row for row in self._table if row[0] < trainer.global_step]
        self._table.append([trainer.global_step, self.prompt + text])
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):  # whole, so that a resumed run leaves out the steps that it repeats
                lines = (json.dumps({"step": step, "text": text}, ensure_ascii=False) for step, text in self._table)
                write_text(logger.folder / "samples.jsonl", "".join(f"{line}\n" for line in lines))
            if isinstance(logger, WandbLogger):
                logger.log_text("generations", ["step", "text"], self._table, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                writer_of(logger, "val").add_text("sample", _as_html(self.prompt + text), trainer.global_step)


def _as_html(text: str) -> str:
    """The text for TensorBoard, which takes Markdown: no mark has a meaning, and long lines are wrapped."""
    escaped = re.sub(r"[!-/:-@\[-`{-~]", lambda mark: f"&#{ord(mark[0])};", text)
    return escaped.replace("  ", "&nbsp; ").replace("\n ", "\n&nbsp;").replace("\n", "<br>")
