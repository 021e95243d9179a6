"""A LightningModule that compares a checkpoint with its checksums before weights are taken from it."""

from pathlib import Path
from typing import Any, Self

from lightning.pytorch import LightningModule

from lit_gpt.integrity import check_whole


class CheckedModule(LightningModule):
    """Refuses damaged files in Lightning's two ways to read one from Python; the command line asks before."""

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """See `LightningModule`."""
        _check(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before a Trainer takes the weights."""
        _check(getattr(self._trainer, "ckpt_path", None))


def _check(path: Any) -> None:
    if isinstance(path, str | Path) and Path(path).is_file():  # neither a stream nor an address
        check_whole(Path(path))
