"""The forwards of decoding on a CPU compute what the modules' own do, and leave nothing behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gpt.decode_cpu import fast_forwards
from lit_gpt.model import MLP, Attention, Block
from tests.lit_gpt.test_model import CLASSIC, EVERY_ARCHITECTURE, small, tokens


def stepwise(net: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (B, T - 4, V) of a prompt's last token and of those after it, one at a time."""
    cache, logits = net.new_cache(len(ids)), []
    for begin, end in [(0, 5), *((i, i + 1) for i in range(5, ids.size(1)))]:
        # A mask is given with the prompt, and kept by the cache.
        states = net.hidden(ids[:, begin:end], attention_mask=None if mask is None or begin else mask, cache=cache)
        logits.append(net.head(states[:, -1:]))
    return torch.cat(logits, 1)


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("B", [1, 2, 5])
def test_logits_are_those_of_the_plain_forwards(architecture: dict[str, Any], B: int, padded: bool) -> None:
    net, ids = small(**architecture).eval(), tokens(B, 12)
    mask = torch.arange(5) >= torch.arange(B)[:, None] % 3 if padded else None  # (B, 5)
    with torch.inference_mode():
        expected = stepwise(net, ids, mask)
        with fast_forwards(net, B):
            torch.testing.assert_close(stepwise(net, ids, mask), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "swiglu"])
def test_activations_are_those_of_the_plain_forwards(activation: str) -> None:
    net, ids = small(**{**CLASSIC, "activation": activation}).eval(), tokens(5, 12)
    with torch.inference_mode():
        expected = stepwise(net, ids, None)
        with fast_forwards(net, 5):
            torch.testing.assert_close(stepwise(net, ids, None), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("B", [1, 5])
def test_hooks_of_every_module_are_called_for_every_token(B: int) -> None:
    net, called = small(**CLASSIC).eval(), []
    watched = [m for m in net.modules() if isinstance(m, nn.Linear | nn.LayerNorm | MLP | Attention | Block)]
    for module in watched:
        module.register_forward_hook(lambda module, *_: called.append(module))
    with torch.inference_mode(), fast_forwards(net, B):
        stepwise(net, tokens(B, 7), None)
    assert all(called.count(module) == 3 for module in watched)


class Doubled(MLP):
    """A module of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_subclass_keeps_its_forward() -> None:
    net, ids = small(**CLASSIC).eval(), tokens(5, 12)
    net.blocks[0].mlp.__class__ = Doubled
    with torch.inference_mode():
        expected = stepwise(net, ids, None)
        with fast_forwards(net, 5):
            torch.testing.assert_close(stepwise(net, ids, None), expected, atol=2e-5, rtol=1e-5)


def test_modules_have_their_own_forwards_again() -> None:
    net = small(**CLASSIC)
    with fast_forwards(net, 5):
        assert any("forward" in vars(m) for m in net.modules())
    assert not any("forward" in vars(m) for m in net.modules())
