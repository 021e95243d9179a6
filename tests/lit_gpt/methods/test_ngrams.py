"""Vectors of runs: equal runs get equal ones, no run reaches into another document or the future, decoding agrees."""

import pytest
import torch

from lit_gpt.decode import Sampling, decode
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.extended_gpt import ExtendedGPT
from lit_gpt.methods.ngrams import NgramEmbedding
from lit_gpt.model import GPT
from lit_gpt.optim import parameter_groups

SHAPE = {"block_size": 16, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 16}


def network(**options: object) -> GPT:
    """A small GPT whose table of runs is no longer zero."""
    torch.manual_seed(0)
    net = ExtendedGPT(ExtendedGPTConfig(**SHAPE, ngrams=[2, 3, 5], ngram_rows=512, ngram_width=8, **options)).eval()  # type: ignore[arg-type]
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def test_equal_runs_share_a_row_and_different_ones_hardly_ever() -> None:
    runs = NgramEmbedding([2, 3], rows=100_000, width=4, n_embd=4)
    rows = runs.table_rows(torch.tensor([[5, 7, 9, 5, 7, 9, 7, 9]]))[0]
    assert rows[1].tolist()[0] == rows[4].tolist()[0]  # 5 7
    assert rows[2].tolist() == rows[5].tolist()  # 7 9 and 5 7 9
    assert rows[7].tolist()[0] == rows[2].tolist()[0]  # 7 9 again
    assert rows[7].tolist()[1] != rows[2].tolist()[1]  # 9 7 9, not 5 7 9
    pairs = torch.cartesian_prod(torch.arange(1, 66), torch.arange(1, 66))
    found = runs.table_rows(pairs)[:, 1, 0]
    assert len(found.unique()) > 0.97 * len(pairs)  # as many as 4,225 balls in 100,000 boxes leave apart


def test_a_new_network_starts_as_if_it_had_none() -> None:
    ids = torch.randint(11, (2, 16))
    torch.manual_seed(0)
    plain = ExtendedGPT(ExtendedGPTConfig(**SHAPE))  # type: ignore[arg-type]
    torch.manual_seed(0)
    runs = ExtendedGPT(ExtendedGPTConfig(**SHAPE, ngrams=[2, 3]))  # type: ignore[arg-type]
    runs.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(runs(ids), plain(ids))


def test_no_position_sees_the_future() -> None:
    net, ids = network(), torch.randint(11, (1, 16))
    other = ids.clone()
    other[0, 9] = (other[0, 9] + 1) % 11
    before, after = net(ids), net(other)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=0)
    assert (before[:, 9:13] != after[:, 9:13]).any(-1).all()


def test_a_packed_document_equals_the_same_one_alone() -> None:
    net, first, second = network(), torch.randint(11, (1, 7)), torch.randint(11, (1, 9))
    documents = torch.tensor([[0] * 7 + [1] * 9])
    packed = net(torch.cat((first, second), dim=1), document_ids=documents)
    torch.testing.assert_close(packed[:, :7], net(first), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[:, 7:], net(second), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1], [4, 5, 6, 7, 8]]])
def test_decoding_with_a_cache_writes_what_it_writes_without(prompts: list[list[int]]) -> None:
    net = network()

    def text(cache: bool) -> list[list[int]]:
        greedy, generator = Sampling(temperature=0), torch.Generator()
        return list(decode(net, prompts, max_new_tokens=30, sampling=greedy, generator=generator, cache=cache))

    assert text(cache=True) == text(cache=False)


def test_pads_on_the_left_are_no_tokens() -> None:
    net, ids = network(), torch.randint(11, (1, 6))
    mask = torch.tensor([[False] * 4 + [True] * 6])
    padded = net(torch.cat((torch.zeros(1, 4, dtype=torch.int64), ids), dim=1), attention_mask=mask)
    torch.testing.assert_close(padded[:, 4:], net(ids), rtol=1e-5, atol=1e-5)


def test_the_table_counts_as_an_embedding_and_its_mix_as_a_matrix() -> None:
    net, plain = network(), ExtendedGPT(ExtendedGPTConfig(**SHAPE))  # type: ignore[arg-type]
    assert "wte.ngrams.table.weight" in dict(parameter_groups(net)["embeddings"])
    assert "wte.ngrams.mix.weight" in dict(parameter_groups(net)["matrices"])
    mix = 3 * 8 * 16
    assert net.flops_per_token() == plain.flops_per_token() + 6 * mix
    assert net.num_parameters() == plain.num_parameters() + 512 * 8 + mix
    assert net.num_parameters(embeddings=False) == plain.num_parameters(embeddings=False) + mix


def test_a_run_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="holds an n below 2"):
        ExtendedGPTConfig(ngrams=[1, 2])
