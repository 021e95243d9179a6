"""The forwards of decoding on a CPU compute what the modules' own do, and leave nothing behind."""

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gpt.decode import Sampling, decode
from lit_gpt.decode_cpu import FastForwards
from lit_gpt.forwards import replaced_forwards
from lit_gpt.model import MLP, Attention, Block
from tests.lit_gpt.test_model import CLASSIC, EVERY_ARCHITECTURE, small, tokens


def fast_forwards(net: nn.Module, batch_size: int) -> AbstractContextManager[Any]:
    return replaced_forwards(FastForwards(net, batch_size).current())


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


def decoding(net: Any, B: int, n: int = 6, seed: int = 0, **options: Any) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return decode(
        net, [[1, 2, 3]] * B, max_new_tokens=n, sampling=Sampling(temperature=1.0), generator=generator, **options
    )


@pytest.mark.parametrize("B", [1, 3])
def test_between_two_tokens_the_network_is_as_it_was(B: int) -> None:
    """It can be trained, copied and saved, and another loop may decode with it."""
    net, other = small(**CLASSIC, dropout=0.5), small(**CLASSIC, dropout=0.5)
    expected = list(decoding(net, B))
    steps = decoding(net, B)
    first = next(steps)
    assert all(m.training and "forward" not in vars(m) for m in net.modules())
    for trained in (net, other):
        torch.manual_seed(0)
        trained(tokens(2, 8)).sum().backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, q.grad)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert not copied(tokens(1, 4)).any()
    assert [first, *steps] == expected


def test_two_loops_may_decode_with_one_network_in_turns() -> None:
    net = small(**CLASSIC, dropout=0.5)
    expected = [list(decoding(net, 3, seed=seed, n=n)) for seed, n in ((0, 3), (1, 6))]
    one, two = decoding(net, 3, n=3), decoding(net, 3, seed=1)
    turns = [(next(one), next(two)) for _ in range(3)]
    assert next(one, None) is None
    assert [[a for a, _ in turns], [*(b for _, b in turns), *two]] == expected
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("B", [1, 3])
def test_each_token_is_drawn_with_the_weights_of_its_time(B: int) -> None:
    net = small(**CLASSIC)
    steps = decoding(net, B, cache=False)
    drawn = [next(steps)]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.linspace(-3, 3, parameter.numel()).view_as(parameter))
    drawn += steps
    again, prompts = decoding(net, B, n=6), [[1, 2, 3]] * B
    generator = torch.Generator().manual_seed(0)
    torch.multinomial(torch.ones(B, 37), 1, generator=generator)  # the first token's numbers
    prompts = [[*prompt, token] for prompt, token in zip(prompts, drawn[0], strict=True)]
    again = decode(net, prompts, max_new_tokens=5, sampling=Sampling(temperature=1.0), generator=generator, cache=False)
    assert drawn[1:] == list(again)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_a_step_leaves_the_network_as_it_was(error: type[BaseException]) -> None:
    net = small(**CLASSIC, dropout=0.5)

    def fail(*_: Any) -> None:
        raise error

    net.blocks[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(error):
        next(decoding(net, 3))
    assert all(m.training and "forward" not in vars(m) for m in net.modules())


def test_threads_may_decode_with_one_network() -> None:
    """It stays in eval mode as long as one of them computes a token. Each waits for the other in the middle of one."""
    net = small(**CLASSIC, dropout=0.5)
    expected = [list(decoding(net, 3, n=4, seed=seed)) for seed in (0, 1)]
    meeting = Barrier(2, timeout=20)

    def meet(*_: Any) -> None:
        meeting.wait()

    net.blocks[0].register_forward_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(lambda seed: list(decoding(net, 3, n=4, seed=seed)), (0, 1)))
    assert drawn == expected
    assert all(m.training and "forward" not in vars(m) for m in net.modules())
