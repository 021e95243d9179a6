"""What a step under DDP leaves out: copies of gradients, broadcasts of buffers, and messages about when to stop."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lit_gpt.distributed import sent_to_cpu, summed_over_processes

#: Torch 2.13 renamed the option. Under the old name, buffers are not made equal at the start either.
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def spare_copies(strategy: Any, net: nn.Module) -> None:
    """Let DDP keep gradients where it sends them from, and send no buffers at each step. Options of a user's own stay.

    Gradients are then no second copy: 4 bytes less for each parameter. Buffers of our networks are constant in
    training. A network of anybody's may change its own, as BatchNorm does, so they are sent as usual.
    """
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)  # the arguments for torch's class
        if type(net).__module__.startswith("lit_gpt.") and not {"broadcast_buffers", SYNC_BUFFERS} & set(
            strategy._ddp_kwargs
        ):
            strategy._ddp_kwargs[SYNC_BUFFERS] = False


class Votes:
    """Yes or no to some questions, in any process of a run, as all processes know it at the same step.

    The votes are part of the sums that a step makes over processes anyway. Those of a step are read at the end of the
    next: by then a GPU has added them up, so nothing waits for it.

    Args:
        questions: Each returns the vote of this process.
    """

    def __init__(self, *questions: Callable[[], bool]) -> None:
        self._questions = questions
        self._votes: list[list[Callable[[], int]]] = []  # of the steps that are not read yet
        self.were_cast = False  # since they were read

    def summed(self, sums: Tensor, world_size: int) -> Tensor:
        """The ``sums`` of all processes added up. The votes are added up with them."""
        if world_size == 1:
            return sums
        votes = [sums.new_full((1,), question()) for question in self._questions]
        total = summed_over_processes(torch.cat((sums, *votes)), world_size)
        self._votes.append([sent_to_cpu(count) for count in total[len(sums) :]])
        self.were_cast = True
        return total[: len(sums)]

    def answers(self) -> list[bool]:
        """For each question, whether any process said yes at the step before. All processes must ask, once a step."""
        read, self._votes = self._votes[:-1], self._votes[-1:]
        self.were_cast = False
        counts = [[count() for count in counts] for counts in read]
        return [any(column) for column in zip(*counts, strict=True)] or [False] * len(self._questions)
