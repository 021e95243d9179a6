"""How large a network and its training step are: parameters, and bytes of memory. Plain torch, without any data.

The activations are not a formula. One forward pass runs on torch's fake tensors, which have shapes and no memory, and
the tensors that autograd keeps for the backward pass are added up. So they are those of any network, of every option,
and of the kernels that the device takes; the network may be on the meta device. FLOPs a token are a matter of the
network (`Network.flops_per_token`).
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from lit_gpt import fused_loss, loss
from lit_gpt.distributed import layers_of
from lit_gpt.protocols import Network

#: What autocast computes in, by the Trainer's precision; others have no autocast.
AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
#: The type of the weights, by the Trainer's precision; others have float32.
WEIGHTS = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
#: Tensors of a parameter's size that an optimizer keeps, by its class or by the algorithm of a group of ours. Others
#: have two, as Adam.
STATES = {"adamw": 2, "muon": 1, "sgd": 1, "SGD": 1, "Muon": 1, "RMSprop": 1, "Adagrad": 1}
#: Muon's update of all matrices of one shape holds them this often: mixed with their momentum, stacked, and twice in
#: the Newton-Schulz iteration.
MUON_COPIES = 4
#: Copies of a piece of the logits in float32: in the loss, its log-softmax, its gradient and that of the logits.
PIECE_COPIES = 4
#: Gaps in the heap of a CPU, as a share of activations and logits. glibc keeps what is freed for the next step, which
#: is faster, and small tensors split the room of large ones. Measured on three networks of 5M to 35M parameters: 0.3 to
#: 0.6. What is live at a time was planned to 1 % there.
HEAP_GAPS = 0.45
#: The same with activation checkpointing, whose gradients settle between what is computed again: 0.6 to 1.7 of four.
HEAP_GAPS_CHECKPOINTING = 1.2
FLOAT32 = 4


def count_parameters(net: nn.Module) -> int:
    """Number of parameters. Those of lazy layers, which have no shape before the first batch, are left out."""
    return sum(0 if is_lazy(p) else p.numel() for p in net.parameters())


def count_embeddings(net: nn.Module) -> int:
    """Number of parameters in embeddings: of tokens (also where they are the LM head too), positions and the like."""
    weights = {id(m.weight): m.weight for m in net.modules() if isinstance(m, nn.Embedding)}
    return sum(0 if is_lazy(weight) else weight.numel() for weight in weights.values())


def has_lazy_layers(net: nn.Module) -> bool:
    """Whether some layers have no shape before the first batch."""
    return any(map(is_lazy, net.parameters()))


@dataclass(frozen=True)
class Step:
    """What decides the memory of a training step of one process.

    Attributes:
        rows: rows of a micro-batch.
        T: tokens of a row.
        packed: whether rows hold several documents, which do not see each other.
        precision: the Trainer's, such as ``bf16-mixed``.
        device: the type of the device: ``cpu``, ``cuda`` or another.
        passes: how often each row passes through the network.
    """

    rows: int
    T: int
    packed: bool = False
    precision: str = "32-true"
    device: str = "cpu"
    passes: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step.

    Attributes:
        weights: parameters and buffers.
        gradients: one for each weight; they stay from one step to the next.
        optimizer: its state, such as AdamW's two moments.
        activations: what the backward pass needs of the forward pass, with the copies of weights in 16 bits.
        logits: of the loss: the logits of a chunk of the tokens, the gradients of the hidden states and of the LM head.
        update: what the optimizer needs for a moment, when activations and logits are gone.
        heap: on a CPU, memory between tensors: the heap has gaps where some were freed and others stay.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    update: int = 0
    heap: int = 0

    @property
    def total(self) -> int:
        """The most that is there at a time."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + max(self.activations + self.logits + self.heap, self.update)
        )


def sharded(memory: Memory, net: nn.Module, processes: int) -> Memory:
    """The memory of each of several processes that share the weights, gradients and state of ``net`` (fsdp2)."""
    whole = gathered_bytes(net)
    return replace(
        memory,
        weights=memory.weights // processes + whole,
        gradients=memory.gradients // processes + whole,
        optimizer=memory.optimizer // processes,
        update=memory.update // processes,
    )


def gathered_bytes(net: nn.Module) -> int:
    """Bytes of the weights that a process has whole at a time: two layers, one of them for the next computation, and
    all that is in no layer, such as the embedding and the LM head.
    """
    layers = [bytes_of(layer.parameters()) for layer in layers_of(net)]
    return bytes_of(net.parameters()) - sum(layers) + sum(sorted(layers)[-2:])


def memory(net: Network, optimizers: Sequence[torch.optim.Optimizer], step: Step) -> Memory:
    """The memory of a training step of ``net``, which may be on the meta device."""
    nets = net.trained_nets()
    kinds = {_kind(one): one for one in nets}  # members of an ensemble differ in their weights alone
    traces = {kind: _trace(one, step) for kind, one in kinds.items()}
    traced = [traces[_kind(one)] for one in nets]
    gaps = HEAP_GAPS_CHECKPOINTING if any(map(_has_checkpointing, nets)) else HEAP_GAPS
    activations = step.passes * sum(activations for activations, _, _ in traced)
    logits = sum(kept for _, kept, _ in traced) + max(temporary for _, _, temporary in traced)
    return Memory(
        weights=bytes_of([*net.parameters(), *net.buffers()]),
        gradients=bytes_of(p for p in net.parameters() if p.requires_grad),
        optimizer=sum(map(state_bytes, optimizers)),
        activations=activations,
        logits=logits,
        update=max(map(_update_bytes, optimizers), default=0),
        heap=int(gaps * (activations + logits)) if step.device == "cpu" else 0,
    )


def _kind(net: Network) -> tuple[type, str]:
    return type(net), repr(net.config)


def _has_checkpointing(net: Any) -> bool:
    return bool(getattr(net, "activation_checkpointing", False))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state after its first step."""
    return sum(_states_of(optimizer, group) * bytes_of(group["params"]) for group in optimizer.param_groups)


def _states_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> int:
    name = group.get("algorithm", type(optimizer).__name__)
    return STATES.get(name, 2) if name not in ("sgd", "SGD") or group["momentum"] else 0


def _update_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that Muon takes for a moment. The other algorithms work in place."""
    sizes: Counter[torch.Size] = Counter()
    for group in optimizer.param_groups:
        if group.get("algorithm") == "muon":
            for p in group["params"]:
                sizes[p.shape] += FLOAT32 * p.numel()
    return MUON_COPIES * max(sizes.values(), default=0)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements of some tensors, without lazy ones."""
    return sum(0 if is_lazy(t) else t.numel() * t.element_size() for t in tensors)


# ---- activations and logits


class _Hidden(nn.Module):
    """The hidden states of a network as a module's `forward`, for `functional_call`."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, document_ids: Tensor | None) -> Tensor:
        """(B, T) to (B, T, C)."""
        return self.net.hidden(input_ids, document_ids=document_ids)


class _Head(nn.Module):
    """The LM head of a network as a module's `forward`."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, hidden: Tensor, weights: list[Tensor]) -> Tensor:
        """(n, C) to (n, V)."""
        return self.net.head(hidden, weights)


class _HeadWeights(nn.Module):
    """What the LM head multiplies with, as a module's `forward`."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self) -> list[Tensor]:
        """See `Network.head_weights`."""
        return self.net.head_weights()


def _trace(net: Network, step: Step) -> tuple[int, int, int]:
    """Bytes of activations of one pass; of what the loss keeps for the backward pass; of what it needs for a moment."""
    N = step.rows * step.T
    with _fake(step.device) as device, _without_checkpointing(net) as checkpointing:
        named = dict(net.named_parameters()) | dict(net.named_buffers())
        tensors = {f"net.{name}": _like(tensor, device) for name, tensor in named.items()}
        ids = torch.zeros(step.rows, step.T, dtype=torch.int64, device=device)
        documents = ids if step.packed and step.device == "cpu" else None  # a GPU's kernel for documents keeps no mask
        activations, hidden = _saved(lambda: functional_call(_Hidden(net), tensors, (ids, documents)), tensors, step)
        if checkpointing:
            activations = _with_checkpointing(activations, hidden, len(net.blocks))  # type: ignore[arg-type]
        with torch.no_grad():
            weights: list[Tensor] = functional_call(_HeadWeights(net), tensors, ())
        head = FLOAT32 * sum(weight.numel() for weight in weights)  # of their gradient
        V, limit = int(net.config.vocab_size), loss.MAX_LOGITS_CPU if step.device == "cpu" else loss.MAX_LOGITS
        states = hidden.detach().flatten(0, 1)[: max(1, min(N, limit // V))].requires_grad_()  # (n, C)
        own = tensors | {f"head {number}": weight for number, weight in enumerate(weights)}
        saved, logits = _saved(lambda: functional_call(_Head(net), tensors, (states, weights)), own, step)
        kept = step.passes * 2 * bytes_of([hidden]) + head
        if step.device == "cuda" and net.linear_head is not None and step.passes == 1:
            return activations, kept, _fused_bytes(hidden, weights, net.linear_head.compiled, step)
    return activations, kept, _chunk_bytes(logits, saved, head, math.ceil(N / len(logits)), step.device)


def _fused_bytes(hidden: Tensor, weights: list[Tensor], compiled: bool, step: Step) -> int:
    """Bytes that the fused loss takes for a moment: a chunk of logits, and what is multiplied in autocast's dtype."""
    dtype = AUTOCAST.get(step.precision, weights[0].dtype)
    columns = len(weights[0])
    logits = columns * fused_loss.chunk_size(step.rows * step.T, fused_loss.MAX_LOGITS // columns)
    cast = sum(0 if t.dtype == dtype else t.numel() for t in (hidden, *weights))
    copies = 0 if compiled else PIECE_COPIES * FLOAT32 * min(fused_loss.LOGITS_PER_PIECE, logits)
    return dtype.itemsize * (logits + cast) + copies


def _chunk_bytes(logits: Tensor, saved: int, head: int, chunks: int, device: str) -> int:
    """Bytes that a chunk of the loss takes for a moment.

    From the second one on, the gradient of the head is there twice: that of the chunk, and the sum so far.

    Args:
        logits: those of a chunk, (n, V).
        saved: bytes that the head keeps for its backward pass, such as the tanh of a softcap.
        head: bytes of the gradient of the head.
        chunks: number of chunks.
        device: the type of the device.
    """
    one = bytes_of([logits])
    in_head = 2 * one + (2 * one if saved >= one else 0)
    in_backward = (3 if saved >= one else 2) * one + head * (chunks > 1)
    pieces = loss.LOGITS_IN_CACHE if device == "cpu" else loss.LOGITS_PER_PIECE
    return max(in_head, in_backward) + PIECE_COPIES * FLOAT32 * min(pieces, logits.numel())


def _with_checkpointing(activations: int, hidden: Tensor, blocks: int) -> int:
    """Of all blocks the input, and of one the activations, when the backward pass computes them again."""
    return blocks * FLOAT32 * hidden.numel() + math.ceil(activations / blocks)


@contextmanager
def _fake(device: str) -> Iterator[str]:
    """Tensors without memory, on a device that need not be there; yields its type.

    Without a GPU those of CUDA are on the CPU, whose kernels keep more: attention weights where there is dropout, and
    masks of dropout in 4 bytes instead of 1. A torch that was built for CUDA asks the GPU even about such tensors.
    """
    on_cuda = device == "cuda" and torch.cuda.is_available()
    # Setting the stance imports torch._dynamo, which takes a second. On the CPU nothing is compiled where nothing was.
    may_compile = on_cuda or "torch._dynamo.eval_frame" in sys.modules
    with FakeTensorMode(), torch.compiler.set_stance("force_eager") if may_compile else nullcontext():
        yield "cuda" if on_cuda else "cpu"


@contextmanager
def _without_checkpointing(net: Any) -> Iterator[bool]:
    """Turns off activation checkpointing, whose tensors autograd does not see; yields whether it was on."""
    checkpointing = _has_checkpointing(net)
    if checkpointing:
        net.activation_checkpointing = False
    try:
        yield checkpointing
    finally:
        if checkpointing:
            net.activation_checkpointing = True


def _like(tensor: Tensor, device: str) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device, requires_grad=tensor.requires_grad)


def _saved(forward: Callable[[], Tensor], tensors: dict[str, Tensor], step: Step) -> tuple[int, Tensor]:
    """Bytes that autograd keeps for the backward pass of a function, without ``tensors``, and the function's result."""
    storages: dict[int, Any] = {}
    own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no other storage takes its address
        return tensor

    dtype = AUTOCAST.get(step.precision)
    device = next((t.device.type for t in tensors.values()), "cpu")
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None),
        torch.enable_grad(),
    ):
        result = forward()
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own), result
