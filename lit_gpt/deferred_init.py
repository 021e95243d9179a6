"""Builds a network without memory for its weights, and fills them later, a tensor at a time, with the same values.

On the meta device a tensor has a shape and no memory. There the operations that initialise the weights are written
down. Later they are done in the same order: random numbers are drawn for one whole tensor at a time, of which a process
keeps its own rows. So the weights are, to the last bit, those of a network that was built as a whole.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from datamodules.errors import UserError
from lit_gpt.distributed import local, part_of

_ATEN = torch.ops.aten
#: Operations that draw random numbers, and those that give each element a value by itself. Others are refused.
_RANDOM = {_ATEN.normal_.default, _ATEN.uniform_.default}
_ELEMENTWISE = {_ATEN.fill_.Scalar, _ATEN.zero_.default, _ATEN.mul_.Tensor, _ATEN.mul_.Scalar}
_WITHOUT_VALUES = {_ATEN.empty.memory_format, _ATEN.detach.default}
_FILLED = {_ATEN.full.default: lambda args: args[1], _ATEN.ones.default: lambda _: 1, _ATEN.zeros.default: lambda _: 0}
_ADVICE = (
    "which --trainer.strategy fsdp2 cannot defer: override `build_network` too, so that the network is built whole, "
    "or use --trainer.strategy ddp."
)


class DeferredInit(TorchDispatchMode):
    """While it is active, new tensors are on the meta device, and their initialisation is written down.

    It knows the operations by which `lit_gpt.model.GPT` initialises its weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self._meta = torch.device("meta")
        self._log: list[tuple[Callable[..., Any], Tensor, tuple[Any, ...]]] = []
        self._names: dict[int, str] = {}

    def __enter__(self) -> "DeferredInit":
        self._meta.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._meta.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Write down an operation that gives values to a tensor."""
        if func in _RANDOM | _ELEMENTWISE and not any(isinstance(x, Tensor) for x in args[1:]):
            self._log.append((func, args[0], args[1:]))
            return args[0]  # it is not done: on the meta device, that would import the compiler
        result = func(*args, **(kwargs or {}))
        if func in _FILLED:
            self._log.append((_ATEN.fill_.Scalar, result, (_FILLED[func](args),)))
        elif func not in _WITHOUT_VALUES:
            raise UserError(f"the network is initialised by {func}, {_ADVICE}")
        return result

    def note_names(self, net: nn.Module) -> None:
        """Note which tensors are the network's, before each is replaced by a sharded one."""
        self._names = {_storage(tensor): name for name, tensor in _tensors(net)}

    @torch.no_grad()
    def fill(self, net: nn.Module) -> None:
        """Give the network's tensors, which have memory now, the values that were written down.

        It draws from torch's random numbers what building the network would have drawn.

        Raises:
            UserError: No value was written down for one of them: torch skips some operations on the meta device.
        """
        tensors = dict(_tensors(net))
        given = {self._names.get(_storage(meta)) for _, meta, _ in self._log}
        if missing := [name for name in tensors if name not in given]:
            raise UserError(f"{missing[0]} is not initialised on the meta device, {_ADVICE}")
        for func, meta, args in self._log:
            target = tensors.get(self._names.get(_storage(meta), ""))
            if func in _RANDOM:
                whole = func(torch.empty(meta.shape, dtype=meta.dtype, device="cpu"), *args)
                if target is not None:
                    local(target).copy_(part_of(whole, target))
            elif target is not None:
                func(local(target), *args)


def _tensors(net: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
