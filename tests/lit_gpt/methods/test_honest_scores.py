"""A score is honest: probabilities sum to 1, a text's score is its own, and nothing is learned from what judges."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import HeadlinesDataModule
from datamodules.synthetic import headlines
from lit_gpt import LitExtendedGPT
from lit_gpt.loss import score
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.protocols import with_defaults
from tests.lit_gpt.methods.test_kneser_ney import V, documents, laid_out
from tests.lit_gpt.test_language_model import SMALL, joined, rows, trainer
from tests.lit_gpt.test_model import small

#: Every method that changes a prediction.
METHODS: dict[str, Any] = {"kneser_ney": 4, "members": 2, "ngrams": [2, 3], "ngram_rows": 64, "ngram_width": 4}


def counted(**options: Any) -> Any:
    net = small(**{"vocab_size": V, **options}).eval()
    net.counts.count(laid_out(documents(), marks=True))
    return net


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("order", range(2, 11))
def test_the_probabilities_of_a_mixture_sum_to_1(order: int, members: int) -> None:
    net = counted(kneser_ney=order, members=members)
    known = torch.tensor([(0, *text)[:8] for text in documents() if len(text) >= 8])
    contexts = torch.cat([known, torch.randint(0, V, (200, 8))])  # most of the random ones are not in the text
    probabilities = net(contexts).exp()  # not normalised by a softmax here
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(contexts.shape), atol=2e-6, rtol=0)
    assert (probabilities > 0).all()


def test_probabilities_sum_to_1_after_training_on_samples_of_the_vocabulary(tmp_path: Path) -> None:
    config = ExtendedGPTConfig(**SMALL, vocab_size=20, kneser_ney=3)
    model = LitExtendedGPT(config, sampled_softmax=4, sampled_softmax_until=1.0)
    model.configure_model()
    model.net.counts.count(laid_out(documents(), marks=True))  # type: ignore[union-attr]
    trainer(tmp_path, max_steps=4).fit(model, DataLoader([joined(rows(16, 3, 9, 1))], batch_size=None))
    sums = model.net.eval()(torch.randint(0, 20, (20, 8))).exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=2e-6, rtol=0)


def nats(net: Any, ids: Tensor, targets: Tensor, document_ids: Tensor | None = None) -> Tensor:
    hidden = net.hidden(ids, document_ids=document_ids)
    return score(hidden, net.head, net.head_weights(), targets, V)[0]


@pytest.mark.parametrize("methods", [{"kneser_ney": 3}, METHODS], ids=["counts", "all"])
def test_a_text_s_score_does_not_depend_on_neighbours_batch_or_row_length(methods: dict[str, Any]) -> None:
    net = counted(**methods, block_size=32)
    text = torch.tensor([[0, 3, 1, 2, 2, 5, 1, 0]])
    ids, targets = text[:, :-1], text[:, 1:]
    alone = nats(net, ids, targets)
    neighbour = torch.randint(1, V, (1, 9))
    pads = torch.zeros(1, 12, dtype=torch.long)
    padded = nats(net, torch.cat([ids, pads], 1), torch.cat([targets, pads - 100], 1))
    torch.testing.assert_close(padded[:, :7], alone)
    others = torch.randint(1, V, (4, 7))
    in_a_batch = nats(net, torch.cat([others, ids, others]), torch.cat([others, targets, others]))
    torch.testing.assert_close(in_a_batch[4:5], alone)
    packed = torch.cat([neighbour, ids, neighbour], 1)
    documents_of_row = torch.tensor([[0] * 9 + [1] * 7 + [2] * 9])
    scored = nats(net, packed, torch.cat([neighbour, targets, neighbour], 1), documents_of_row)
    torch.testing.assert_close(scored[:, 9:16], alone)


def learned_from(source: Path, judge: Path, folder: Path) -> tuple[str, dict[str, Tensor]]:
    """What a run knows before its first step: its tokenizer's hash, counts, parts and initial weights."""
    data = HeadlinesDataModule(
        str(source), val_source=str(judge), tokenizer="bpe", vocab_size=300, block_size=32, cache_dir=str(folder)
    )
    data.setup()
    torch.manual_seed(0)
    model = LitExtendedGPT(ExtendedGPTConfig(**SMALL, vocab_size=data.vocab_size, kneser_ney=3, token_parts=True))
    model.complete_config(with_defaults(data))
    net = model.build_network()
    net.prepare(with_defaults(data))
    return data.fingerprints["tokenizer"], net.state_dict()


def test_tokenizer_counts_and_parts_see_the_training_text_alone(tmp_path: Path) -> None:
    train, judges = tmp_path / "train.txt", [tmp_path / "judge1.txt", tmp_path / "judge2.txt"]
    lines = list(headlines(900))
    train.write_text("\n".join(lines[:500]))
    judges[0].write_text("\n".join(lines[500:]))
    judges[1].write_text("\n".join("Show HN: " + line.upper() for line in lines[100:400]))
    # Separate caches, so that the second run cannot take over what the first has made.
    learned = [learned_from(train, judge, tmp_path / judge.stem) for judge in judges]
    (one, states), (other, others) = learned
    assert one == other
    assert states.keys() == others.keys()
    assert all(torch.equal(states[name], others[name]) for name in states)
    wider, _ = learned_from(judges[1], train, tmp_path / "swapped")
    assert wider != one, "the hash tells texts apart"
