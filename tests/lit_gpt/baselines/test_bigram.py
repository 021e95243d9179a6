"""The bigram baselines: one token of context, counted or learned."""

import math

import pytest
import torch
import torch.nn.functional as F

from lit_gpt.baselines.bigram import BigramConfig, CountBigram, NeuralBigram, build_bigram
from lit_gpt.loss import cross_entropy_sum

IDS = torch.tensor([[0, 1, 0, 1, 2]])
TARGETS = torch.tensor([[1, 0, 1, 2, -100]])


def test_the_table_of_84_characters_has_7056_parameters() -> None:
    assert sum(p.numel() for p in NeuralBigram(BigramConfig(vocab_size=84)).parameters()) == 7_056


def test_counts_become_smoothed_probabilities() -> None:
    net = CountBigram(BigramConfig(kind="counts", vocab_size=3, add_k=0.5))
    torch.testing.assert_close(net(IDS).exp(), torch.full((1, 5, 3), 1 / 3))
    net.counts += net.pairs(IDS, TARGETS)
    # After 0 came 1 twice; after 1 came 0 and 2; nothing scored came after 2.
    expected = torch.tensor([[0.5, 2.5, 0.5], [1.5, 0.5, 1.5], [0.5, 0.5, 0.5]])
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(net(torch.tensor([[0, 1, 2]]))[0].exp(), expected)


def test_counting_in_batches_equals_counting_at_once() -> None:
    ids = torch.randint(5, (6, 9))
    whole, parts = (CountBigram(BigramConfig(kind="counts", vocab_size=5)) for _ in range(2))
    whole.counts += whole.pairs(ids[:, :-1], ids[:, 1:])
    for row in ids:
        parts.counts += parts.pairs(row[None, :-1], row[None, 1:])
    assert torch.equal(whole.counts, parts.counts)
    assert whole.counts.sum() == 6 * 8


def test_the_learned_table_approaches_the_counted_one() -> None:
    torch.manual_seed(0)
    ids = torch.randint(4, (8, 64)) // torch.randint(1, 3, (8, 64))
    counted, learned = (
        build_bigram(BigramConfig("counts", vocab_size=4, add_k=0.01)),
        build_bigram(BigramConfig(vocab_size=4)),
    )
    assert isinstance(counted, CountBigram)
    counted.counts += counted.pairs(ids[:, :-1], ids[:, 1:])
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.1)
    for _ in range(200):
        loss = F.cross_entropy(learned(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = F.cross_entropy(counted(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert best.item() < math.log(4) - 0.01
    assert loss.item() == pytest.approx(best.item(), abs=1e-3)


def test_a_large_vocabulary_is_scored_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = NeuralBigram(BigramConfig(vocab_size=5))
    ids, targets = torch.randint(5, (2, 2, 6))
    gradients = []
    for held in (100, 20):
        monkeypatch.setattr("lit_gpt.loss.MAX_LOGITS_CPU", held)
        nats = cross_entropy_sum(net.hidden(ids), net.head, net.head_weights(), targets, 5)
        gradients.append(torch.autograd.grad(nats, net.table.weight)[0])
    torch.testing.assert_close(*gradients)


def test_one_token_is_all_it_sees() -> None:
    net = NeuralBigram(BigramConfig(vocab_size=9))
    ids = torch.randint(9, (2, 7))
    assert torch.equal(net(ids)[:, -1:], net(ids[:, -1:]))
    assert torch.equal(net(ids, attention_mask=torch.ones_like(ids).bool(), document_ids=ids), net(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "trigram"}, "kind 'trigram' is unknown: choose neural or counts."),
        ({"add_k": 0.0}, "add_k is 0.0: give a positive number"),
        ({"vocab_size": 0}, "vocab_size is 0: give at least 1."),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_fix(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BigramConfig(**options)
