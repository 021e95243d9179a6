"""Norms of a network's layers, and the attention weights of a GPT."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_gpt.distributed import full
from lit_gpt.model import Attention
from lit_gpt.protocols import Network

#: The most layers whose attention is drawn, evenly spaced.
MAX_MAPS = 4
Gradients = Mapping[Tensor, Tensor]


def layer_norms(net: Network, input_ids: Tensor, gradients: Gradients) -> dict[str, dict[str, float]]:
    """Root mean squares of each layer's weights, gradients and outputs: a number for each layer's name.

    Args:
        net: The network; of an ensemble its first member is taken.
        input_ids: What it is applied to, (B, T).
        gradients: Of some parameters, or of all. A layer without any has 0.
    """
    gpt = net.trained_nets()[0]
    layers, outputs = dict(_layers(gpt)), {}

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    with _eagerly(layer.register_forward_hook(note) for layer in layers.values()):
        gpt(input_ids)
    weights: list[list[Tensor]] = [list(layer.parameters()) for layer in layers.values()]
    kinds: dict[str, list[list[Tensor]]] = {
        "weights": weights,
        "gradients": [[gradients[p] for p in tensors if p in gradients] for tensors in weights],
        "outputs": [[outputs[layer]] if layer in outputs else [] for layer in layers.values()],
    }
    return {kind: dict(zip(layers, [_rms(x) for x in tensors], strict=True)) for kind, tensors in kinds.items()}


def attention_weights(net: Network, input_ids: Tensor) -> dict[str, np.ndarray]:
    """The attention weights of the first head, (T, T), of up to four layers. Empty for a network without `Attention`.

    Args:
        net: The network.
        input_ids: One row of tokens, (1, T).
    """
    layers = [layer for layer in net.trained_nets()[0].modules() if isinstance(layer, Attention)]
    weights: dict[nn.Module, np.ndarray] = {}

    def note(layer: Any, inputs: Any) -> None:
        q, k, _ = layer.queries_keys_values(*inputs[:2])
        scores = (q[0, 0] @ k[0, 0].mT * q.size(-1) ** -0.5).float()  # (T, T) of the first head
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1) & layer.causal
        weights[layer] = scores.masked_fill(hidden, -torch.inf).softmax(-1).cpu().numpy()

    with _eagerly(layer.register_forward_pre_hook(note) for layer in layers):
        net.trained_nets()[0].hidden(input_ids)
    chosen = sorted({round(i * (len(layers) - 1) / (MAX_MAPS - 1)) for i in range(MAX_MAPS)}) if layers else []
    return {f"layer {i + 1}, head 1": weights[layers[i]] for i in chosen}


def _layers(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in net.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{i}", layer) for i, layer in enumerate(child))
        else:
            yield name, child


@contextmanager
def _eagerly(hooks: Iterable[Any]) -> Iterator[None]:
    """Removes the hooks in the end. Compiled layers run without their compiled code, which has no hooks."""
    handles = list(hooks)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _rms(tensors: Iterable[Tensor]) -> float:
    """The root mean square of all elements."""
    tensors = list(tensors)
    n = sum(x.numel() for x in tensors)
    sums = [full(x.detach().float().square().sum()) for x in tensors]
    return float(torch.stack(sums).sum().div(n).sqrt()) if n else 0.0
