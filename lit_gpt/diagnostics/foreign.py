"""What doctor can know of a LightningModule that is not ours: its logits, found where a softmax takes them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations of a cross-entropy whose first argument is the logits. `logsumexp` is decomposed before it gets here in
#: some versions of torch, so a loss of one's own may stay unseen.
SOFTMAXES = ("aten._log_softmax", "aten.logsumexp")


class LogitsFound(TorchDispatchMode):
    """Keeps the inputs of every log-softmax over a vocabulary, as long as it is active.

    Attributes:
        found: These inputs, (N, V) each, in the order of the calls.
    """

    def __init__(self, places: int) -> None:
        """``places``: the number of targets of the batch, B * T."""
        super().__init__()
        self.places, self.found = places, list[Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and keep its input if that may be logits."""
        if str(func).rpartition(".")[0] in SOFTMAXES and args[0].ndim >= 2:
            z, dim = args[0].detach(), args[1] if isinstance(args[1], int) else args[1][0]
            self.found.append(z.movedim(dim, -1).flatten(0, -2))  # cross_entropy of (B, V, T) has V in the middle
        return func(*args, **(kwargs or {}))

    def logits(self) -> Tensor | None:
        """Logits of the batch, (N, V); None if no call, or no run of calls over pieces, has N = B * T rows."""
        width = max((z.size(-1) for z in self.found), default=0)
        pieces = [z for z in self.found if z.size(-1) == width]
        rows = sum(len(z) for z in pieces)
        # An ensemble, and R-Drop, have several passes over the same targets: the first is enough.
        return torch.cat(pieces)[: self.places].clone() if rows and rows % self.places == 0 else None


def loss_of(output: Any) -> Tensor:
    """The loss in what ``training_step`` returned: a tensor, or a dict with ``loss``."""
    loss = output["loss"] if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise TypeError(f"training_step returned {type(loss).__name__} instead of a loss")
    return loss
