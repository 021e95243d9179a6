"""A GPT on top of counts: those without a fold are the definition's, training leaves out the fold of each row."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.errors import UserError
from lit_gpt import LitExtendedGPT
from lit_gpt.loss import score
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.counts_gpt import GPTOnCounts
from lit_gpt.methods.fold_counts import FoldCounts
from lit_gpt.methods.kneser_ney import KneserNey
from lit_gpt.sizes import Step, memory
from tests.lit_gpt.methods.test_kneser_ney import V, by_definition, laid_out
from tests.lit_gpt.test_model import small

TEXT: list[int] = (np.random.default_rng(0).zipf(1.3, size=160) % V).tolist()
FOLDS = 4
ON_COUNTS: dict[str, Any] = {"kneser_ney": 3, "kneser_ney_folds": FOLDS, "vocab_size": V}


def counted(kind: type[FoldCounts] = FoldCounts, order: int = 3) -> FoldCounts:
    counts = kind(order, V, FOLDS)
    counts.count(laid_out([TEXT], marks=False))
    return counts


@pytest.mark.parametrize("order", [2, 3, 5])
def test_without_a_fold_probabilities_are_those_of_the_definition(order: int) -> None:
    counts, context = counted(order=order), TEXT[30:40]
    places = counts.contexts(torch.tensor([context]))[0]
    for fold in range(FOLDS):
        found = counts(places, fold=torch.full((len(context),), fold))
        wanted = by_definition([TEXT], order, range(40 * fold, 40 * fold + 40))
        each = [[wanted(context[: i + 1], token) for token in range(V)] for i in range(len(context))]
        torch.testing.assert_close(found, torch.tensor(each), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.sum(-1), torch.ones(len(context)))


def test_the_whole_text_has_the_counts_that_are_mixed_into_other_networks() -> None:
    counts, plain = counted(), KneserNey(3, V)
    plain.count(laid_out([TEXT], marks=False))
    contexts = plain.contexts(torch.tensor([[*TEXT[:30], *range(V)]]))[0]
    torch.testing.assert_close(counts(contexts), plain(contexts))


def test_training_leaves_out_the_fold_of_each_row_and_scoring_nothing() -> None:
    net = small(**ON_COUNTS)
    net.counts = counted()
    begins = [0, 7, 45, 90, 125]
    rows = torch.tensor([TEXT[i : i + 32] for i in begins])
    contexts = net.counts.contexts(rows)
    for row, begin in enumerate(begins):
        wanted = net.counts(contexts[row], fold=torch.full((32,), begin // 40)).log()
        torch.testing.assert_close(net.log_probabilities(rows)[row], wanted)
    whole = net.counts(contexts.flatten(0, 1)).view(5, 32, V).log()
    torch.testing.assert_close(net.eval().log_probabilities(rows), whole)


def nats_of_each(net: GPTOnCounts, ids: Tensor) -> Tensor:
    """What an evaluation would score for each possible next token, (B, T, V)."""
    hidden = net.hidden(ids)
    scores = [score(hidden, net.head, net.head_weights(), torch.full_like(ids, v), V)[0] for v in range(V)]
    return torch.stack(scores, dim=-1)


@pytest.mark.parametrize("order", [2, 4, 8])
@pytest.mark.parametrize("training", [False, True], ids=["scored", "trained"])
def test_probabilities_sum_to_1(order: int, training: bool) -> None:
    net = small(**ON_COUNTS | {"kneser_ney": order}).train(training)
    net.counts = counted(order=order)
    torch.nn.init.normal_(net.trust)
    rows = torch.cat([torch.tensor([TEXT[i : i + 32] for i in (3, 50, 99)]), torch.randint(V, (3, 32))])
    sums = nats_of_each(net, rows).neg().exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones(6, 32), atol=2e-6, rtol=0)


def test_a_new_network_predicts_nearly_as_the_counts_do() -> None:
    net = GPTOnCounts(ExtendedGPTConfig(n_layer=1, n_head=1, n_embd=16, block_size=32, **ON_COUNTS)).eval()
    net.counts = counted()
    row = torch.tensor([TEXT[:32]])
    torch.testing.assert_close(net(row).softmax(-1), net.log_probabilities(row).exp(), atol=0.05, rtol=0.2)


def test_a_checkpoint_holds_the_counts_and_decoding_continues_them() -> None:
    net, other = small(**ON_COUNTS).eval(), small(**ON_COUNTS).eval()
    net.counts = counted()
    other.load_state_dict(net.state_dict())
    ids = torch.tensor([TEXT[40:60], TEXT[90:110]])
    torch.testing.assert_close(other(ids), net(ids))
    cache = net.new_cache(2)
    parts = [net(part, cache=cache) for part in ids.split([9, 1, 10], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), net(ids), atol=2e-5, rtol=1e-4)


def test_every_parameter_learns_and_memory_is_planned() -> None:
    net = small(**ON_COUNTS)
    net.counts = counted()
    assert memory(net, [], Step(2, 32)).activations > 0  # without values to look up
    ids = torch.tensor([TEXT[:32]])
    net(ids).logsumexp(-1).sum().backward()
    assert all(parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kneser_ney_folds": 1}, "kneser_ney_folds is 1: give 0 for none"),
        ({"kneser_ney": 0}, "kneser_ney_folds 4 has no counts"),
        ({"block_size": 31}, "rows of at least 32 tokens"),
        ({"members": 2}, "works without members"),
        ({"ngrams": [2]}, "works without members, token_parts and ngrams"),
    ],
    ids=str,
)
def test_mistakes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ExtendedGPTConfig(**ON_COUNTS | options)


def test_what_does_not_go_together() -> None:
    with pytest.raises(UserError, match=r"sampled_softmax does not work with config\.kneser_ney_folds"):
        LitExtendedGPT(ExtendedGPTConfig(**ON_COUNTS), sampled_softmax=4)
    ids = torch.zeros(1, 32, dtype=torch.int64)
    with pytest.raises(UserError, match="kneser_ney_folds needs rows of running text"):
        small(**ON_COUNTS).hidden(ids, document_ids=ids)
