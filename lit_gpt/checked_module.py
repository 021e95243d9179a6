"""A LightningModule that checks a checkpoint's checksums before it loads weights from it."""

from pathlib import Path
from typing import Any, Self

from lightning.pytorch import LightningModule

from lit_gpt.integrity import check_intact


class CheckedModule(LightningModule):
    """Refuses damaged checkpoints in ``load_from_checkpoint`` and in a Trainer's ``ckpt_path``.

    The command line checks the file itself, before it builds anything.
    """

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As in `LightningModule`, with the checksums compared first."""
        _check_file(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the file before a Trainer loads its weights."""
        _check_file(getattr(self._trainer, "ckpt_path", None))


def _check_file(path: Any) -> None:
    if isinstance(path, str | Path) and Path(path).is_file():  # a stream or a URL has no file to check
        check_intact(Path(path))
